"""The wire: a server that nobody can upset, a client that never waits for long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

websockets = pytest.importorskip("websockets", reason="pip install 'deft[robots]'")

# ruff: noqa: E402
from websockets.sync.client import connect

from data.errors import ConfigError, ContractError
from real_robot.core.types import DeviceError
from real_robot.remote.client import RemotePolicy
from real_robot.remote.codec import pack, unpack
from tests.real_robot.trivial_server import Trivial, serving

REPO = Path(__file__).parents[2]
STATE = np.arange(7.0)


def test_round_trip():
    with serving(Trivial()) as address:
        policy = RemotePolicy(address, timeout_s=10)
        np.testing.assert_array_equal(policy.metadata["reset_pose"], np.zeros(7))
        for n in (1, 2):
            answer = policy.infer({"state": STATE, "image": np.zeros((224, 224, 3), np.uint8)})
            np.testing.assert_array_equal(answer["actions"], np.tile(STATE, (8, 1)))
            answer["actions"][0] = 0  # ours to change
            assert answer["asked"] == n
        assert answer["server_timing"].keys() == {"infer_ms", "queue_ms", "prev_total_ms"}
        policy.close()


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ("text", "a text frame"),
        (b"\xc1", "not msgpack"),
        (pack([1, 2]), "a list"),
        (pack({"state": STATE}).replace(b"<f8", b"|O8"), "dtype"),
        (pack({"state": STATE, "fail": True}), "ValueError in the policy: failed on purpose"),
        (pack({}), "KeyError"),
    ],
)
def test_errors_are_a_text_frame_and_1011(frame, why):
    with serving(Trivial()) as address, connect(address, compression=None) as bystander, connect(address) as ws:
        bystander.recv(), ws.recv()
        ws.send(frame)
        said = ws.recv(timeout=10)
        assert isinstance(said, str)
        assert why in said
        assert "Traceback" not in said
        with pytest.raises(websockets.ConnectionClosedError):
            ws.recv(timeout=10)
        assert ws.close_code == 1011
        bystander.send(pack({"state": STATE}))  # served on
        assert unpack(bystander.recv(timeout=10))["asked"] == 1


def test_a_message_that_is_too_large_is_not_read():
    with serving(Trivial(), max_message=10_000) as address:
        policy = RemotePolicy(address, timeout_s=10)
        with pytest.raises(DeviceError, match=r"1009.*limit"):
            policy.infer({"state": np.zeros(2000)})
        assert policy.infer({"state": STATE})["asked"] == 1


def test_only_those_with_the_key_come_in():
    with serving(Trivial(), api_key="s3cret") as address:
        for key in (None, "wrong", "s3cre"):
            with pytest.raises(ConfigError, match="does not let us in"):
                RemotePolicy(address, api_key=key)
        assert RemotePolicy(address, api_key="s3cret", timeout_s=10).infer({"state": STATE})["asked"] == 1
        assert urllib.request.urlopen(f"http{address[2:]}/healthz").read() == b"OK\n"


def test_web_pages_and_crowds_stay_outside():
    with serving(Trivial(), max_clients=1) as address:
        with pytest.raises(websockets.InvalidStatus, match="403"):
            connect(address, origin="http://evil.example")
        policy = RemotePolicy(address, timeout_s=10)
        with pytest.raises(DeviceError, match="503"):
            RemotePolicy(address, connect_timeout_s=0.3)
        policy.close()
        assert RemotePolicy(address, timeout_s=10).infer({"state": STATE})["asked"] == 1


def test_pings_and_health_are_answered_while_the_policy_thinks():
    with serving(Trivial()) as address, connect(address) as ws, connect(address) as other:
        ws.recv(), other.recv()
        ws.send(pack({"state": STATE, "sleep": 2.0}))
        for pinged in (ws, other):
            assert pinged.ping().wait(1.0)
        assert urllib.request.urlopen(f"http{address[2:]}/healthz", timeout=1.0).read() == b"OK\n"
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0)
        assert unpack(ws.recv(timeout=20))["server_timing"]["infer_ms"] > 1900


def test_clients_take_turns():
    counts, stop = [0] * 6, threading.Event()

    def ask(i: int, address: str) -> None:
        policy = RemotePolicy(address, timeout_s=30)
        while not stop.is_set():
            policy.infer({"state": STATE, "sleep": 0.002})
            counts[i] += 1
        policy.close()

    with serving(Trivial()) as address:
        threads = [threading.Thread(target=ask, args=(i, address)) for i in range(len(counts))]
        for thread in threads:
            thread.start()
        while min(counts) < 2:  # all are there
            time.sleep(0.01)
        counts[:] = [0] * len(counts)
        time.sleep(1.0)
        found = list(counts)
        stop.set()
        for thread in threads:
            thread.join()
    assert min(found) > 0.7 * max(found) > 5, found


def test_who_has_left_costs_no_turn():
    policy = Trivial()
    with serving(policy) as address, connect(address) as slow, connect(address) as gone, connect(address) as last:
        for ws in (slow, gone, last):
            ws.recv()
        slow.send(pack({"state": STATE, "sleep": 0.5}))
        time.sleep(0.1)
        gone.send(pack({"state": STATE, "sleep": 60.0}))
        time.sleep(0.1)
        gone.socket.shutdown(socket.SHUT_RDWR)
        last.send(pack({"state": STATE}))
        assert unpack(last.recv(timeout=20))["asked"] == 1
    assert policy.asked == 2


# ---------------------------------------------------------------------- client, against a process


@pytest.fixture
def process():
    started: list[subprocess.Popen] = []

    def start(port: int = 0) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-m", "tests.real_robot.trivial_server", "--port", str(port)]
        started.append(subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        return started[-1], started[-1].stdout.readline().strip()

    yield start
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def test_a_frozen_server_costs_the_time_limit_and_no_more(process):
    server, address = process()
    policy = RemotePolicy(address, timeout_s=0.5)
    os.kill(server.pid, signal.SIGSTOP)
    for why in (r"within 0\.5 s", "does not answer"):
        begun = time.monotonic()
        with pytest.raises(DeviceError, match=why):
            policy.infer({"state": STATE})
        assert time.monotonic() - begun < 5  # openpi's client: 50
    policy.timeout_s = 20
    os.kill(server.pid, signal.SIGCONT)
    assert policy.infer({"state": STATE})["asked"] == 1  # by a new connection


def test_a_request_larger_than_the_pipe_to_a_frozen_server(process):
    server, address = process()
    policy = RemotePolicy(address, timeout_s=0.5)
    os.kill(server.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(DeviceError):
        policy.infer({"state": STATE, "images": np.zeros(30_000_000, np.uint8)})
    assert time.monotonic() - begun < 5


def test_a_late_answer_is_not_the_next_ones(process):
    _, address = process()
    policy = RemotePolicy(address, timeout_s=0.5)
    with pytest.raises(DeviceError, match="within"):
        policy.infer({"state": STATE, "sleep": 1.0})
    policy.timeout_s = 20
    np.testing.assert_array_equal(policy.infer({"state": STATE + 1})["actions"][0], STATE + 1)


def test_a_killed_server_is_found_again(process):
    server, address = process()
    policy = RemotePolicy(address, timeout_s=20)
    policy.infer({"state": STATE})
    server.kill()
    server.wait()
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"ended the connection|No policy server"):
            policy.infer({"state": STATE})
    process(int(address.rsplit(":", 1)[1]))
    assert policy.infer({"state": STATE})["asked"] == 1


def test_another_policy_behind_the_same_address_is_refused():
    trivial = Trivial()
    with serving(trivial) as address:
        policy = RemotePolicy(address, timeout_s=10)
        trivial.metadata = {"checkpoint": "another"}
        with pytest.raises(DeviceError):
            policy.infer({"state": STATE, "fail": True})
        with pytest.raises(DeviceError, match="another checkpoint"):
            policy.infer({"state": STATE})


class Odd(Trivial):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def infer(self, request, episode):
        return self.answer


@pytest.mark.parametrize("actions", [{}, {"actions": [1.0]}, {"actions": STATE}, {"actions": np.zeros((0, 2))},
                                     {"actions": np.zeros((2, 2), int)}], ids=str)  # fmt: skip
def test_answers_without_actions_are_refused(actions):
    with serving(Odd(actions)) as address, pytest.raises(DeviceError, match=r'"actions" are'):
        RemotePolicy(address, timeout_s=10).infer({"state": STATE})


def test_options_go_only_where_they_are_known():
    with serving(Trivial()) as address:
        policy = RemotePolicy(address, timeout_s=10)
        with pytest.raises(ContractError, match=r"deft/delay.*execution\.name=rtc"):
            policy.infer({"state": STATE, "deft/delay": 2})
        assert policy.infer({"state": STATE, "deft/reset": True})["asked"] == 1


def test_addresses_that_are_none():
    with pytest.raises(ConfigError, match="ws://host:8000"):
        RemotePolicy("http://127.0.0.1:8000")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with pytest.raises(DeviceError, match=r"No policy server .*real_robot\.serve"):
            RemotePolicy(f"ws://127.0.0.1:{s.getsockname()[1]}", connect_timeout_s=0.3)
