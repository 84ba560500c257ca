"""Command line -> configuration, with messages for people instead of Hydra's tracebacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.errors import ConfigError, nearest

CONFIG_DIR = Path(__file__).parent.resolve()


def groups() -> dict[str, list[str]]:
    """Config groups and their choices: {"policy": ["diffusion", "flow"], ...}."""
    folders = sorted(p for p in CONFIG_DIR.iterdir() if p.is_dir() and any(p.glob("*.yaml")))
    return {p.name: sorted(f.stem for f in p.glob("[!_]*.yaml")) for p in folders}  # _head: what choices share


def _compose(name: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=overrides)


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _leaves(value, f"{prefix}{key}.")
    return out


def _explain(name: str, overrides: list[str], error: Exception) -> str:
    """Finds the override that does not fit and says what would."""
    choices = groups()
    base = _compose(name, [o for o in overrides if o.split("=")[0] in choices and _known_choice(o)])
    known = [k for k in _leaves(OmegaConf.to_container(base, resolve=False)) if ".sizes." not in k]
    sections = {k.rsplit(".", i)[0] for k in known for i in range(1, k.count(".") + 1)}
    for override in overrides:
        if "=" not in override:
            return f"'{override}' is not of the form key=value."
        key, value = override.split("=", 1)
        key = key.lstrip("+~")
        if key in choices and not _known_choice(override):
            return f"Unknown {key} '{value}'. {nearest(value, choices[key])}"
        if key not in known and key not in sections and key not in choices:
            return f"Unknown option '{key}'. {nearest(key, known + list(choices))}"
        sizes = OmegaConf.select(base, f"{key}s") if key.endswith(".size") else None
        if sizes is not None and value not in sizes:
            return f"Unknown {key} '{value}'. {nearest(value, list(sizes))}"
    return " ".join(str(error).split())


def _known_choice(override: str) -> bool:
    key, _, value = override.partition("=")
    return value in groups().get(key, []) or value == "null"


def load_config(name: str, overrides: list[str]) -> dict[str, Any]:
    """The resolved configuration ``name`` with command-line overrides.

    Raises:
        ConfigError: naming the override that does not fit, with the nearest known names.
    """
    try:
        OverridesParser.create().parse_overrides(overrides)
        resolved = _resolve(_compose(name, overrides))
    except (HydraException, OmegaConfBaseException) as e:
        raise ConfigError(_explain(name, overrides, e)) from e
    chosen = [o for o in overrides if o.split("=")[0] in groups() and _known_choice(o)]
    _check_types(_leaves(resolved), _leaves(OmegaConf.to_container(_compose(name, chosen), resolve=True)))
    return resolved


def _resolve(config: DictConfig) -> dict[str, Any]:
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    for section in resolved.values():
        if isinstance(section, dict) and "sizes" in section:  # they only chose values for other options
            del section["size"], section["sizes"]
    return {str(k): v for k, v in resolved.items()}


def _check_types(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    """A value must be of its default's type; where the default is null or missing, anything goes."""
    for key, value in values.items():
        default = defaults.get(key)
        if default is None or value is None or default == "???":
            continue
        fits = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if not fits or (isinstance(value, bool) and not isinstance(default, bool)):
            raise ConfigError(f"{key}={value} must be of type {type(default).__name__}, like its default {default}.")


def check_at_least(minimum: int, config: dict[str, Any], names: list[str]) -> None:
    """Raises ConfigError for an option of ``names`` that is neither null nor a whole number >= ``minimum``."""
    leaves = _leaves(config)
    for name in names:
        value = leaves[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < minimum):
            raise ConfigError(f"{name}={value} must be a whole number, at least {minimum}.")


def help_text(name: str, usage: str) -> str:
    """Groups with their choices and every option with its default and comment."""
    lines = [usage.strip(), "", "Groups (group=choice):"]
    if name == "train":
        lines += [f"  {group:<12}{' | '.join(names)}" for group, names in groups().items()]
    else:
        lines.pop()
    lines += ["", "Options (key=value):"]
    lines += ["  " + line for line in (CONFIG_DIR / f"{name}.yaml").read_text().splitlines() if "defaults" not in line]
    if name == "train":
        for section in ("task", "policy", "network", "algo"):
            default = _compose(name, [])[section].get("name", "")
            file = CONFIG_DIR / section / f"{default}.yaml"
            if not file.exists():
                file = CONFIG_DIR / section / "metaworld.yaml"
            lines += ["", f"{section}.* (of {file.stem}):"]
            for part in [file, *file.parent.glob("_*.yaml")]:
                lines += ["  " + line for line in part.read_text().splitlines() if not line.startswith("defaults")]
    return "\n".join(lines)
