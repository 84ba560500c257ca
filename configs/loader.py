"""Command line -> configuration, with messages for people instead of Hydra's tracebacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from data.errors import ConfigError, nearest

CONFIG_DIR = Path(__file__).parent.resolve()
# Sections that take entries which their file does not list; whoever they are for knows which there may be
OPEN = (
    "cameras",
    "sensors",
    "robot",
    "simulator",
    "teleop",
    "recorder",
    "policy.overrides",
    "safety.limits",
    "task.kwargs",
)


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
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key} has no default: give {error.full_key}=..."
    return " ".join(str(error).split())


def _opened(name: str, overrides: list[str]) -> list[str]:
    """``overrides`` with new entries of ``OPEN`` sections marked as hydra wants them."""
    choices = groups()
    keys = [o.partition("=")[0] for o in overrides]
    if not any(k == s or k.startswith(f"{s}.") for k in keys for s in OPEN if k not in choices):
        return overrides
    base = _compose(name, [o for o in overrides if o.split("=")[0] in choices and _known_choice(o)])
    known = _leaves(OmegaConf.to_container(base, resolve=False))
    marked = []
    for key, override in zip(keys, overrides, strict=True):
        inside = [s for s in OPEN if (key == s or key.startswith(f"{s}.")) and OmegaConf.select(base, s) is not None]
        new = inside and key not in known and not (key in choices and _known_choice(override))
        marked.append(f"++{override}" if new else override)
    return marked


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
        overrides = _opened(name, overrides)
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
    lines = [usage.strip()]
    defaults = OmegaConf.select(OmegaConf.load(CONFIG_DIR / f"{name}.yaml"), "defaults") or []
    known, used = groups(), [group for entry in defaults if not isinstance(entry, str) for group in entry]
    if used:
        lines += ["", "Groups (group=choice):", *(f"  {g:<12}{' | '.join(known[g])}" for g in used if g in known)]
    lines += ["", "Options (key=value):"]
    text = (CONFIG_DIR / f"{name}.yaml").read_text().splitlines()
    lines += ["  " + line for line in text if "defaults" not in line and not line.startswith("  - ")]
    if "_inference" in defaults:
        lines += ["  " + line for line in (CONFIG_DIR / "_inference.yaml").read_text().splitlines()[1:]]
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
