"""What the page shows: the arm as its model draws it, what the session's rings say, the cameras' pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import mujoco as _mujoco
import numpy as np

from data.errors import DataError
from real_robot.core.kinematics import Kinematics
from real_robot.core.ring import Ring
from real_robot.core.streams import SOURCES, Session
from real_robot.core.types import SECOND, Joints

mujoco: Any = _mujoco
_SHAPES = {2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box", 7: "mesh"}  # mjtGeom
_COLLISION = 3  # groups from here on are collision shapes, by convention of MuJoCo's models
_EVERY = 0.25  # s between looks at the rings
_LINES = 6


class View:
    """Of one session and one robot; used by the server's thread alone.

    Args:
        kinematics: of the robot; its own, since MuJoCo's data are not to be shared between threads.
        session: None shows the arm alone.
        machine: names of the control process' states, by number.
        clips: names of the bits of ``clipped`` in the ring ``command``.
        width: of the cameras' pictures, pixels.
    """

    def __init__(
        self,
        kinematics: Kinematics,
        session: Session | None,
        *,
        machine: Sequence[str] = (),
        clips: Sequence[str] = (),
        width: int = 320,
    ):
        self.kinematics, self.session, self.machine, self.clips, self.width = kinematics, session, machine, clips, width
        model = kinematics.model
        shown = [i for i in range(model.ngeom) if int(model.geom_type[i]) in _SHAPES]
        visual = [i for i in shown if model.geom_group[i] < _COLLISION]
        self._geoms = np.array(visual or shown, np.int64)
        self._rings: dict[str, Ring] = {}
        self._counts: dict[str, tuple[float, int, float]] = {}  # of a ring: when, newest then, records a second
        self._seen: dict[str, int] = {}
        self._lines: list[tuple[int, str]] = []
        self._status: dict[str, Any] = {}
        self._looked = 0.0

    def geoms(self) -> list[dict[str, Any]]:
        """Shape, size (m) and colour of everything that is drawn; meshes as the boxes around them."""
        model, out = self.kinematics.model, []
        for i in self._geoms:
            shape, rgba = _SHAPES[int(model.geom_type[i])], model.geom_rgba[i]
            if model.geom_matid[i] >= 0:
                rgba = model.mat_rgba[model.geom_matid[i]]
            size, middle = model.geom_size[i], np.zeros(3)
            if shape == "mesh":
                shape, middle, size = "box", model.geom_aabb[i, :3], model.geom_aabb[i, 3:]
            out.append({"shape": shape, "size": _short(size), "middle": _short(middle), "rgba": _short(rgba)})
        return out

    def arm(self, q: Joints) -> dict[str, Any]:
        """Poses of all that is drawn (12 numbers each: rotation by rows, position), and of the tool."""
        tool = self.kinematics.forward(q)
        data = self.kinematics.data
        poses = np.concatenate([data.geom_xmat[self._geoms], data.geom_xpos[self._geoms]], 1)
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, tool[:3, :3].ravel())
        return {"poses": _short(poses.ravel()), "tool": {"p": _short(tool[:3, 3]), "q": _short(quat, 6)}}

    def cameras(self) -> list[str]:
        """Names of those that there are now."""
        return [n.removeprefix("camera.") for n in self.session.names("camera.")] if self.session else []

    def picture(self, camera: str) -> bytes | None:
        """The newest one, as a small JPEG."""
        import cv2

        ring = self._ring(f"camera.{camera}")
        record = ring.latest() if ring is not None else None
        if record is None:
            return None
        rgb = record.data["rgb"]
        height = max(1, rgb.shape[0] * self.width // rgb.shape[1])
        small = cv2.resize(rgb, (self.width, height), interpolation=cv2.INTER_AREA)
        ok, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 70])
        return jpeg.tobytes() if ok else None

    def status(self) -> dict[str, Any]:
        """What the panel shows; looked up a few times a second, however often it is asked for."""
        now = time.monotonic()
        if self.session is None or now - self._looked < _EVERY:
            return self._status
        self._looked = now
        names = [n for n in self.session.names() if not n.startswith("event.")]
        rates = {n: self._rate(n, now) for n in names if n not in ("request", "chunk")}
        self._status = {"rates": rates, **self._command(), **self._chunk(), "events": self._events()}
        return self._status

    def _ring(self, name: str) -> Ring | None:
        if self.session is None:
            return None
        if name not in self._rings:
            try:
                self._rings[name] = self.session.attach(name)
            except DataError:
                return None
        return self._rings[name]

    def _rate(self, name: str, now: float) -> float:
        ring = self._ring(name)
        n = ring.newest if ring is not None else 0
        when, before, rate = self._counts.get(name, (now, n, 0.0))
        if now - when > 0.9:
            rate = (n - before) / (now - when)
            self._counts[name] = (now, n, rate)
            if n == before:
                self._rings.pop(name, None)  # its writer may have made a new one
        elif name not in self._counts:
            self._counts[name] = (now, n, 0.0)
        return round(rate, 1)

    def _command(self) -> dict[str, Any]:
        ring = self._ring("command")
        records = ring.since(max(0, ring.newest - 200))[0] if ring is not None else []
        if not records:
            return {}
        newest = records[-1].data
        clipped = int(np.bitwise_or.reduce([int(r.data["clipped"]) for r in records]))
        state, source = int(newest["state"]), int(newest["source"])
        return {
            "machine": self.machine[state] if state < len(self.machine) else str(state),
            "source": SOURCES[source] if source < len(SOURCES) else str(source),
            "limits": [name for bit, name in enumerate(self.clips) if clipped >> bit & 1],
            "late_ms": round(float(np.percentile([r.data["late"] for r in records], 95)) / 1e6, 2),
            "age_ms": round((time.monotonic_ns() - records[-1].t) / 1e6, 1),
        }

    def _chunk(self) -> dict[str, Any]:
        ring = self._ring("chunk")
        record = ring.latest() if ring is not None else None
        if record is None:
            return {}
        data = record.data
        return {
            "chunk_age_s": round((time.monotonic_ns() - int(data["t_obs"])) / SECOND, 2),
            "inference_ms": round((int(data["answered"]) - int(data["asked"])) / 1e6, 1),
        }

    def _events(self) -> list[tuple[int, str]]:
        assert self.session is not None
        new = []
        for name in self.session.names("event."):
            ring = self._ring(name)
            if ring is None:
                continue
            records, _ = ring.since(min(self._seen.get(name, 0), ring.newest))
            self._seen[name] = ring.newest
            process = name.removeprefix("event.")
            said = [(r.t, int(r.data["level"]), r.data["text"].item().decode(errors="replace")) for r in records]
            new += [(t, level, f"{process}: {text}") for t, level, text in said]
        self._lines = [*self._lines, *((level, text) for _, level, text in sorted(new))][-_LINES:]
        return self._lines


def _short(values: Any, digits: int = 4) -> list[float]:
    return [round(float(v), digits) for v in np.asarray(values).ravel()]
