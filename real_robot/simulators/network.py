"""A network between two processes of this machine: slow, cut and mended at will."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit


class Network:
    """Passes on what comes to ``address``, in a thread of its own.

    Args:
        target: "ws://host:port", or any other address of a TCP server.
        delay: s that everything takes, each way.

    Attributes:
        address: to connect to instead of ``target``.
    """

    def __init__(self, target: str, delay: float = 0.0):
        parts = urlsplit(target)
        self._host, self._port, self._delay = parts.hostname, parts.port, delay
        self._loop, self._lines = asyncio.new_event_loop(), set[asyncio.StreamWriter]()
        self._up = True
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = self._do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.address = f"{parts.scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def _do(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        self._lines |= {writer, there_writer}
        await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction; the sending waits for each piece's time, the receiving does not."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while (item := await under_way.get())[1]:
                await asyncio.sleep(max(0.0, item[0] - time.monotonic()))
                writer.write(item[1])
                await writer.drain()
            writer.close()

        async def take() -> None:
            data = b"begin"
            while data:
                try:
                    data = await reader.read(1 << 16)
                except OSError:
                    data = b""
                under_way.put_nowait((time.monotonic() + self._delay, data))

        with suppress(OSError):
            await asyncio.gather(take(), deliver())
        self._lines.discard(writer)

    def cut(self) -> None:
        """Ends every connection, and lets none begin."""

        async def do() -> None:
            self._up = False
            for line in self._lines:
                line.transport.abort()
            self._lines.clear()

        self._do(do())

    def mend(self) -> None:
        """Lets connections begin again."""
        self._up = True

    def close(self) -> None:
        """For good."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
