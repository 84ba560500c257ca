"""The replay against what really happened: brute force over whole episodes, with successes and time-outs anywhere."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.replay import Replay, mixed
from data.errors import ConfigError, DataError

GAMMA = 0.9


class World:
    """N counters stepped by chunks: frame f of episode e of environment i is the number (i, e, f)."""

    def __init__(self, seed: int, n_envs: int, to: int, ta: int):
        self.rng = np.random.default_rng(seed)
        self.n_envs, self.to, self.ta = n_envs, to, ta
        self.episode, self.t = [0] * n_envs, [0] * n_envs
        self.length = [self._length() for _ in range(n_envs)]
        self.succeeds = [self.rng.random() < 0.5 for _ in range(n_envs)]
        self.log: list[list[tuple]] = []  # per row and environment: (episode, t, reward, discount, done, next t)

    def _length(self) -> int:
        return int(self.rng.integers(1, 12))

    def window(self, i: int, t: int) -> torch.Tensor:
        frames = np.clip(np.arange(t - self.to + 1, t + 1), 0, None)
        return torch.tensor([[i, self.episode[i], f] for f in frames], dtype=torch.float32)

    def step(self) -> dict:
        """One chunk everywhere, as arguments of ``Replay.add``."""
        n, rows = self.n_envs, []
        obs, after = [], []
        for i in range(n):
            start = self.t[i]
            steps = min(self.ta, self.length[i] - start)
            over = start + steps == self.length[i]
            won = over and self.succeeds[i]
            reward = GAMMA ** (steps - 1) * won + 0.01 * start
            obs.append(self.window(i, start))
            after.append(self.window(i, start + steps))
            rows.append((self.episode[i], start, reward, GAMMA**steps * (not won), over, steps))
            self.t[i] += steps
            if over:
                self.episode[i], self.t[i] = self.episode[i] + 1, 0
                self.length[i], self.succeeds[i] = self._length(), self.rng.random() < 0.5
        self.log.append(rows)
        column = list(zip(*rows, strict=True))
        return {
            "obs": {"x": torch.stack(obs)},
            "action": torch.tensor(column[1], dtype=torch.float32)[:, None],
            "reward": torch.tensor(column[2], dtype=torch.float32),
            "discount": torch.tensor(column[3], dtype=torch.float32),
            "done": torch.tensor(column[4]),
            "next_obs": {"x": torch.stack(after)},
            "n_steps": torch.tensor(column[5]),
            "extras": {"t": torch.tensor(column[1]), "next_t": torch.tensor(column[1]) + torch.tensor(column[5])},
        }

    def cut(self) -> torch.Tensor:
        """Some episodes end where they are, with nothing more done; which."""
        rows = torch.from_numpy(self.rng.random(self.n_envs) < 0.2)
        for i in rows.nonzero()[:, 0].tolist():
            if self.log:
                self.log[-1][i] = (*self.log[-1][i][:4], True, self.log[-1][i][5])
            self.episode[i], self.t[i], self.length[i] = self.episode[i] + 1, 0, self._length()
        return rows

    def expected(self, row: int, i: int, n_step: int) -> tuple:
        """(episode, t, reward, discount, done, episode and time of the successor), one decision after the other."""
        reward, discount, done, at = 0.0, 1.0, False, row
        for k in range(n_step):
            if row + k >= len(self.log) or done:
                break
            at = row + k
            _, _, r, d, done, _ = self.log[at][i]
            reward += discount * r
            discount *= d
        episode, t = self.log[row][i][:2]
        last_episode, last_t, *_, steps = self.log[at][i]
        assert last_episode == episode
        return episode, t, reward, discount, done, last_t + steps


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6),
    st.integers(2, 60), st.integers(5, 30),
)  # fmt: skip
def test_n_step_against_brute_force(seed, n_envs, to, ta, n_step, n_rows, capacity):
    world = World(seed, n_envs, to, ta)
    replay = Replay(n_envs, to, capacity=capacity)
    for _ in range(n_rows):
        replay.add(**world.step())
        replay.cut(world.cut())
    assert len(replay) == min(n_rows, capacity)
    oldest = n_rows - len(replay)
    pairs = [(r, i) for r in range(oldest, n_rows) for i in range(n_envs)]
    row, env = (torch.tensor(x) for x in zip(*pairs, strict=True))
    got = replay.gather(row, env, n_step)
    for b, (r, i) in enumerate(pairs):
        episode, t, reward, discount, done, next_t = world.expected(r, i, n_step)
        assert got.reward[b] == pytest.approx(reward, abs=1e-5)
        assert got.discount[b] == pytest.approx(discount, abs=1e-6)
        assert bool(got.done[b]) == done
        assert got.extras["t"][b] == t
        assert got.extras["next_t"][b] == next_t
        frames = torch.arange(-to + 1, 1)
        want = torch.stack([torch.full((to,), i), torch.full((to,), episode), (t + frames).clamp(min=0)], 1)
        assert torch.equal(got.obs["x"][b], want.float())
        want[:, 2] = (next_t + frames).clamp(min=0)
        assert torch.equal(got.next_obs["x"][b], want.float())


def test_frames_are_stored_once():
    world = World(0, 2, 2, 1)
    world.length = [1000, 1000]
    replay = Replay(2, 2)
    for _ in range(100):
        replay.add(**world.step())
    assert replay._frames["x"].total == 2 * 101


def test_byte_budget(tmp_path):
    world = World(1, 1, 1, 1)
    item = world.step()
    item["obs"]["x"], item["next_obs"]["x"] = torch.zeros(1, 1, 1000), torch.zeros(1, 1, 1000)
    replay = Replay(1, 1, budget_bytes=1_000_000)
    replay.add(**item)
    assert 100 < replay.capacity < 1_000_000 / 8000 + 1
    with pytest.raises(ConfigError, match="replay_gb"):
        Replay(1, 1, budget_bytes=1000).add(**item)
    on_disk = Replay(1, 1, budget_bytes=1_000_000, folder=tmp_path / "replay")
    on_disk.add(**item)
    assert sum(f.stat().st_blocks * 512 for f in (tmp_path / "replay").iterdir()) < 100_000
    assert torch.equal(on_disk.gather(torch.tensor([0]), torch.tensor([0])).obs["x"], item["obs"]["x"])


@pytest.mark.parametrize("on_disk", [False, True])
def test_state_continues(tmp_path, on_disk):
    worlds = [World(5, 2, 2, 3) for _ in range(2)]
    whole = Replay(2, 2, capacity=20)
    for _ in range(50):
        whole.add(**worlds[0].step())
    part = Replay(2, 2, capacity=20)
    for _ in range(33):
        part.add(**worlds[1].step())
    resumed = Replay(2, 2, capacity=20, folder=tmp_path if on_disk else None)
    resumed.load_state_dict(part.state_dict())
    for _ in range(17):
        resumed.add(**worlds[1].step())
    a = whole.sample(64, n_step=3, generator=torch.Generator().manual_seed(0))
    b = resumed.sample(64, n_step=3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(a.obs["x"], b.obs["x"])
    assert torch.equal(a.next_obs["x"], b.next_obs["x"])
    assert torch.equal(a.reward, b.reward)
    assert mixed(a, b).extras["t"].shape == (128,)


def saved(replay):
    """A state as it comes back from a file, and its bytes."""
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True), file.getbuffer().nbytes


def filled(folder, n, capacity=110, seed=5):
    world, replay = World(seed, 2, 2, 3), Replay(2, 2, capacity=capacity, folder=folder)
    for _ in range(n):
        replay.add(**world.step())
    return world, replay


def test_state_in_files_is_small_and_does_not_see_what_was_written_after_it(tmp_path):
    """100 rows are kept and 10 spare: whoever goes on writes over the spare ones before anything else."""
    world, replay = filled(tmp_path, 130)
    assert len(replay) == 100
    state, size = saved(replay)
    _, in_memory = saved(filled(None, 130, 100)[1])
    assert size < 6000 < in_memory
    again = copy.deepcopy(world)
    replay.cut(torch.tensor([True, False]))  # in the file, the last row too
    for _ in range(10):
        replay.add(**world.step())
    resumed = Replay(2, 2, capacity=110, folder=tmp_path)
    resumed.load_state_dict(state)
    whole = filled(None, 130, 100)[1]
    for ours, theirs in ((again, resumed), (copy.deepcopy(again), whole)):
        for _ in range(5):
            theirs.add(**ours.step())
    assert len(resumed) == len(whole) == 100
    rows = torch.arange(35, 135).repeat_interleave(2), torch.arange(2).repeat(100)
    a, b = resumed.gather(*rows, n_step=3), whole.gather(*rows, n_step=3)
    for x, y in zip(a, b, strict=True):
        for key in x if isinstance(x, dict) else [None]:
            assert torch.equal(x if key is None else x[key], y if key is None else y[key])


def test_rows_that_were_written_over_are_given_up(tmp_path):
    world, replay = filled(tmp_path, 130)
    state, _ = saved(replay)
    for _ in range(25):
        replay.add(**world.step())
    resumed = Replay(2, 2, capacity=110, folder=tmp_path)
    with pytest.warns(UserWarning, match="15 of 85 rows"):
        resumed.load_state_dict(state)
    whole = filled(None, 130, 100)[1]
    rows = torch.arange(45, 130).repeat_interleave(2), torch.arange(2).repeat(85)
    assert torch.equal(resumed.gather(*rows).obs["x"], whole.gather(*rows).obs["x"])
    assert torch.equal(resumed.gather(*rows).next_obs["x"], whole.gather(*rows).next_obs["x"])


def test_files_of_another_run_are_refused(tmp_path):
    state, _ = saved(filled(tmp_path / "a", 30)[1])
    with pytest.raises(DataError, match="elsewhere"):
        Replay(2, 2, capacity=110, folder=tmp_path / "elsewhere").load_state_dict(state)
    with pytest.raises(DataError, match="files"):
        Replay(2, 2, capacity=110).load_state_dict(state)
    filled(tmp_path / "b", 30)
    with pytest.raises(DataError, match="another run"):
        Replay(2, 2, capacity=110, folder=tmp_path / "b").load_state_dict(state)
    (tmp_path / "a" / "action.bin").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"action.bin.*not there"):
        Replay(2, 2, capacity=110, folder=tmp_path / "a").load_state_dict(state)


def test_refuses_what_would_poison_it():
    world = World(0, 1, 1, 1)
    replay = Replay(1, 1)
    with pytest.raises(DataError, match="empty"):
        replay.sample(1)
    bad = world.step()
    bad["action"] = bad["action"] * float("nan")
    with pytest.raises(DataError, match="action"):
        replay.add(**bad)
    assert len(replay) == 0
    replay.add(**world.step())
    other = world.step()
    del other["extras"]["t"]
    with pytest.raises(DataError, match="stores"):
        replay.add(**other)
