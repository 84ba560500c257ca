"""What the data tools' command lines share: key=value words, tables, a bar, errors in one paragraph."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from data.errors import ConfigError, DeftError, nearest

READING: dict[str, Any] = {"keys": None, "hz": None, "mask": None, "actions": None}
READING_HELP = """  keys: null     {name: key, name: [key, key]}: other names for its arrays, or several vectors as one
  hz: null       actions per second, where its format does not say
  mask: null     only the episodes of this filter key (robomimic: train, valid, ...)
  actions: null  absolute: robomimic's absolute actions (actions_abs), their rotations as six numbers"""


def options(words: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """key=value words over ``defaults``; a value must be of its default's kind, where that is not None."""
    out = dict(defaults)
    for word in words:
        key, sign, value_text = word.partition("=")
        if not sign:
            raise ConfigError(f"'{word}' is not of the form key=value.")
        if key not in defaults:
            raise ConfigError(f"Unknown option '{key}'. {nearest(key, list(defaults))}")
        try:
            value = yaml.safe_load(value_text)
        except yaml.YAMLError as e:
            raise ConfigError(f"{word} cannot be read: {' '.join(str(e).split())}") from None
        default = defaults[key]
        number = isinstance(value, int) and not isinstance(value, bool)
        fits = type(value) is type(default) or (isinstance(default, float) and number)
        if isinstance(default, tuple) or key == "crop":
            fits = isinstance(value, (list, str))
        if default is not None and not fits:
            raise ConfigError(
                f"{key}={value_text} must be of type {type(default).__name__}, like its default {default}."
            )
        out[key] = tuple(value) if isinstance(value, list) else value
    return out


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


class Bar:
    """Progress on stderr: one line that is written over in a terminal, one every ten seconds elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._live = label, total, sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._before = 0

    def resume(self, done: int) -> None:
        """``done`` units were finished before; the time that is left is told by the others."""
        self._before = done
        print(f"{self._label}: goes on at {done}/{self._total}", file=sys.stderr, flush=True)

    def update(self, done: int) -> None:
        """``done`` units are finished."""
        now = time.monotonic()
        if done < self._total and now - self._last < (0.1 if self._live else 10):
            return
        self._last = now
        left = (now - self._began) / max(1, done - self._before) * (self._total - done)
        filled = round(30 * done / max(1, self._total))
        bar = f"[{'=' * filled}{' ' * (30 - filled)}] " if self._live else ""
        end = "\r" if self._live and done < self._total else "\n"
        note = f", {left:.0f} s left" if done < self._total else f" in {now - self._began:.1f} s"
        print(f"{self._label}: {bar}{done}/{self._total}{note}   ", end=end, file=sys.stderr, flush=True)


def run_command(main: Callable[[Sequence[str]], int], usage: str) -> None:
    """Runs a tool: help, exit status, and errors that the user can act on as one paragraph on stderr."""
    words, status = sys.argv[1:], 0
    try:
        if not words or {"-h", "--help"} & set(words):
            print(usage)
        else:
            status = main(words)
    except DeftError as e:
        print(f"error: {e}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # | head
        sys.stderr.close()
    sys.exit(status)
