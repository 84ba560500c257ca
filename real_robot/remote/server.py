"""A policy for robots elsewhere: openpi's websocket protocol, so that its unmodified client can ask.

    client                                   server
    connects (Authorization: Api-Key K) ->   <- metadata                      one frame, msgpack (codec.py)
    {key: array, ...}                   ->   <- {"actions": (Ta, Da), "server_timing": {...}, ...}
    anything that does not fit          ->   <- a text frame that says why, then close 1011
    GET /healthz                        ->   <- 200 OK

One worker thread computes, in the order in which requests came; as a client has one request under way at a time, all
have their turns alike. The event loop only moves bytes: it answers pings while the worker is busy for seconds.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Protocol

from data.errors import ConfigError, DataError, DeftError
from real_robot.remote.codec import pack, unpack

try:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.http11 import Request, Response
except ImportError as e:
    raise ConfigError(f"The policy server needs websockets ({e}): pip install 'deft[robots]'.") from e

MAX_MESSAGE = 32 << 20  # bytes
INTERNAL_ERROR = 1011  # of RFC 6455

_quiet = logging.getLogger("real_robot.remote.server")  # websockets tells every failed handshake with a traceback
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class Served(Protocol):
    """What a server asks: a policy, and what it remembers of each client."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The contract, sent to every client."""
        ...

    def episode(self) -> Any:
        """What is remembered of a client; nothing yet."""
        ...

    def infer(self, request: Mapping[str, Any], episode: Any) -> dict[str, Any]:
        """The answer, "actions" in it. Raises DeftError where the request does not fit."""
        ...


@dataclass
class Counts:
    """Of a server since it was started."""

    clients: int = 0
    answers: int = 0
    refusals: int = 0


class PolicyServer:
    """Serves until it is told to stop.

    Args:
        policy: what answers; called from one thread.
        host: name or address of the interface to listen on; "0.0.0.0" is all of them.
        port: 0 takes a free one.
        api_key: what clients must know; None asks for none.
        max_message: bytes of a request.
        max_clients: that may be connected at a time.
        say: gets lines for people.
    """

    def __init__(
        self,
        policy: Served,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        max_message: int = MAX_MESSAGE,
        max_clients: int = 32,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.policy, self.host, self.port, self.max_clients = policy, host, port, max_clients
        self.api_key, self.max_message, self.say = api_key, max_message, say
        self.counts = Counts()
        self._connected: set[ServerConnection] = set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def run(self, stop: asyncio.Event, listening: Callable[[int], None] = lambda port: None) -> Counts:
        """Until ``stop`` is set.

        Args:
            stop: ends it; clients are told that the server goes away.
            listening: called with the port.

        Raises:
            ConfigError: the port cannot be had.
        """
        try:
            server = await serve(
                self._client,
                self.host,
                self.port,
                compression=None,  # as the protocol has it
                max_size=self.max_message,
                max_queue=1,  # a client waits for its answer
                process_request=self._admit,
                origins=[None],  # no web page that somebody happens to have open
                logger=_quiet,
            )
        except OSError as e:
            raise ConfigError(
                f"Cannot listen on {self.host}:{self.port}: {e.strerror}; is another server there? Try port=0."
            ) from e
        try:
            listening(next(iter(server.sockets)).getsockname()[1])
            await stop.wait()
        finally:
            server.close()
            self._worker.shutdown(wait=False, cancel_futures=True)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(server.wait_closed(), 2)
        return self.counts

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = request.headers.get_all("Authorization")
        expected = f"Api-Key {self.api_key}".encode()
        if self.api_key is not None and not any(compare_digest(g.encode(), expected) for g in given):
            self.counts.refusals += 1
            self.say(f"refused {_name(connection)}: {'wrong' if given else 'no'} API key")
            reason = "This policy server asks for an API key: send the header 'Authorization: Api-Key ...'.\n"
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, reason)
        if len(self._connected) >= self.max_clients:
            self.say(f"refused {_name(connection)}: {self.max_clients} clients are connected")
            reason = f"This policy server has its {self.max_clients} clients already.\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, reason)
        return None

    async def _client(self, connection: ServerConnection) -> None:
        self._connected.add(connection)
        self.counts.clients += 1
        self.say(f"{_name(connection)} connected")
        try:
            await connection.send(pack(dict(self.policy.metadata)))
            await self._answer(connection)
        except ConnectionClosed:
            pass
        except DeftError as e:
            await self._refuse(connection, str(e))
        except Exception as e:  # of the policy: this client is told, the others are served on
            await self._refuse(connection, f"{type(e).__name__} in the policy: {e}")
        finally:
            self._connected.discard(connection)
            self.say(f"{_name(connection)} gone")

    async def _answer(self, connection: ServerConnection) -> None:
        loop, episode, total_ms = asyncio.get_running_loop(), self.policy.episode(), None
        while True:
            message = await connection.recv()
            came = time.perf_counter()
            answer = await loop.run_in_executor(self._worker, self._turn, connection, message, episode, came, total_ms)
            await connection.send(answer)
            total_ms = 1e3 * (time.perf_counter() - came)
            self.counts.answers += 1

    def _turn(
        self, connection: ServerConnection, message: str | bytes, episode: Any, came: float, total_ms: float | None
    ) -> bytes:
        """Bytes to bytes, in the worker; ``came`` is when the request did, ``total_ms`` what the one before took."""
        if connection.close_code is not None:  # gone while it waited: its turn is the next one's
            return b""
        if isinstance(message, str):
            raise DataError("The message is malformed: a text frame; observations come as binary frames of msgpack.")
        request = unpack(message)
        if not isinstance(request, dict):
            raise DataError(f"The message is malformed: a {type(request).__name__}; expected a map of observations.")
        begun = time.perf_counter()
        answer = self.policy.infer(request, episode)
        timing = {"infer_ms": 1e3 * (time.perf_counter() - begun), "queue_ms": 1e3 * (begun - came)}
        if total_ms is not None:
            timing["prev_total_ms"] = total_ms
        return pack({**answer, "server_timing": timing})

    async def _refuse(self, connection: ServerConnection, reason: str) -> None:
        self.counts.refusals += 1
        self.say(f"{_name(connection)}: {reason}")
        with suppress(ConnectionClosed):
            await connection.send(reason)
            await connection.close(INTERNAL_ERROR, "the frame before says why")


def _name(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
