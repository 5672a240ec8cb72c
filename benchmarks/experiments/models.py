"""Networks of the experiments: ResNet-10 of any width, and the head that LDAM needs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankreg_ext.losses import NormalizedLinear


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut: ``(n, a, h, w)`` to ``(n, b, h/s, w/s)``."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet10(nn.Module):
    """Four blocks of widths w, 2w, 4w, 8w behind one 3 x 3 convolution, as in the code of ALM.

    Args:
        channels: of the images.
        width: w; published: 64.
        stem_stride: of the first convolution; published: 1. 2 costs a quarter.
        outputs: 1 gives logits ``(n,)``, C of them ``(n, C)``.
        cosine: the outputs are cosines, for LDAM.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        stem_stride: int = 1,
        outputs: int = 1,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(a, b, 1 if k == 0 else 2)
                for k, (a, b) in enumerate(itertools.pairwise(sizes))
            )
        )
        self.head = (NormalizedLinear if cosine else nn.Linear)(sizes[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(images))))
        # A mean, not nn.AdaptiveAvgPool2d: the gradient of that is not deterministic on a GPU.
        logits = self.head(x.mean((2, 3)))
        return logits.squeeze(1) if logits.shape[1] == 1 else logits


def build(seed: int, **settings: int | bool) -> nn.Module:
    """A :class:`ResNet10` whose first weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet10(**settings).to(memory_format=torch.channels_last)
