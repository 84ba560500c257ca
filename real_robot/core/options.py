"""Options of the small programs, ``name=value`` as hydra writes them, without hydra."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from data.errors import ConfigError, nearest


def options(argv: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """``defaults``, changed by ``argv``: each value takes its default's type; None stands for a string not given.

    Lists are written with commas. Raises ConfigError for an unknown name or a value of another type.
    """
    found = dict(defaults)
    for argument in argv:
        name, equals, text = argument.partition("=")
        if not equals or name not in defaults:
            raise ConfigError(f"There is no option '{argument}'. {nearest(name, list(defaults))}")
        try:
            found[name] = _parse(text, defaults[name])
        except ValueError:
            kind = type(defaults[name]).__name__
            raise ConfigError(f"{name}={text}: expected a value like {defaults[name]!r} ({kind}).") from None
    return found


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that ``function`` has defaults for."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _parse(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if isinstance(default, tuple):
        of = type(default[0]) if default else str
        return tuple(of(part) for part in text.split(",") if part)
    return text if default is None else type(default)(text)
