"""The policy process: what it asks for and when, on a clock that a test turns; and with a policy behind a server."""

from __future__ import annotations

import numpy as np
import pytest

from data.errors import ConfigError, ContractError
from data.spec import FieldSpec, TaskSpec
from real_robot.agent.observe import NotReady, Observer
from real_robot.agent.planner import CONTINUING, MODES, Delays, Planner
from real_robot.agent.process import Agent, build_client
from real_robot.control.machine import Machine
from real_robot.core.actions import ActionSpace
from real_robot.core.clock import VirtualClock
from real_robot.core.streams import Session, command_dtype, event, state_dtype
from real_robot.core.types import SECOND, DeviceError
from real_robot.remote.keys import CHUNK, DELAY, PREV_CHUNK, RESET, task_of
from real_robot.remote.serving import LocalPolicy, load_served
from tests.real_robot.trivial_server import serving

N, HZ = 3, 10.0
RULE = {"state_key": "state", "velocity": False, "max_image_age": 0.1, "max_gap": 0.1, "crop": None, "size": None}


SPACE = ActionSpace("absolute", HZ, [1.0] * N, [-9e9] * N, [9e9] * N, False)
DELTA = ActionSpace("delta", HZ, [1.0, 2.0, 1.0], [-2.0, -2.0, 0.0], [2.0, 2.0, 1.0], True)


class Counting:
    """Says what it was asked, and how often: action i of answer k is 100 k + i."""

    def __init__(self, execution: str = "sync", length: int = 8):
        fields = {"state": {"shape": [N], "dtype": "float32", "kind": "state"}}
        self.metadata = {
            "task": "real/test",
            "observation": fields,
            "action": {"shape": [N], "low": -1.0, "high": 1.0},
            "control_hz": HZ,
            "rule": RULE,
            "actions": SPACE.to_dict(),
            "n_obs_steps": 2,
            "n_action_steps": 4,
            "execution": {"name": execution},
        }
        self.length, self.asked, self.takes, self.clock = length, [], 0.0, None
        self.fails, self.answer = False, None

    def infer(self, obs):
        self.asked.append(dict(obs))
        if self.fails:
            raise DeviceError("the server is gone")
        if self.clock is not None:
            self.clock.advance(self.takes)
        if self.answer is not None:
            return {"actions": self.answer}
        chunk = 100.0 * len(self.asked) + np.repeat(np.arange(float(self.length))[:, None], N, 1)
        return {"actions": chunk[:4], CHUNK: chunk}

    def close(self):
        pass


class Bench:
    """An agent with the rings that it looks at; the robot's joints all stand at the time in seconds."""

    def __init__(self, mode="replace", *, takes=0.03, lead=1, every=None, inject=0.0, space=None):
        self.session, self.clock = Session(), VirtualClock(100 * SECOND)
        self.state = self.session.create("state", state_dtype(N), 256)
        self.command = self.session.create("command", command_dtype(N), 256)
        self.client = Counting(mode if mode in CONTINUING else "sync")
        self.client.clock, self.client.takes = self.clock, takes
        observer = Observer(self.session, task_of(self.client.metadata), 2)
        self.enable()
        self.agent = Agent(
            self.session, Planner(self.client, mode), observer,
            space=space or SPACE, mode=mode, lead=lead, every=every, inject=inject, clock=self.clock,
        )  # fmt: skip

    def enable(self, state=Machine.RUN, source=1, sent=(0.0, 0.0, 0.0)):
        record = np.zeros((), self.command.dtype)
        record["sent"] = sent
        record["state"], record["source"] = int(state), source
        self.command.put(record, self.clock.now())

    def look(self):
        """The robot has spoken at 100 Hz up to a second from now."""
        for k in range(-30, 100):
            t = self.clock.now() + k * SECOND // 100
            record = np.zeros((), self.state.dtype)
            record["q"] = t / SECOND
            self.state.put(record, t)

    def step(self):
        """Until it has decided; whether a chunk was written."""
        for _ in range(30):
            self.look()
            if self.agent.step():
                return True
        return False

    def chunks(self):
        return [r.data for r in self.session.attach("chunk").since(0)[0]]

    def said(self):
        return [event(r)[1] for r in self.session.attach("event.policy").since(0)[0]]


@pytest.fixture
def bench(request):
    bench = Bench(**getattr(request, "param", {}))
    yield bench
    bench.session.close()


@pytest.mark.parametrize("bench", [dict(mode=m, every=4) for m in MODES if m != "sync"], indirect=True)
def test_chunks_lie_on_one_grid_and_begin_one_step_after_their_observation(bench):
    for _ in range(4):
        assert bench.step()
    found = bench.chunks()
    start = int(found[0]["t_obs"])
    for k, chunk in enumerate(found):
        assert int(chunk["t_obs"]) == start + k * 4 * SECOND // 10
        assert int(chunk["due"]) - int(chunk["t_obs"]) == SECOND // 10
        assert int(chunk["answered"]) == int(chunk["t_obs"]) + 30_000_000
        assert int(chunk["length"]) == 8
        np.testing.assert_array_equal(chunk["actions"][:8, 0], 100 * (k + 1) + np.arange(8))
        assert np.isnan(chunk["actions"][8:]).all()
    assert [int(c["id"]) for c in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("bench", [dict(mode="replace", takes=0.57)], indirect=True)
def test_a_slow_policy_asks_again_at_the_next_step_of_the_grid(bench):
    bench.step(), bench.step()
    first, second = (int(c["t_obs"]) for c in bench.chunks())
    assert second - first == 6 * SECOND // 10


@pytest.mark.parametrize("bench", [dict(mode="sync")], indirect=True)
def test_sync_waits_for_the_chunk_and_for_its_end(bench):
    bench.step(), bench.step()
    first, second = bench.chunks()
    assert int(first["length"]) == 4  # n_action_steps
    assert int(first["due"]) == int(first["answered"]) + SECOND // 10
    assert int(second["t_obs"]) == int(first["due"]) + 3 * SECOND // 10


@pytest.mark.parametrize("bench", [dict(mode="rtc")], indirect=True)
def test_rtc_hands_over_what_is_left_and_the_delay_that_it_expects(bench):
    bench.step(), bench.step()
    first, second = bench.client.asked
    assert first[RESET]
    assert PREV_CHUNK not in first
    assert RESET not in second
    assert second[DELAY] == 1  # 30 ms, in whole steps of 100 ms
    # asked so early that nothing is done later after its observation than n_action_steps
    np.testing.assert_array_equal(second[PREV_CHUNK][:, 0], 100 + np.arange(4 - 1, 8))


@pytest.mark.parametrize("bench", [dict(mode="rtc", inject=0.25)], indirect=True)
def test_an_injected_delay_is_measured(bench):
    bench.step(), bench.step()
    assert bench.client.asked[1][DELAY] == 3
    assert all(int(c["answered"]) - int(c["t_obs"]) == SECOND // 4 for c in bench.chunks())


@pytest.mark.parametrize("bench", [dict(mode="rtc")], indirect=True)
def test_a_hand_or_a_stop_begins_anew(bench):
    bench.step()
    bench.enable(source=2)  # a person leads
    bench.step()
    assert bench.client.asked[1][RESET]
    bench.enable()  # and lets go: what was proposed was not done, and the next is asked for at once
    let_go = bench.clock.now()
    bench.step()
    assert bench.client.asked[2][RESET]
    assert int(bench.chunks()[-1]["t_obs"]) - let_go < SECOND // 10
    bench.enable(state=Machine.READY)
    assert not bench.step()
    bench.enable()
    assert bench.step()
    assert bench.client.asked[3][RESET]


@pytest.mark.parametrize("bench", [dict(space=DELTA)], indirect=True)
def test_steps_are_taken_from_what_was_sent(bench):
    bench.client.answer = np.array([[0.5, -1.0, 1.0], [0.5, 9.0, -1.0], [1.0, 0.0, 0.0]])
    bench.enable(sent=[0.1, 0.2, 0.3])
    bench.step()
    chunk = bench.chunks()[0]
    assert int(chunk["due"]) == int(chunk["t_obs"])  # where it begins is known: 0.1 and 0.2 rad, 0.3 open
    expected = [[0.1, 0.2, 0.3], [0.15, 0.0, 1.0], [0.2, 0.2, 0.0], [0.3, 0.2, 0.5]]
    np.testing.assert_allclose(chunk["actions"][:4], expected, atol=1e-12)
    assert int(chunk["length"]) == 4


def test_a_policy_sees_the_joints_of_its_decision_times(bench):
    bench.step()
    window = bench.client.asked[0]["state"]
    assert window.dtype == np.float32
    t = int(bench.chunks()[0]["t_obs"]) / SECOND
    np.testing.assert_allclose(window, np.array([[t - 0.1] * N, [t] * N]), rtol=1e-6)


def test_it_waits_for_what_it_must_see_and_says_so(bench):
    assert not bench.agent.step()
    assert not bench.agent.step()
    assert bench.said() == ["the policy waits: 'state' has shown nothing yet"]
    assert bench.step()


def test_a_server_that_fails_is_asked_anew(bench):
    bench.step()
    bench.client.fails = True
    assert not bench.step()
    assert not bench.step()
    assert bench.said() == ["the server is gone"]
    bench.client.fails = False
    assert bench.step()
    assert bench.client.asked[-1][RESET]
    assert [int(c["id"]) for c in bench.chunks()] == [1, 2]


def test_a_policy_that_was_started_anew_goes_on_counting(bench):
    bench.step()
    planner, observer = bench.agent.planner, bench.agent.observer
    again = Agent(bench.session, planner, observer, space=SPACE, mode="replace", clock=bench.clock)
    bench.look()
    again.step()
    assert [int(c["id"]) for c in bench.chunks()] == [1, 2]


def test_modes_and_executions_must_fit():
    with pytest.raises(ConfigError, match=r"mode=rtc does not go with .* execution\.name=sync"):
        Planner(Counting("sync"), "rtc")
    with pytest.raises(ConfigError, match=r"execution\.name=rtc"):
        Planner(Counting("rtc"), "replace")


def test_a_policy_of_something_else_is_not_deployed():
    spec = TaskSpec(
        "metaworld/door", {"state": FieldSpec((7,), "float32", "state")}, FieldSpec((4,), "float32", "action")
    )
    session = Session()
    with pytest.raises(ContractError, match="not on recorded episodes"):
        Observer(session, spec, 2)
    session.close()


def test_delays_are_predicted_by_their_percentile():
    delays = Delays(0.1, first=0.15)
    assert delays.steps == 2
    for seconds in [0.05] * 90 + [0.31] * 10:
        delays.add(seconds)
    assert delays.seconds == pytest.approx(0.31)
    assert delays.steps == 4


def test_not_ready_names_the_camera():
    session = Session()
    spec = TaskSpec(
        "real/x", {"rgb_wrist": FieldSpec((4, 4, 3), "uint8", "rgb")}, FieldSpec((N,), "float32", "action"),
        control_hz=HZ, env_args={"rule": RULE, "actions": SPACE.to_dict()},
    )  # fmt: skip
    with pytest.raises(NotReady, match=r"'camera\.wrist' is not there"):
        Observer(session, spec, 1).window(SECOND)
    session.close()


OPTIONS = {"n_action_steps": None, "n_steps": 2, "beta": 5.0, "device": "cpu", "threads": 1, "overrides": {}}
WINDOW = {"state": np.random.default_rng(0).uniform(0.1, 1, (2, 7)).astype("float32")}


@pytest.mark.parametrize("mode", ["sync", "replace", "ensemble", "rtc", "rti"])
def test_a_checkpoint_plans_in_every_mode(checkpoint, mode):
    planner = Planner(build_client({"checkpoint": checkpoint, **OPTIONS}, mode), mode)
    first = planner.plan(WINDOW, None, 0)
    second = planner.plan(WINDOW, 2, 1)
    assert len(first) == len(second) == (4 if mode == "sync" else 7)
    continued = np.abs(second[0] - first[2]).max()
    assert (continued < 1e-6) == (mode in ("rtc", "rti"))  # one step of the old chunk goes on
    assert len(planner.plan(WINDOW, 7, 0)) == len(first)  # nothing is left to go on from


def test_a_policy_behind_a_server_plans_alike(checkpoint):
    def plans(client):
        planner = Planner(client, "rtc")
        return [planner.plan(WINDOW, since, 1) for since in (None, 2, 4)]

    def load():
        return load_served(checkpoint, device="cpu", execution={"name": "rtc"})

    here = plans(LocalPolicy(load()))
    with serving(load()) as address:
        client = build_client({"server": address, "timeout_s": 10.0}, "rtc")
        there = plans(client)
        client.close()
    np.testing.assert_allclose(np.stack(here), np.stack(there), atol=1e-6)


def test_a_server_that_tells_no_contract_is_refused():
    with pytest.raises(ContractError, match="does not say what it has to be shown"):
        task_of({"anything": 1})
