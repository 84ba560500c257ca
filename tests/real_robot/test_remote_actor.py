"""The acting half on the robot's machine: it sends what a local one would have stored, whatever the network does."""

from __future__ import annotations

import io
import socket
import time

import numpy as np
import pytest
import torch

from algos.dsrl import DSRL
from algos.explorer import Decision
from algos.residual import Residual
from data.episodes import EpisodeStore
from data.errors import ConfigError, ContractError, DataError
from data.normaliser import Normaliser
from data.spec import FieldSpec, TaskSpec
from envs.chunk_env import ChunkEnv
from envs.evaluate import evaluate
from envs.make import make_env
from launch.acting import ActingHere, start_acting
from policies.build import build_policy, normaliser_modes
from policies.checkpoint import wrapped_config
from real_robot.core.types import Button, DeviceError
from real_robot.live.acting import ServedActor
from real_robot.live.remote_actor import RemoteActor, stream
from real_robot.live.wire import decision_of, plain, size
from tests.real_robot.table import Table

SEED, GAMMA, HOLD = 7, 0.9, 4
CONFIG = {
    "n_obs_steps": 2,
    "horizon": 9,
    "n_action_steps": 8,
    "policy": {"name": "flow", "n_inference_steps": 2},
    "network": {"name": "mlp", "hidden_dim": 16, "n_blocks": 1, "time_dim": 8},
    "encoder": {"state": {"hidden": [8]}},
}
SMALL = {
    "hidden": [16], "critic_hidden": [16], "n_critics": 2, "batch_size": 8, "learning_starts": 10**6,
    "warmup_steps": 0, "base_fraction": 0.3, "seed": SEED,
}  # fmt: skip


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """base_of(table) -> an untrained policy of its robot, always the same."""
    path = tmp_path_factory.mktemp("data") / "robot.zarr"

    def make(table):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if not path.exists():
                env = make_env(table.args())
                store = EpisodeStore.create(path, env.spec)
                env.close()
                rng = np.random.default_rng(0)
                obs = {key: rng.uniform(-1, 1, (20, *f.shape)).astype("float32") for key, f in env.spec.obs.items()}
                store.append({**obs, "action": rng.uniform(-0.02, 0.02, (20, 7)).astype("float32")})
            store = EpisodeStore.open(path)
            return build_policy(CONFIG, store.task, Normaliser.fit(store, normaliser_modes(store.task))).eval()

    return make


@pytest.fixture
def table(request):
    table = Table(**getattr(request, "param", {}))
    yield table
    table.close()


def learner_of(base, kind="residual"):
    """With corrections that are not zero, or noise that is steered: "dsrl", or "na"."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "residual":
            learner = Residual(base, 1, hold=HOLD, **SMALL)
            nets = [learner.actor, learner.policy.actor]
        else:
            base.n_action_steps = HOLD
            learner = DSRL(base, 1, variant="na" if kind == "na" else "sac", n_candidates=3, **SMALL)
            nets = [learner.policy.actor]
        for net in nets:
            for p in net.parameters():
                p.data += 0.3 * torch.randn_like(p)
    return learner


def remote_of(learner, table, **changes):
    args = table.args(episode_length=14, **changes)
    of_base = CONFIG | {"n_action_steps": learner.base.n_action_steps}
    return RemoteActor(learner, args, wrapped_config(learner.policy, of_base), gamma=GAMMA, seed=SEED)


def disturb(table):
    """A person takes over in the second episode, stops the robot in the third, and finds the fourth one good."""
    begun = []
    plans = {
        (2, 6): lambda: table.lead(0.0, until=2.0),
        (3, 9): lambda: table.lab.press(Button.ESTOP),
        (4, 10): lambda: table.lab.press(Button.SUCCESS),
    }

    def look(now):
        episode = table.robot._episode
        if episode is not None and (not begun or begun[-1] is not episode):
            begun.append(episode)
        happens = plans.pop((len(begun), episode.steps), None) if begun else None
        if happens is not None:
            happens()

    table.lab.each.append(look)


def rows(learner, n):
    """What is stored of the first ``n`` decisions."""
    return learner.core.replay.gather(torch.arange(n), torch.zeros(n, dtype=torch.int64))


def run(acting, learner, n):
    """Until ``n`` decisions are stored."""
    end = time.monotonic() + 60
    while len(learner.core.replay) < n:
        assert time.monotonic() < end
        acting.begin()
        acting.finish()


N = 16


@pytest.fixture(scope="module", params=["residual", "dsrl", "na"])
def local(base_of, request):
    """A learner that has asked step by step, N decisions long; its ``kind``."""
    table = Table()
    try:
        learner = learner_of(base_of(table), request.param)
        learner.kind = request.param
        learner.generator.manual_seed(stream(SEED, 0))
        env = ChunkEnv(table.args(episode_length=14), n_envs=1, n_obs_steps=2, n_action_steps=HOLD, gamma=GAMMA,
                       in_process=True, base_seed=SEED)  # fmt: skip
        disturb(table)
        acting = ActingHere(learner, env)
        acting.reset()
        run(acting, learner, N)
        acting.close()
    finally:
        table.close()
    return learner


def assert_same(learner, local):
    for a, b in zip(rows(learner, N), rows(local, N), strict=True):
        pairs = [(a[k], b[k]) for k in b] if isinstance(b, dict) else [(a, b)]
        assert all(torch.equal(x, y) for x, y in pairs)


def cut(acting):
    acting._remote._connection.socket.shutdown(socket.SHUT_RDWR)


def test_the_disturbances_are_seen(local):
    stored = rows(local, N)
    assert (stored.discount[stored.done] > 0).sum() >= 3  # cut or late
    assert int((stored.done & (stored.discount == 0)).sum()) == 1  # the success
    if local.kind == "residual":
        assert not torch.equal(stored.action, stored.extras["base"])
    else:
        assert set(stored.obs) == {"features", "tokens"}
        assert set(stored.extras) == ({"w", "chunk"} if local.kind == "na" else set())
    assert len(stored.action.flatten(1).unique(dim=0)) > N // 2


def test_what_is_stored_is_what_a_local_actor_would_have_stored(table, base_of, local):
    """To the bit, over a connection that is lost at every third request, and in a learner that is resumed."""
    learner = learner_of(base_of(table), local.kind)
    acting = remote_of(learner, table)
    disturb(table)
    acting.reset()
    run(acting, learner, 5)
    state = {"algo": learner.state_dict(), **acting.state_dict()}
    state = {k: torch.load(_saved(v), weights_only=False) for k, v in state.items()}
    run(acting, learner, 9)  # of which nothing is left
    cut(acting)
    learner = learner_of(base_of(table), local.kind)
    acting = remote_of(learner, table)
    learner.load_state_dict(state["algo"])
    acting.load_state_dict(state)
    asks, collect = iter(range(10**6)), acting._collect

    def through_a_bad_network(weights, wait):
        if next(asks) % 3 == 2:
            cut(acting)
        return collect(weights, wait)

    acting._collect = through_a_bad_network
    run(acting, learner, N)
    acting.close()
    assert next(asks) >= 6
    assert_same(learner, local)
    if local.kind == "residual":
        assert torch.equal(learner.temperature.books, local.temperature.books)
    assert list(learner.core.trust.recent) == list(local.core.trust.recent)
    assert learner.core.env_steps == local.core.env_steps
    assert acting.state_dict()["actor"]["episodes"] >= 4


def _saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_weights_arrive_between_two_decisions(table, base_of):
    learner = learner_of(base_of(table))
    acting = remote_of(learner, table)
    acting.reset()
    run(acting, learner, 2)
    for p in learner.actor.parameters():
        p.data.fill_(0.25)
    acting._next = 0.0
    before = table.served.acting.actor.number
    run(acting, learner, before + 4)
    explorer = table.served.acting.actor.explorer
    assert all((p == 0.25).all() for p in explorer.actor.parameters())
    sent = acting._there
    acting._next = 0.0
    acting.begin()
    acting.finish()
    assert acting._there is sent  # nothing has changed: nothing is sent again
    acting.close()


def test_a_robot_whose_learner_is_silent_keeps_a_bounded_number(table, base_of):
    """It ends the episode that it is in, and goes on where it was when the learner comes back."""
    learner = learner_of(base_of(table))
    acting = remote_of(learner, table)
    acting.reset()
    run(acting, learner, 1)
    actor = table.served.acting.actor
    actor.keep = 4 * size(plain(_decision(learner)))
    rests(actor)
    assert 4 <= actor.number - actor._fetched <= 4 + 4  # the last one begins below the bound: 14 steps, 4 at a time
    stands = table.lab.clock.now()
    time.sleep(0.3)
    assert (actor.idle, table.lab.clock.now()) == (True, stands)
    run(acting, learner, actor.number + 3)
    assert learner.core.replay.total == acting._stored  # every one of them
    acting.close()


def _decision(learner):
    """Like those that it stores."""
    stored = rows(learner, 1)
    n = torch.ones(1, dtype=torch.int64)
    no = torch.zeros(1, dtype=torch.bool)
    seen = {k: v[:, 0] for k, v in stored.obs.items()}
    return Decision(seen, seen, dict(stored.extras), stored.action, stored.reward, stored.discount, no, no, no, n, no,
                    no, no, learner.temperature.books)  # fmt: skip


def rests(actor):
    end = time.monotonic() + 20
    while not actor.idle:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_evaluation_takes_the_robot_and_gives_it_back(table, base_of):
    learner = learner_of(base_of(table))
    acting = remote_of(learner, table)
    acting.reset()
    run(acting, learner, 2)
    results = evaluate(
        lambda obs, episode: torch.zeros(1, HOLD, 7), table.args(episode_length=6), [1, 2],
        n_envs=1, n_obs_steps=2, n_action_steps=HOLD, in_process=True,
    )  # fmt: skip
    assert [r.length for r in results] == [6, 6]
    before = table.served.acting.actor.number
    run(acting, learner, before + 2)
    acting.close()
    rests(table.served.acting.actor)


@pytest.mark.parametrize("table", [{"simulated": False}], indirect=True)
def test_an_actor_that_waits_for_a_person_lets_go(table, base_of, monkeypatch, capsys):
    """And begins anew when it is wanted again, although another episode has been in between."""
    monkeypatch.setattr("real_robot.live.env.LONG", 0.0)
    learner = learner_of(base_of(table))
    acting = remote_of(learner, table)
    table.press(Button.ENABLE, 0.5)
    acting.reset()
    acting.begin()
    assert acting.finish().n_steps.numel() == 0  # nobody presses START
    actor = table.served.acting.actor
    while not actor.idle:
        acting._ask("rest")
        time.sleep(0.02)
    table.press(Button.START, 5.0)
    env = make_env(table.args())
    env.reset(0)
    assert env.step(np.zeros(7)).executed
    env.close()
    table.press(Button.START, 12.0)
    run(acting, learner, 2)
    assert (learner.core.env_steps, acting._episodes) == (2 * HOLD, 1)
    assert f"the robot {acting._remote.address} waits: a person has to" in capsys.readouterr().err  # the learner's
    acting.close()


def test_a_robot_that_was_started_anew_is_told_everything_again(table, base_of):
    """What it had not delivered is lost; what is stored of the next episode begins with its first decision."""
    learner = learner_of(base_of(table))
    acting = remote_of(learner, table)
    acting.reset()
    run(acting, learner, 5)
    table.served.acting.close()
    table.served.acting = ServedActor(table.served.acting._obey, table.served.metadata)
    stored = learner.core.replay.total
    run(acting, learner, stored + 4)
    assert bool(learner.core.replay.gather(torch.tensor([stored - 1]), torch.tensor([0])).done)
    assert table.served.acting.actor.number >= stored + 4
    acting.close()


@pytest.mark.slow
def test_a_gap_is_followed_by_the_next_episode(table, base_of):
    learner = learner_of(base_of(table))
    acting = remote_of(learner, table)
    acting.reset()
    run(acting, learner, 2)
    actor, here = table.served.acting.actor, acting._received
    while actor.number < here + 14:
        time.sleep(0.02)
    with actor._changed:
        while actor._kept[0][0] <= here + 2:  # as if they had been too many
            actor._kept.popleft()
        kept = list(actor._kept)
    following = next(i for i, d, _ in kept if d["fresh"].all())
    assert following > here + 2
    while acting._stored < following + 2:
        acting.begin()
        acting.finish()
    assert learner.core.replay.total == here + 3
    stored = rows(learner, here + 3)
    assert bool(stored.done[here - 1])  # nothing is thought to follow it
    acted = np.concatenate([d["action"] for i, d, _ in kept if following <= i <= following + 2])
    assert torch.equal(stored.action[here:], torch.from_numpy(acted))
    acting.close()


def test_refusals(table, base_of):
    learner = learner_of(base_of(table))
    with pytest.raises(ConfigError, match="this base is code"):
        RemoteActor(learner, table.args(), {"base": {"black_box": {}}}, gamma=GAMMA, seed=SEED)
    acting = remote_of(learner, table, joints=["a"] * 7)
    with pytest.raises(ContractError, match="joints"):
        acting.reset()
    acting.close()
    acting = RemoteActor(learner, table.args(), CONFIG, gamma=GAMMA, seed=SEED)
    with pytest.raises(ContractError, match="normaliser"):
        acting.reset()
    acting.close()
    live = TaskSpec("x", {}, FieldSpec((1,), "float32", "action"), env_args={"suite": "real"})
    for actor, says in (("robot", "algo=residual or dsrl; algo=rlpd"), ("elsewhere", "learner or robot")):
        with pytest.raises(ConfigError, match=says):
            start_acting({"algo": {"name": "rlpd"}, "task": {"actor": actor}}, learner.core, live, {})


def test_a_failure_of_the_actor_is_told(table, base_of):
    table.robot.max_age = 0.3
    acting = remote_of(learner := learner_of(base_of(table)), table)
    acting.reset()
    with pytest.raises(DeviceError, match=r"safety\.max_age"):
        run(acting, learner, 1)
    acting.close()


def test_what_is_no_decision_is_refused():
    with pytest.raises(DataError, match="expected"):
        decision_of({"seen": {}})
