"""Updates per second: our batched critics against a loop over ten modules, and our SAC against stable-baselines3's.

    python benchmarks/critic_update.py                        # the loop
    .venv-peers/bin/python benchmarks/critic_update.py        # and stable-baselines3 (pip install stable-baselines3)

One critic update: targets by the minimum over 2 of E target critics, loss and gradient of all E, Adam, moving average.
The loop does the same on ten torch.nn.Sequential with the same initial weights, and must arrive at the same loss; it is
timed as torch comes, and with the library for matrix products that train.py chooses (policies.precision).
"""

from __future__ import annotations

if __name__ == "__main__":  # before torch is imported: this may start the interpreter anew
    from launch.memory import keep_large_tensors

    keep_large_tensors()

import argparse
import copy
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from algos.critic import EnsembleMLP, adam, move_towards
from policies.precision import large_products

OBS, ACTION, HIDDEN = 78, 4, 256
TAU, LR = 0.005, 3e-4


def as_modules(ensemble: EnsembleMLP) -> nn.ModuleList:
    """The members as torch modules with the same weights."""
    members = nn.ModuleList()
    for e in range(ensemble.n_members):
        layers: list[nn.Module] = []
        for i, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.weight.data, linear.bias.data = weight[e].detach().T.clone(), bias[e, 0].detach().clone()
            last = i + 1 == len(ensemble.weights)
            layers += [linear] if last else [linear, nn.LayerNorm(weight.shape[2]), nn.ReLU()]
        members.append(nn.Sequential(*layers))
    return members


class Batched:
    def __init__(self, n: int):
        self.critic = EnsembleMLP(n, OBS + ACTION, hidden=(HIDDEN, HIDDEN))
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.optimiser = adam(self.critic.parameters(), LR)

    def update(self, x: Tensor, after: Tensor, reward: Tensor, members: Tensor) -> float:
        with torch.no_grad():
            y = reward + 0.99 * self.target(after, members)[..., 0].min(0).values
        loss = (self.critic(x)[..., 0] - y).square().mean(1).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        move_towards(self.target, self.critic, TAU)
        return float(loss.detach())


class Loop:
    def __init__(self, like: Batched):
        self.critics = as_modules(like.critic)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.critics.parameters(), LR, weight_decay=0.0)

    def update(self, x: Tensor, after: Tensor, reward: Tensor, members: Tensor) -> float:
        with torch.no_grad():
            y = reward + 0.99 * torch.stack([self.targets[int(m)](after)[:, 0] for m in members]).min(0).values
        loss = torch.stack([(critic(x)[:, 0] - y).square().mean() for critic in self.critics]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            for p, q in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                p.mul_(1 - TAU).add_(q, alpha=TAU)
        return float(loss.detach())


def in_training(update: Callable[[], object]) -> Callable[[], object]:
    """As train.py calls it."""

    def call() -> None:
        with large_products():
            update()

    return call


def interleaved(sides: dict[str, Callable[[], object]], rounds: int, per_round: int) -> dict[str, float]:
    """Median milliseconds of a call, the sides in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(per_round):
                call()
            times[name].append(1e3 * (time.perf_counter() - start) / per_round)
    return {name: statistics.median(t) for name, t in times.items()}


def against_the_loop(n: int, batch: int, rounds: int) -> None:
    torch.manual_seed(0)
    ours = Batched(n)
    loop = Loop(ours)
    x, after, reward = torch.randn(batch, OBS + ACTION), torch.randn(batch, OBS + ACTION), torch.rand(batch)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        members = torch.randperm(n, generator=generator)[:2]
        a, b = ours.update(x, after, reward, members), loop.update(x, after, reward, members)
        if abs(a - b) > 1e-3 * abs(b):
            raise SystemExit(f"the two sides disagree: loss {a} against {b}")
    members = torch.tensor([0, 1])
    sides: dict[str, Callable[[], object]] = {
        "batched": in_training(lambda: ours.update(x, after, reward, members)),
        "loop": lambda: loop.update(x, after, reward, members),
        "loop with our products": in_training(lambda: loop.update(x, after, reward, members)),
    }
    ms = interleaved(sides, rounds, 5)
    print(f"E={n}, batch {batch}:", *(f"{name} {ms[name]:.1f} ms ({ms[name] / ms['batched']:.2f})" for name in ms))


def against_stable_baselines3(batch: int, rounds: int) -> None:
    """A whole SAC update (critics, actor, temperature) at two critics without LayerNorm."""
    import gymnasium
    import numpy as np
    from stable_baselines3 import SAC as PeerSAC  # pyright: ignore[reportMissingImports]

    from algos.replay import Transition
    from algos.sac import SAC, GaussianPolicy
    from data.normaliser import Normaliser
    from data.spec import FieldSpec, TaskSpec

    class Box(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (OBS,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    peer = PeerSAC(
        "MlpPolicy", Box(), batch_size=batch, learning_starts=10, policy_kwargs={"net_arch": [HIDDEN, HIDDEN]},
        device="cpu",
    )  # fmt: skip
    peer.learn(batch + 50)  # fills its buffer and sets up its logger
    field = FieldSpec((OBS,), "float32", "state")
    spec = TaskSpec("box", {"state": field}, FieldSpec((ACTION,), "float32", "action"))
    ones = torch.ones(OBS)
    normaliser = Normaliser(
        {"state": "minmax", "action": "identity"},
        {"state": {"min": -ones, "max": ones, "mean": 0 * ones, "std": ones}},
    )
    policy = GaussianPolicy(spec, normaliser, hidden=(HIDDEN, HIDDEN), layer_norm=False)
    ours = SAC(policy, 1, critic_hidden=(HIDDEN, HIDDEN), batch_size=batch, learning_starts=0)
    none = torch.zeros(1, dtype=torch.bool)
    for _ in range(batch + 50):
        seen, after = torch.rand(1, 1, OBS), torch.rand(1, 1, OBS)
        ours.core.replay.add(
            {"features": seen}, torch.rand(1, ACTION), torch.rand(1), torch.full((1,), 0.99), none,
            {"features": after}, torch.ones(1, dtype=torch.int64),
        )  # fmt: skip

    def update() -> None:
        drawn: Transition = ours.core.batch()
        ours.update_critic(drawn)
        ours.update_actor(drawn)

    ms = interleaved({"ours": in_training(update), "sb3": lambda: peer.train(1, batch)}, rounds, 5)
    print(f"SAC, 2 critics, batch {batch}: ours {ms['ours']:.1f} ms, stable-baselines3 {ms['sb3']:.1f} ms, "
          f"ratio {ms['sb3'] / ms['ours']:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for n, batch in ((10, 256), (4, 128)):
        against_the_loop(n, batch, args.rounds)
    if importlib.util.find_spec("stable_baselines3"):
        against_stable_baselines3(256, args.rounds)
    else:
        print("stable-baselines3 is not installed here: that comparison is left out.")


if __name__ == "__main__":
    main()
