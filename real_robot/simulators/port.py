"""A simulator's back door: what no robot's protocol says (put the cube elsewhere, pull the cable), as datagrams."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from data.errors import DeftError

NAME = ".world"  # in the session's folder; hidden, as it is no ring


class Port:
    """Receives; several processes may send.

    Args:
        folder: of the session; a socket that a dead simulator left there is replaced.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / NAME
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def messages(self) -> list[dict[str, Any]]:
        """Those that have come since the last call; what is not a JSON object is dropped."""
        found = []
        while True:
            try:
                message = json.loads(self._socket.recv(4096))
            except BlockingIOError:
                return found
            except ValueError:
                continue
            if isinstance(message, dict):
                found.append(message)

    def close(self) -> None:
        """Nobody listens any more."""
        self._socket.close()


def ask(folder: str | Path, **message: Any) -> None:
    """Sends one message to the simulator of a session, ``ask(folder, reset=17)``.

    Raises:
        DeftError: no simulator listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(json.dumps(message).encode(), str(Path(folder) / NAME))
        except OSError as e:
            raise DeftError(f"No simulator listens in {folder} ({e}): has it been started with this session?") from None
