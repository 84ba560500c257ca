"""The page's server: its files over HTTP, everything else over one websocket, in a thread of the teleop process.

The first page to connect leads the robot; others look on and may press E-STOP, STOP and DISABLE. When the leading
page is lost (closed, or silent for ``lost_after``), its clutch and ENABLE are released in that instant.

    page -> server   {"type": "beat", "t"}                      5 a second
                     {"type": "hand", "grip", "p", "q", "gripper"}    while something is held; robot's frame, m
                     {"type": "press", "button"}
    server -> page   {"type": "hello", ...}  once, and when the page's role changes
                     {"type": "scene", ...}  20 a second
                     bytes: number of the camera, then a JPEG
"""

from __future__ import annotations

import asyncio
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from data.errors import ConfigError
from real_robot.core.kinematics import Pose
from real_robot.core.types import SECOND, Button, DeviceError
from real_robot.teleop.browser.view import View
from real_robot.teleop.cartesian import pose

PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ANYBODY = Button.ESTOP | Button.STOP | Button.DISABLE
SCENE_HZ, PICTURE_HZ = 20.0, 4.0


@dataclass(frozen=True)
class PageHand:
    """What the leading page's hand does: held or not, where, and the gripper's opening if it says so."""

    t: int
    grip: float
    pose: Pose
    gripper: float | None


class PageServer:
    """Serves the page.

    Args:
        view: what is shown; touched by the server's thread alone.
        arms: () -> (measured joints, target joints) or None before the robot is heard from.
        greeting: what the page must know: {"joints", "gripper", "enable"}.
        host, port: where it listens; port 0 takes a free one.
        token: the path that the page is under; who does not know it gets nothing.
        tls: for HTTPS.
        lost_after: s.
    """

    def __init__(
        self,
        view: View,
        arms: Callable[[], Any],
        greeting: dict[str, Any],
        *,
        host: str,
        port: int,
        token: str,
        tls: ssl.SSLContext | None,
        lost_after: float,
    ):
        self.view, self.arms, self.greeting = view, arms, greeting
        self.host, self.port, self.token, self.tls, self.lost_after = host, port, token, tls, lost_after
        self.hand: PageHand | None = None
        self._buttons = Button.NONE
        self._lock = threading.Lock()
        self._enabled = False
        self._pages: list[Any] = []  # connections; the first one leads
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None

    @property
    def url(self) -> str:
        """Of the page, token and all."""
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}/{self.token}/"

    @property
    def n_pages(self) -> int:
        """Pages that are connected."""
        return len(self._pages)

    def start(self) -> None:
        """Listens. Raises DeviceError where it cannot."""
        try:
            import websockets  # noqa: F401
        except ImportError:
            raise ConfigError("teleop.device=browser needs websockets: pip install 'deft[robots]'.") from None
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="teleop-page", daemon=True)
        self._thread.start()
        ready.wait(10)
        if self._problem is not None:
            raise DeviceError(
                f"teleoperation page: cannot listen on {self.host}:{self.port} ({self._problem}): give another"
                " teleop.host or teleop.port."
            )

    def close(self) -> None:
        """Ends all connections."""
        if self._loop is not None and self._end is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(5)
            self._loop, self._enabled = None, False

    def take_buttons(self) -> Button:
        """Pressed since the last call."""
        with self._lock:
            pressed, self._buttons = self._buttons, Button.NONE
        return pressed

    def _press(self, button: Button) -> None:
        with self._lock:
            if button in (Button.ENABLE, Button.DISABLE):  # the later one counts
                self._buttons &= ~(Button.ENABLE | Button.DISABLE)
                self._enabled = button is Button.ENABLE
            self._buttons |= button

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        except Exception as error:
            self._problem = error
        finally:
            self.hand = None
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        from websockets.asyncio.server import serve

        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        listening = serve(
            self._page, self.host, self.port, ssl=self.tls, process_request=self._file, compression=None,
            max_size=1 << 16, ping_interval=None, close_timeout=1,
        )  # fmt: skip
        async with listening as server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._end.wait()

    def _file(self, connection: Any, request: Any) -> Any:
        """The answer to a plain HTTP request; None lets a websocket through."""
        from websockets.datastructures import Headers
        from websockets.http11 import Response

        token, _, name = request.path.split("?")[0].lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            return connection.respond(HTTPStatus.FORBIDDEN, "Open the address with the token in it.\n")
        if name == "ws":
            return None
        path = PAGE / (name or "index.html")
        if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
            return connection.respond(HTTPStatus.NOT_FOUND, "No such file.\n")
        body = path.read_bytes()
        headers = Headers([("Content-Type", f"{_TYPES[path.suffix]}; charset=utf-8"), ("Cache-Control", "no-store"),
                           ("Content-Length", str(len(body))), ("Connection", "close")])  # fmt: skip
        return Response(200, "OK", headers, body)

    async def _page(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        self._pages.append(socket)
        tasks = [asyncio.create_task(self._show(socket)), asyncio.create_task(self._pictures(socket))]
        try:
            await self._greet(socket)
            while True:
                async with asyncio.timeout(self.lost_after):
                    message = await socket.recv()
                self._hear(socket, message)
        except (ConnectionClosed, TimeoutError):
            pass
        finally:
            for task in tasks:
                task.cancel()
            led = self._pages[0] is socket
            self._pages.remove(socket)
            if led:
                self._lose()
                if self._pages:
                    await self._greet(self._pages[0])

    def _lose(self) -> None:
        self.hand = None
        if self._enabled:
            self._press(Button.DISABLE)

    def _hear(self, socket: Any, message: str | bytes) -> None:
        leads = self._pages[0] is socket
        try:
            said = json.loads(message)
            kind = said["type"]
            if kind == "beat":
                socket.beat = float(said["t"])
            elif kind == "press":
                button = Button[said["button"]]
                if leads or button & _ANYBODY:
                    self._press(button)
            elif kind == "hand" and leads:
                gripper = said.get("gripper")
                self.hand = PageHand(
                    time.monotonic_ns(), float(said["grip"]), pose(said["p"], said["q"]),
                    None if gripper is None else float(gripper),
                )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            if leads:
                self.hand = None  # a page that talks nonsense leads nothing

    def lost(self, now: int) -> bool:
        """Whether the hand was not heard from for too long."""
        hand = self.hand
        return hand is None or now - hand.t > self.lost_after * SECOND

    async def _greet(self, socket: Any) -> None:
        hello = {"type": "hello", **self.greeting, "geoms": self.view.geoms(), "lead": self._pages[0] is socket}
        await self._send(socket, json.dumps(hello))

    async def _send(self, socket: Any, message: str | bytes) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await socket.send(message)
        except ConnectionClosed:
            await asyncio.sleep(1)  # the receiver ends this task

    async def _show(self, socket: Any) -> None:
        while True:
            scene: dict[str, Any] = {"type": "scene", "beat": getattr(socket, "beat", None)}
            if (arms := self.arms()) is not None:
                q, target = arms
                scene |= {"q": [round(float(v), 4) for v in q], "arm": self.view.arm(q), "goal": self.view.arm(target)}
                scene["opening"] = float(target[-1]) if self.greeting["gripper"] else None
            scene |= {"enabled": self._enabled, "status": self.view.status(), "cameras": self.view.cameras()}
            await self._send(socket, json.dumps(scene))
            await asyncio.sleep(1 / SCENE_HZ)

    async def _pictures(self, socket: Any) -> None:
        while True:
            for i, name in enumerate(self.view.cameras()):
                if (jpeg := self.view.picture(name)) is not None:
                    await self._send(socket, bytes([i]) + jpeg)
            await asyncio.sleep(1 / PICTURE_HZ)
