"""A robot to learn on: through the websocket, in simulated time; and with ``train.py``, in real time."""

from __future__ import annotations

import dataclasses
import math
import re
import socket
import threading
import time

import numpy as np
import pytest
import torch

from data.errors import ConfigError, ContractError
from data.spec import FieldSpec, TaskSpec
from envs.base import RealTimeEnv
from envs.chunk_env import ChunkEnv
from envs.evaluate import evaluate
from envs.make import make_env
from launch.live import on_robot
from launch.start import read_config
from real_robot.core.streams import POLICY, REQUEST, Session, event, teleop_dtype
from real_robot.core.types import SECOND, Button
from real_robot.env import RobotEnv
from tests.real_robot.buses import ENVIRONMENT
from tests.real_robot.command import PATIENT, Command, brief_base, train
from tests.real_robot.table import Table

SEED, GAMMA, TA = 3, 0.9, 8


@pytest.fixture
def table(request):
    table = Table(**getattr(request, "param", {}))
    yield table
    table.close()


@pytest.fixture(scope="module")
def demonstration():
    """(T, n) actions that solve episode SEED."""
    env, actions, over = RobotEnv(), [], False
    env.reset(SEED)
    while not over:
        actions.append(env.expert_action())
        over = env.step(actions[-1]).terminated
    env.close()
    still = np.tile(actions[-1] * ([0] * 6 + [1]), (3 * TA, 1))
    return np.concatenate([actions, still]).astype(np.float32)


def chunks(table, **changes):
    return ChunkEnv(
        table.args(**changes), n_envs=1, n_obs_steps=2, gamma=GAMMA, in_process=True, seed_fn=lambda env, episode: SEED
    )


STILL = torch.zeros(1, TA, 7)


def test_a_demonstration_is_done_again_and_ends_as_a_success(table, demonstration):
    with chunks(table) as env:
        obs = env.reset()
        assert obs["cube"].shape == (1, 2, 3)
        before = table.lab.clock.now()
        for k in range(0, len(demonstration), TA):
            step = env.step(torch.from_numpy(demonstration[None, k : k + TA]))
            if k == 0:
                assert table.lab.clock.now() - before == pytest.approx(0.8 * SECOND, abs=0.03 * SECOND)
                np.testing.assert_allclose(
                    step.next_obs["agent_pos"][0, -1], table.robot._newest("state")["q"], atol=0.02
                )
            if step.terminated.any():
                break
            assert (step.reward, step.n_steps) == (0.0, TA)
        assert step.success.all()
        assert not step.truncated.any()
        assert float(step.reward) == pytest.approx(GAMMA ** (int(step.n_steps) - 1))
        assert float(step.discount) == 0.0
        np.testing.assert_allclose(
            step.obs["agent_pos"][0, -1, :6], table.lab.spec.home[:6], atol=0.04
        )  # led home again


def test_a_time_out_bootstraps(table):
    with chunks(table, episode_length=5) as env:
        env.reset()
        step = env.step(STILL)
    assert step.truncated.all()
    assert not step.terminated.any()
    assert int(step.n_steps) == 5
    assert float(step.discount) == pytest.approx(GAMMA**5)


def test_a_person_who_takes_over_cuts_before_the_step_that_was_not_done(table):
    with chunks(table) as env:
        env.reset()
        env.step(STILL)
        table.lead(0.25, until=3.0)
        step = env.step(STILL)
        assert step.truncated.all()
        assert not step.terminated.any()
        assert int(step.n_steps) == 2
        assert float(step.discount) == pytest.approx(GAMMA**2)
        assert int(env.step(STILL).n_steps) == TA  # the next episode has waited for the hand to let go


def test_a_stop_between_two_decisions_leaves_nothing_to_learn(table):
    with chunks(table) as env:
        before = env.reset()
        table.press(Button.ESTOP)
        table.lab.clock.advance(0.05)
        step = env.step(STILL)
        assert step.truncated.all()
        assert (int(step.n_steps), float(step.reward), float(step.discount)) == (0, 0.0, 1.0)
        assert torch.equal(step.next_obs["agent_pos"], before["agent_pos"])
        assert int(env.step(STILL).n_steps) == TA  # recovered and led home, as simulated robots are


@pytest.mark.parametrize(
    ("button", "success", "terminated"),
    [(Button.SUCCESS, True, True), (Button.FAILURE, False, True), (Button.STOP, False, False)],
)
def test_a_person_ends_it(table, button, success, terminated):
    with chunks(table) as env:
        env.reset()
        table.press(button, 0.35)
        step = env.step(STILL)
    assert int(step.n_steps) == 4
    assert (bool(step.success), bool(step.terminated), bool(step.truncated)) == (success, terminated, not terminated)
    assert float(step.reward) == pytest.approx(GAMMA**3 * success)


def height(frame):
    return float(frame["agent_pos"][1]), frame["agent_pos"][0] < -2.0


@pytest.mark.parametrize("table", [{"reward": height}], indirect=True)
def test_a_reward_function(table):
    with chunks(table) as env:
        env.reset()
        step = env.step(STILL)
        assert float(step.reward) == pytest.approx(sum(GAMMA**i for i in range(TA)) * table.lab.spec.home[1], rel=0.02)
        assert not step.success.any()


@pytest.mark.parametrize("table", [{"simulated": False}], indirect=True)
def test_a_person_enables_the_robot_and_begins_the_episode(table, monkeypatch, capsys):
    monkeypatch.setattr("real_robot.live.env.LONG", 0.0)
    env = make_env(table.args())
    assert isinstance(env, RealTimeEnv)
    waits = []
    infer = env._ask
    env._ask = lambda request: waits.append(infer(request)) or waits[-1]
    table.press(Button.ENABLE, 2.0)
    table.press(Button.START, 2.1)  # not yet: it has not come home
    table.press(Button.START, 9.0)
    begun = table.lab.clock.now()
    env.reset(0)
    assert table.lab.clock.now() - begun >= 9 * SECOND
    said = [w["waiting"] for w in waits if "waiting" in w]
    assert any("press ENABLE" in s for s in said)
    assert "START" in said[-1]
    told = [event(row)[1] for row in table.lab.session.attach("event.live").since(0)[0]]
    assert ["ENABLE" in told[0], "START" in told[1]] == [True, True]  # once each, at the robot's terminal and page
    assert len(told) == 2
    terminal = capsys.readouterr().err  # the learner's
    assert [terminal.count("to press ENABLE"), terminal.count("press START")] == [1, 1]
    env.close()


def test_evaluation_takes_the_robot_from_training_and_gives_it_back(table):
    with chunks(table, episode_length=4) as env:
        env.reset()
        results = evaluate(
            lambda obs, episode: STILL, table.args(episode_length=12), [1, 2],
            n_envs=2, n_obs_steps=2, n_action_steps=TA, in_process=True,
        )  # fmt: skip
        assert [r.length for r in results] == [12, 12]
        cut = env.step(STILL)
        assert (int(cut.n_steps), bool(cut.truncated)) == (0, True)
        assert int(env.step(STILL).n_steps) == 4


def test_a_lost_connection_cuts_and_comes_back(table):
    with chunks(table) as env:
        env.reset()
        live = env._pool._workers[0]._envs[0]
        live._remote._connection.socket.shutdown(socket.SHUT_RDWR)
        assert int(env.step(STILL).n_steps) == 0
        assert int(env.step(STILL).n_steps) == TA


def test_a_run_that_goes_on_begins_a_new_episode(table):
    with chunks(table) as env:
        env.reset()
        env.step(STILL)
        state = env.state_dict()
    with chunks(table) as env:
        moved = table.robot._id
        env.load_state_dict(state)
        assert not env.repeats
        assert int(env.step(STILL).n_steps) == TA
        assert table.robot._episode.steps == TA  # what was done before was not done again
        assert table.robot._id > moved


def test_refusals(table, monkeypatch):
    with pytest.raises(ContractError, match="joints"):
        make_env(table.args(joints=["a"] * 7))
    with pytest.raises(ConfigError, match=r"'sensor\.ball' is not there"):
        make_env(table.args(obs=["ball"]))
    with pytest.raises(ConfigError, match="There is one robot"):
        ChunkEnv(table.args(), n_envs=2, n_obs_steps=1, in_process=True)
    env = make_env(table.args())
    env.begin_chunk(np.zeros((1, 7)))
    assert not env.step(np.zeros(7)).executed  # no episode
    monkeypatch.setenv("DEFT_LEARNER", "somebody else")
    with pytest.raises(ConfigError, match="another learner"):
        make_env(table.args())
    env.close()


def test_only_policies_of_a_robot_have_one():
    spec = TaskSpec("toy/x", {"state": FieldSpec((2,), "float32", "state")}, FieldSpec((2,), "float32", "action"))
    assert on_robot(spec, {"suite": "toy"}) is spec
    with pytest.raises(ConfigError, match=r"task\.server"):
        on_robot(spec, {"suite": "real", "server": None})
    with pytest.raises(ConfigError, match="not recorded on a robot"):
        on_robot(spec, {"suite": "real", "server": "ws://x"})
    told = dataclasses.replace(spec, env_args={"rule": {"hz": 1}, "actions": {}, "action_names": ["a", "b"]})
    args = on_robot(told, {"suite": "real", "server": "ws://x", "episode_length": 9}).env_args
    assert args == {"suite": "real", "server": "ws://x", "episode_length": 9, "obs": ["state"], "rule": {"hz": 1},
                    "actions": {}, "joints": ["a", "b"]}  # fmt: skip


def test_what_wants_thousands_of_episodes_is_refused():
    with pytest.raises(ConfigError, match="residual or dsrl"):
        read_config(["algo=dppo", "base=some.where:policy", "task=live"], ["dppo"])


class Person:
    """Beside a running robot: stops it, takes over, and finds it good, each once the policy has led for a while."""

    def __init__(self, folder):
        self.session, self.steps, self._over = Session(folder), [], threading.Event()
        n = self.session.attach("command").dtype["sent"].shape[0]
        self._hand = self.session.create("teleop", teleop_dtype(n), 256)
        self._request = self.session.create("request.person", REQUEST, 16)
        self._thread = threading.Thread(target=self._stand_by)
        self._thread.start()

    def _led(self, ticks):
        """Waits until an episode's actions have been followed for so many ticks."""
        ring, seen, led = self.session.attach("command"), self.session.attach("command").newest, 0
        chunks = self.session.attach("chunk")
        while led < ticks and not self._over.is_set():
            for record in ring.since(seen)[0]:
                seen = record.n
                chunk = chunks.latest()
                led += int(record.data["source"]) == POLICY and chunk is not None and int(chunk.data["length"]) == 9
            time.sleep(0.005)

    def _press(self, button):
        self._request.put(np.array((int(button),), REQUEST), time.monotonic_ns())

    def _stand_by(self):
        self._led(250)
        self._press(Button.ESTOP)
        self._led(250)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            target = self.session.attach("command").latest().data["sent"]
            self._hand.put(np.array((time.monotonic() < end - 0.1, target, 0), self._hand.dtype), time.monotonic_ns())
            time.sleep(0.01)
        self._led(250)
        self._press(Button.SUCCESS)

    def leaves(self):
        self._over.set()
        self._thread.join()


@pytest.mark.slow
def test_a_policy_is_improved_in_real_time(tmp_path, monkeypatch):
    run, shm = tmp_path / "run", tmp_path / "shm"
    base = brief_base(tmp_path)
    shm.mkdir()
    monkeypatch.setitem(ENVIRONMENT, "DEFT_SHM", str(shm))
    robot = Command("real_robot.live", "robot=mujoco", "port=0", *PATIENT)
    person = None
    try:
        address = robot.says("listening on").split()[-1]
        robot.says("INIT -> READY", 60)
        person = Person(next(shm.glob("deft-*")))
        # Nothing is measured but what training itself shows of the base
        none = ["eval.n_episodes=0", "eval.every_n_episodes=0", "algo.demos=false"]
        options = ["algo.env_steps=160", "algo.learning_starts=16", "algo.warmup_steps=40", "algo.save_every=40"]
        live = ["task=live", f"task.server={address}", "task.episode_length=45"]
        told = train(run, "algo=residual", f"base={base}", *live, *options, *none)
        assert told["success_rate"] is None
    finally:
        if person is not None:
            person.leaves()
        said = "".join(robot.said)
        robot.kill() if robot.process.poll() is not None else robot.ends()
    state = torch.load(run / "state.pt", weights_only=False)
    assert state["algo"]["core"]["counters"][1] > 50  # updates
    rows = state["algo"]["core"]["replay"]["rows"]
    done, discount, reward = (rows[k]["kept"][:, 0].tolist() for k in ("done", "discount", "reward"))
    lengths, steps, ended, gamma = [], 0, [], 0.99
    for over, left, won in zip(done, discount, reward, strict=True):
        n = round(math.log(left) / math.log(gamma)) if left else None
        steps = steps + n if n is not None else None
        if over:
            lengths.append(steps)
            ended.append("won" if won else "cut or late")
            steps = 0
    assert ended.count("won") == 1  # as the person said
    assert lengths[ended.index("won")] is None  # nothing follows it
    cuts = {why: int(n) for n, why in re.findall(r"cut after (\d+) steps: (.*)", said)}
    assert set(cuts) == {"the robot is in FAULT", "a person has taken over"}
    for n in cuts.values():
        assert n in lengths  # of what was learned from: all that was done, and no step more
    rest = [n for n in lengths if n is not None and n not in cuts.values()]
    assert set(rest) <= {45}
    assert 45 in lengths
