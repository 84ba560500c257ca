"""From options to objects: messages that name the option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from data.errors import ConfigError, nearest

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, where: str) -> T:
    """``registry[name]``, or a ConfigError with the nearest names."""
    if name not in registry:
        raise ConfigError(f"Unknown {where} '{name}'. {nearest(name, list(registry))}")
    return registry[name]


def load_named(known: Mapping[str, str], name: str, where: str) -> Callable[..., Any]:
    """What ``known`` holds for ``name`` as "package.module:attribute", or what such a name of one's own stands for.

    Raises:
        ConfigError: unknown, or it cannot be loaded.
    """
    target = known.get(name, name)
    if ":" not in target:
        raise ConfigError(
            f"{where}={name} is not known. {nearest(name, list(known))} Or name your own driver as 'module:Class'."
        )
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"{where}={name} cannot be loaded: {e}") from e


def option_names(factory: Callable[..., Any]) -> list[str]:
    """The parameters of ``factory``; where a class hands its **keywords on, its parent's as well."""
    parameters = inspect.signature(factory).parameters.values()
    names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(names) < len(parameters) and inspect.isclass(factory) and factory.__base__ is not None:
        names += [name for name in option_names(factory.__base__) if name not in names]
    return names


def construct(factory: Callable[..., T], args: Mapping[str, Any], where: str, **given: Any) -> T:
    """``factory(**given, **args)``; an unknown, missing or bad argument becomes a ConfigError that names it."""
    known = [name for name in option_names(factory) if name not in given]
    for name in args:
        if name not in known:
            raise ConfigError(f"Unknown option '{where}.{name}'. {nearest(name, known)}")
    try:
        return factory(**given, **args)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{where}: {e}.") from e
