"""A policy on another machine: ``python -m real_robot.serve`` there, or any server of openpi's protocol.

    policy = RemotePolicy("ws://gpu-machine:8000", timeout_s=0.5)
    policy.infer({"state": state})["actions"]

As a base that fine-tuning improves: ``train.py algo=residual base=real_robot.remote.client:make`` with the server's
address in DEFT_POLICY_SERVER (and its key in DEFT_API_KEY). Servers that do not tell their contract, as openpi's own,
want other names for observations: give ``train.py`` a function of your own that renames them and asks a RemotePolicy.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from data.errors import ConfigError, ContractError, DataError
from data.spec import TaskSpec
from real_robot.core.types import DeviceError, PolicyClient
from real_robot.remote.codec import pack, unpack
from real_robot.remote.keys import PROTOCOL, RESERVED, RESET, task_of

try:
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
    from websockets.protocol import State
    from websockets.sync.client import ClientConnection, connect
except ImportError as e:
    raise ConfigError(f"The policy client needs websockets ({e}): pip install 'deft[robots]'.") from e

ADDRESS, API_KEY = "DEFT_POLICY_SERVER", "DEFT_API_KEY"
MAX_ANSWER = 64 << 20  # bytes
BASE_TIMEOUT = 60.0  # s; a simulated robot waits


class Remote:
    """Asks one server, one question at a time; connects anew after every failure, on the next question.

    Args:
        address: "ws://host:port", or "wss://..." behind a proxy that adds TLS.
        api_key: what the server wants to know, if anything.
        timeout_s: for an answer, all in all: a server that is frozen, or out of reach, costs no more.
        connect_timeout_s: for the first connection, a server that warms up among its reasons to wait.

    Attributes:
        metadata: what the server said first.
        role, command: what it is called in messages, and what starts it.

    Raises:
        DeviceError: nobody answers there.
        ConfigError: it does not let this client in.
    """

    role, command = "policy server", "python -m real_robot.serve"

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 1.0,
        connect_timeout_s: float = 10.0,
    ):
        self.address, self.timeout_s, self._api_key = address, timeout_s, api_key
        self._connection: ClientConnection | None = None
        self.metadata: Mapping[str, Any] = {}
        deadline = time.monotonic() + connect_timeout_s
        while True:
            try:
                self._connection, self.metadata = self._connect(deadline)
                break
            except DeviceError:
                if time.monotonic() + 0.2 > deadline:
                    raise
            time.sleep(0.2)
        version = self.metadata.get("deft_protocol", PROTOCOL)
        if version != PROTOCOL:
            self.close()
            raise ConfigError(
                f"The {self.role} {address} speaks version {version} of Deft's protocol, this client {PROTOCOL}: "
                "bring both to the same version."
            )

    def ask(self, request: Mapping[str, Any], check: Callable[[dict], None] = lambda answer: None) -> dict[str, Any]:
        """The answer to a request, a map; its arrays may be written to.

        Args:
            request: see ``real_robot.remote.codec.pack``.
            check: raises DataError where the answer is not one.

        Raises:
            DeviceError: the server does not answer in time, is gone, or answers with an error; the text says which.
        """
        deadline = time.monotonic() + self.timeout_s
        message = pack(request)
        try:
            connection = self._connection
            if connection is None or connection.state is not State.OPEN:
                connection = self._reconnect(deadline)
            _limit_sending(connection, deadline)
            connection.send(message)
            answer = unpack(self._receive(connection, deadline))
            if not isinstance(answer, dict):
                raise DataError(f"a {type(answer).__name__}")
            answer = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in answer.items()}
            check(answer)
        except ConnectionClosed as e:
            self._drop()
            raise DeviceError(f"The {self.role} {self.address} has ended the connection: {e}.") from e
        except DataError as e:
            self._drop()
            raise DeviceError(f"The {self.role} {self.address} answers with something else than expected: {e}") from e
        except BaseException:  # its answer may still come, and must not be taken for the next one's
            self._drop()
            raise
        return answer

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reconnect(self, deadline: float) -> ClientConnection:
        self._drop()
        connection, found = self._connect(deadline)
        if found.get("checkpoint") != self.metadata.get("checkpoint"):
            _cut(connection)
            raise DeviceError(
                f"The {self.role} {self.address} now serves another checkpoint ({found.get('checkpoint')}) than "
                f"before ({self.metadata.get('checkpoint')}): start anew if that is meant."
            )
        self._connection = connection
        return connection

    def _connect(self, deadline: float) -> tuple[ClientConnection, Mapping[str, Any]]:
        headers = {"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None
        left = max(deadline - time.monotonic(), 0.01)
        try:
            connection = connect(
                self.address,
                compression=None,
                max_size=MAX_ANSWER,
                additional_headers=headers,
                open_timeout=left,
                close_timeout=1,
                proxy=None,
            )
        except InvalidURI as e:
            raise ConfigError(f"'{self.address}' is not the address of a {self.role}, as ws://host:8000 is.") from e
        except InvalidStatus as e:
            said = e.response.body.decode(errors="replace").strip() if e.response.body else ""
            if e.response.status_code in (401, 403):
                raise ConfigError(f"The {self.role} {self.address} does not let us in: {said}") from e
            raise DeviceError(f"The {self.role} {self.address}: {e}. {said}".rstrip()) from e
        except (OSError, InvalidHandshake, ConnectionClosed, EOFError) as e:  # TimeoutError is an OSError
            reason = "it does not answer" if isinstance(e, TimeoutError) else str(e)
            raise DeviceError(
                f"No {self.role} at {self.address} ({reason}). Is `{self.command}` running there, with "
                "host=0.0.0.0 if it is another machine, and the port open?"
            ) from e
        try:
            found = unpack(self._receive(connection, deadline))
        except ConnectionClosed as e:
            _cut(connection)
            raise DeviceError(f"The {self.role} {self.address} has ended the connection at once: {e}.") from e
        except BaseException:
            _cut(connection)
            raise
        return connection, found if isinstance(found, dict) else {}

    def _receive(self, connection: ClientConnection, deadline: float) -> bytes:
        try:
            answer = connection.recv(timeout=max(deadline - time.monotonic(), 0))
        except TimeoutError as e:
            raise DeviceError(
                f"The {self.role} {self.address} did not answer within {self.timeout_s:g} s; it is overloaded or "
                "frozen, or the network is."
            ) from e
        if isinstance(answer, str):
            raise DeviceError(f"The {self.role} {self.address} refuses: {answer.strip()}")
        return answer

    def _drop(self) -> None:
        if self._connection is not None:
            _cut(self._connection)
            self._connection = None


class RemotePolicy(Remote, PolicyClient):
    """A policy that another process serves."""

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """One chunk.

        Args:
            obs: as the metadata describe it; ``real_robot.remote.keys`` has what else it may hold.

        Returns:
            {"actions": (Ta, Da), "server_timing": {...}, ...}; arrays may be written to.

        Raises:
            DeviceError: see ``ask``.
        """
        return self.ask(self._request(obs), lambda answer: _check_actions(answer.get("actions")))

    def _request(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        options = self.metadata.get("options", ())
        unknown = [k for k in obs if k.startswith(RESERVED) and k not in options]
        if [k for k in unknown if k != RESET]:
            raise ContractError(
                f"The policy server {self.address} knows nothing of {', '.join(unknown)}; serve the policy with "
                "execution.name=rtc, prefix or rti."
            )
        return {k: v for k, v in obs.items() if k not in unknown}  # others remember nothing that could be reset


def _cut(connection: ClientConnection) -> None:
    """Ends it without a word: who does not answer would not answer that either."""
    with suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


def _limit_sending(connection: ClientConnection, deadline: float) -> None:
    """A full pipe to a server that reads no more ends as a lost connection, by the kernel's own time limit."""
    left = max(deadline - time.monotonic(), 0.001)
    limit = struct.pack("ll", int(left), int(left % 1 * 1e6))
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _check_actions(actions: Any) -> None:
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not len(actions) or actions.dtype.kind != "f":
        what = f"{actions.shape} {actions.dtype}" if isinstance(actions, np.ndarray) else f"a {type(actions).__name__}"
        raise DataError(f'"actions" are {what}; expected floats of shape (n, Da).')


def make(spec: TaskSpec) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A base policy (``policies.black_box``): asks the server at $DEFT_POLICY_SERVER.

    Servers that tell their contract get whole windows (To, *shape), and must fit ``spec``; others the newest frames.

    Raises:
        ConfigError: the variable is not set.
        ContractError: the server's policy is for other observations or actions.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        raise ConfigError(f"base=real_robot.remote.client:make asks a server: set {ADDRESS}=ws://host:port.")
    policy = RemotePolicy(address, api_key=os.environ.get(API_KEY), timeout_s=BASE_TIMEOUT)
    told = "deft_protocol" in policy.metadata
    if told:
        check_metadata(policy.metadata, spec, f"The policy server {address}")

    def act(obs: dict[str, np.ndarray]) -> np.ndarray:
        request: dict[str, Any] = dict(obs) if told else {key: x[-1] for key, x in obs.items()}
        request[RESET] = True  # several environments take turns: nothing may be kept from one for the other
        return policy.infer(request)["actions"]

    return act


def check_metadata(metadata: Mapping[str, Any], spec: TaskSpec, where: str) -> None:
    """Raises ContractError where a policy with these ``metadata`` does not fit the task, naming every difference."""
    needs = task_of(metadata)
    differences = needs.differences(spec)
    if differences:
        raise ContractError(f"{where} has a policy for {needs.name}: {'; '.join(differences)}.")
