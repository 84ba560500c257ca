"""Heads and policies whose answers are known in closed form."""

import math

import torch

from policies.heads.diffusion import DiffusionHead
from policies.heads.edm import EDMHead
from policies.heads.flow import FlowHead
from tests.policies.conftest import make

MEAN = torch.linspace(-0.5, 0.5, 24).view(8, 3)


class Gaussian(torch.nn.Module):
    """What the network has to say when A ~ N(mean, std^2), for every kind of head: E[A | z] in closed form."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std, self.head = mean, std, None

    def attach(self, head):
        object.__setattr__(self, "head", head)
        return head

    def prepare(self, cond):
        return cond

    def posterior(self, z, alpha, sigma):
        precision = alpha**2 * self.std**2 + sigma**2
        return self.mean + alpha * self.std**2 / precision * (z - alpha * self.mean)

    def forward(self, x, t, prepared):
        alpha, sigma = self.head.path(float(t.flatten()[0]))
        if isinstance(self.head, EDMHead):
            d, norm = self.head.sigma_data, math.hypot(sigma, self.head.sigma_data)
            z = x * norm
            return (self.posterior(z, alpha, sigma) - (d / norm) ** 2 * z) * norm / (sigma * d)
        clean = self.posterior(x, alpha, sigma)
        return clean if isinstance(self.head, DiffusionHead) else (x - clean) / sigma


def gaussian_head(kind, mean, std=1.0, **options):
    net = Gaussian(mean, std)
    if kind == "diffusion":
        options = {"prediction": "sample", "clip_sample": False, **options}
    cls = {"diffusion": DiffusionHead, "flow": FlowHead, "edm": EDMHead}[kind]
    return net.attach(cls(net, **options))


def gaussian_policy(store, kind, mean, std=1.0, **options):
    policy = make(store, "flow").eval()
    policy.head = gaussian_head(kind, mean, std, **options)
    return policy
