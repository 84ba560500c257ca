"""Two modes in the plane, the second one rarer: what every head has to learn."""

import torch

from policies.rng import BatchRng

MODES = torch.tensor([[-0.7, -0.7], [0.7, 0.4]])
SHARE = 0.25  # of the second one


def fit(head, *, width, updates, lr, batch_size):
    """Trains ``head`` on chunks of one step; part of 1000 samples near a mode, and share of the second mode.

    ``width``: std of each mode.
    """
    opt = torch.optim.Adam(head.parameters(), lr)
    fade = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.02, updates)
    rng, n = BatchRng(0), batch_size
    for _ in range(updates):
        action = MODES[(rng.rand(n) < SHARE).long()][:, None] + width * rng.randn(n, 1, 2)
        loss = head.loss(action, torch.zeros(n, 1, 1), torch.zeros(n, 1, dtype=torch.bool), rng)
        opt.zero_grad()
        loss.backward()
        opt.step()
        fade.step()
    with torch.no_grad():
        x = head.sample(torch.zeros(1000, 1, 1), rng.randn(1000, 1, 2))[:, 0]
    distance = torch.cdist(x, MODES)
    return float((distance.min(1).values < 0.2).float().mean()), float((distance.argmin(1) == 1).float().mean())
