"""What a policy is shown: the rings of now, by the rule that its training data were made with.

At a decision at time t a policy sees the newest picture captured at or before t, the robot's joints at t, interpolated,
and so for the n_obs_steps - 1 decision times before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import ContractError
from data.spec import FieldSpec, TaskSpec
from real_robot.core.ring import Record, Ring
from real_robot.core.streams import Session
from real_robot.core.types import SECOND
from real_robot.recorder.pictures import fit

Window = dict[str, NDArray[Any]]  # each (To, *shape)


class NotReady(Exception):
    """Something that a policy has to see is missing or too old; says what."""


class Observer:
    """Windows of observations from a session's rings.

    Args:
        session: whose rings are read.
        spec: of a policy trained on recorded episodes: ``env_args["rule"]`` says how they were made.
        n_obs_steps: To.
    """

    def __init__(self, session: Session, spec: TaskSpec, n_obs_steps: int):
        rule = spec.env_args.get("rule")
        if rule is None or "actions" not in spec.env_args:
            raise ContractError(
                f"The policy was trained on '{spec.name}', not on recorded episodes: its checkpoint does not say what "
                "a robot has to show it. Train on a data set that `python -m real_robot.episodes export` wrote, or, "
                "where another project's code has been trained on it, say data=DATASET."
            )
        self.session, self.spec, self.n_obs_steps, self.rule = session, spec, n_obs_steps, rule
        self._rings: dict[str, Ring] = {}
        self.sources = {key: self._source(key) for key in spec.obs}

    def _source(self, key: str) -> tuple[str, str]:
        """(ring, field) of an observation."""
        if key == self.rule["state_key"]:
            return "state", "q"
        kind, _, name = key.partition("_")
        if kind in ("rgb", "depth") and name:
            return f"camera.{name}", kind
        return f"sensor.{key}", "value"

    def ring(self, name: str) -> Ring:
        """Raises NotReady where nobody writes it yet."""
        if name not in self._rings:
            if not self.session.has(name):
                raise NotReady(f"'{name}' is not there: is its camera or sensor configured and running?")
            self._rings[name] = self.session.attach(name)
        return self._rings[name]

    def window(self, now: int) -> Window:
        """{key: (To, *shape)} for a decision at ``now``. Raises NotReady."""
        period = SECOND / self.spec.control_hz
        times = [now - round((self.n_obs_steps - 1 - k) * period) for k in range(self.n_obs_steps)]
        out: Window = {}
        for key, field in self.spec.obs.items():
            ring, name = self.sources[key]
            rows = [self._look(ring, name, t) for t in times]
            out[key] = np.stack(rows).astype(field.dtype)
            if out[key].shape[1:] != field.shape:
                raise ContractError(f"'{ring}' gives {key} of shape {out[key].shape[1:]}, trained on {field.shape}.")
        return out

    def fields(self, now: int) -> dict[str, FieldSpec]:
        """What the robot shows under the keys of ``spec``, whatever that expects. Raises NotReady."""
        found: dict[str, FieldSpec] = {}
        for key, (ring, name) in self.sources.items():
            kind = key.partition("_")[0] if ring.startswith("camera.") else "state"
            dtype = "uint8" if kind == "rgb" else "float32"
            found[key] = FieldSpec(self._look(ring, name, now).shape, dtype, kind)  # type: ignore[arg-type]
        return found

    def _look(self, ring: str, name: str, t: int) -> NDArray[Any]:
        if ring == "state":
            return self._joints(t)
        camera = ring.startswith("camera.")
        allowed = self.rule["max_image_age"] if camera else self.rule["max_gap"]
        record = self._newest(ring, t, allowed)
        value = record.data[name]
        size = self.rule["size"]
        return fit(value, self.rule["crop"], None if size is None else tuple(size)) if camera else value

    def _newest(self, name: str, t: int, allowed: float) -> Record:
        """The last record at or before ``t``, not older than ``allowed`` s; the first, before there was another."""
        ring = self.ring(name)
        n, found = ring.newest, None
        while n > 0 and (record := ring.get(n)) is not None:
            found = record
            if record.t <= t:
                break
            n -= 1
        if found is None:
            raise NotReady(f"'{name}' has shown nothing yet")
        if t - found.t > allowed * SECOND:
            raise NotReady(f"the newest of '{name}' is {(t - found.t) / SECOND:.3f} s old, {allowed} s are allowed")
        return found

    def _joints(self, t: int) -> NDArray[np.float64]:
        before = self._newest("state", t, self.rule["max_gap"])
        after = self.ring("state").get(before.n + 1)
        share = 0.0
        if after is not None and after.t > before.t:
            share = min(1.0, max(0.0, (t - before.t) / (after.t - before.t)))
        fields = ("q", "dq") if self.rule["velocity"] else ("q",)
        ends = [np.concatenate([r.data[f] for f in fields]) for r in (before, after or before)]
        return ends[0] * (1 - share) + ends[1] * share
