"""A training step, to see which share of it a rank loss takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ALPHA = 0.1  # weight of the rank loss


def network(kind: str) -> nn.Module:
    """With the same weights at every call; one logit per item."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Linear(64, 1)
        if kind == "mlp":
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 7 * 7, 1),
        )  # fmt: skip


class Trainer:
    """Binary cross-entropy, plus a rank loss if there is one, and SGD with momentum."""

    def __init__(self, kind: str, rank_loss: Callable | None):
        self.kind, self.rank_loss = kind, rank_loss
        self.network = network(kind)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = network(images).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if self.rank_loss is not None:
            rank_loss = self.rank_loss(logits.unsqueeze(0), labels.unsqueeze(0))
            loss = loss + ALPHA * rank_loss
        return loss

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(self.network, images, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def fresh_gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a network that has not been trained: all parameters in one vector."""
        fresh = network(self.kind)
        self.loss(fresh, images, labels).backward()
        return torch.cat([p.grad.flatten() for p in fresh.parameters()])
