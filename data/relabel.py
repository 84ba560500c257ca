"""A data set with other rewards, successes, goals or words. See ``--help``."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.command import READING, READING_HELP, Bar, options, run_command
from data.convert import convert, format_of
from data.cores import n_cores
from data.errors import ConfigError, DataError
from data.opening import open_with
from data.rules import FUNCTIONS, Rule
from data.source import Episodes, Rows
from data.spec import FieldSpec

USAGE = f"""python -m data.relabel PATH out=DST [success=RULE] [reward=RULE] [goal=KEY] [text=WORDS] [key=value ...]

Copies a data set of any format and gives it other labels; all else stays. A rule is an expression over keys, such as
'norm(object[:3] - goal) < 0.02', with numbers, operators, x[i], x[a:b], step and {", ".join(FUNCTIONS)}.

Options (key=value):
  out            the new data set; must not exist
  success: null  a rule that is true or false at each step
  reward: null   sparse: 1 where success is, else 0; penalty: 0 where success is, else -1; or a rule
  goal: null     a key whose value at some step of its episode becomes the observation 'goal' of all of its steps, as
                 hindsight experience replay has it; rules can name it
  from: last     that step: last, or achieved: the first with success, else the last
  text: null     what all episodes are told to do: attrs["tasks"] and task_index
  format: null   as of data.convert
{READING_HELP}"""


class Held(Rows):
    """An array in memory."""

    def __init__(self, name: str, rows: np.ndarray) -> None:
        self.name, self.shape, self.dtype, self._rows = name, rows.shape, rows.dtype, rows

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        return self._rows[start:stop]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        return self._rows[rows]

    def stamps(self) -> list[Any]:
        """A digest of the rows."""
        return [self.shape, str(self.dtype), hashlib.sha256(np.ascontiguousarray(self._rows).tobytes()).hexdigest()]


class Relabelled(Episodes):
    """``source`` with other labels; its ``format`` and ``path`` are the source's."""

    def __init__(self, source: Episodes) -> None:
        """As it is; the methods below change one label each, in the order in which they are called."""
        self.format, self.path, self.attrs, self.task = source.format, source.path, dict(source.attrs), source.task
        self.episode_ends, self._episode_meta = source.episode_ends, dict(source._episode_meta)
        self._arrays = {k: source.array(k) for k in source.keys}

    def set_success(self, rule: str) -> None:
        """ "success" (T,) bool by a rule. Raises ConfigError: no such rule, or one that is not true or false."""
        found = self._computed(rule)
        if found.dtype != bool:
            raise ConfigError(f"success='{rule}' gives numbers ({found.dtype}), expected true or false: compare them.")
        self._arrays["success"] = Held("success", found)

    def set_reward(self, rule: str) -> None:
        """ "reward" (T,) float32 by a rule, "sparse" or "penalty".

        Raises:
            ConfigError: no such rule.
            DataError: no "success" to go by, or a reward that is not finite.
        """
        if rule in ("sparse", "penalty"):
            success = self._success(f"reward={rule}")
            reward = success.astype(np.float32) - (rule == "penalty")
        else:
            reward = self._computed(rule).astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(reward))
        if len(bad):
            episode, step = self.locate(int(bad[0]))
            raise DataError(f"{self.path}: reward='{rule}' is not finite in episode {episode} at step {step}.")
        self._arrays["reward"] = Held("reward", reward.astype(np.float32))

    def set_goal(self, key: str, at: str) -> None:
        """Observation "goal": what ``key`` is at a step of the episode, "last" or "achieved".

        Raises:
            ConfigError: another step.
            DataError: no ``key``, or a "goal" of another shape that is there already.
        """
        if at not in ("last", "achieved"):
            raise ConfigError(f"from={at} must be last or achieved.")
        rows, task = self.array(key), self.task
        if "goal" in self.keys and (self.shape("goal"), self.dtype("goal")) != (self.shape(key), self.dtype(key)):
            raise DataError(
                f"{self.path}: goal={key} has steps of {self.shape(key)} {self.dtype(key)}, but its goal is "
                f"{self.shape('goal')} {self.dtype('goal')}."
            )
        chosen = self.episode_ends - 1
        if at == "achieved":
            success, starts = self._success("from=achieved"), self.episode_starts
            firsts = [int(a + success[a:b].argmax()) for a, b in zip(starts, self.episode_ends, strict=True)]
            chosen = np.where(success[firsts], firsts, chosen).astype(np.int64)
        goals = rows.gather(chosen)
        self._arrays["goal"] = Constant("goal", goals, self.episode_ends)
        if task is not None:
            spec = FieldSpec(rows.shape[1:], rows.dtype.name, "goal")
            self.task = dataclasses.replace(task, obs={**task.obs, "goal": spec})

    def set_text(self, text: str) -> None:
        """What all episodes are told to do."""
        self.attrs["tasks"] = [text]
        self._arrays["task_index"] = Held("task_index", np.zeros(self.n_steps, np.int64))

    def successes(self) -> int | None:
        """Episodes with success at any step; None where nothing says so."""
        if "success" not in self.keys:
            return None
        return int(np.logical_or.reduceat(self._success(""), self.episode_starts).sum()) if self.n_episodes else 0

    def _success(self, why: str) -> np.ndarray:
        if "success" not in self.keys:
            raise DataError(f"{self.path} has no 'success', which {why} goes by; give success=RULE.")
        return self.array("success").read(0, self.n_steps).reshape(self.n_steps, -1)[:, 0] > 0

    def _computed(self, text: str) -> np.ndarray:
        rule = Rule(text, {k: self.shape(k) for k in self.keys})
        out: list[np.ndarray] = []
        for i in range(self.n_episodes):
            start, stop = int(self.episode_starts[i]), int(self.episode_ends[i])
            rows = self.episode(i, rule.keys)
            out.append(rule(rows or {"step": np.arange(stop - start)}))
        return np.concatenate(out) if out else np.zeros(0)


class Constant(Held):
    """A value for each episode, (n_episodes, *shape), shown at each of its steps."""

    def __init__(self, name: str, values: np.ndarray, ends: np.ndarray) -> None:
        super().__init__(name, values)
        self.shape, self._ends = (int(ends[-1]) if len(ends) else 0, *values.shape[1:]), ends

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop)."""
        return self.gather(np.arange(start, stop))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Rows at any places."""
        return self._rows[np.searchsorted(self._ends, rows, side="right")]


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths = [w for w in argv if "=" not in w]
    given = options([w for w in argv if "=" in w], _DEFAULTS)
    labels = {k: given[k] for k in ("success", "reward", "goal", "text") if given[k] is not None}
    if len(paths) != 1 or not isinstance(given["out"], str) or not labels:
        raise ConfigError("What, and how? python -m data.relabel PATH out=DST success=RULE")
    source, out = Relabelled(open_with(paths[0], given)), Path(given["out"])
    before = source.successes()
    steps = {
        "goal": lambda: source.set_goal(str(given["goal"]), given["from"]),
        "success": lambda: source.set_success(str(given["success"])),
        "reward": lambda: source.set_reward(str(given["reward"])),
        "text": lambda: source.set_text(str(given["text"])),
    }
    order = ["success", "goal"] if given["from"] == "achieved" else ["goal", "success"]
    for name in (*order, "reward", "text"):
        if name in labels:
            steps[name]()
    bar = Bar(f"writing {out}", source.n_episodes)
    convert(source, out, format_of(out, given["format"]), bar.update, workers=n_cores(), resumed=bar.resume)
    if (now := source.successes()) is not None:
        was = "" if before is None else f" (before: {before})"
        print(f"success in {now} of {source.n_episodes} episodes{was}", file=sys.stderr)
    return 0


_DEFAULTS: dict[str, Any] = {
    "out": None,
    "success": None,
    "reward": None,
    "goal": None,
    "from": "last",
    "text": None,
    "format": None,
    **READING,
}

if __name__ == "__main__":
    run_command(main, USAGE)
