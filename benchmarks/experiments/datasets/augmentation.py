"""Random crops and flips of whole batches, wherever the images are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Each image padded with black and cropped to its size at random, and flipped or not.

    The random numbers are drawn apart from their use, by a CPU generator: equal numbers give equal
    images on every device, because pixels are only moved. Drawing takes the same numbers from the
    generator whatever the settings are.

    Attributes:
        pad: black pixels on each side, before the crop; 0: no crop.
        mirror: whether to exchange left and right, with probability 1/2.
        flip: whether to exchange top and bottom, with probability 1/2.

    Example:
        >>> images = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(2, 1, 2, 2)
        >>> numbers = torch.tensor([[0, 1, 0, 0], [1, 1, 1, 0]])  # one row down; mirrored
        >>> Augmentation(pad=1)(images, numbers).flatten(1).tolist()
        [[0, 0, 1, 2], [2, 1, 4, 3]]
    """

    pad: int = 4
    mirror: bool = True
    flip: bool = False

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """The random numbers for ``n`` images.

        Returns:
            ``(n, 4)`` int64 on the CPU: first row and first column of the crop in the padded image,
            each in [0, 2 pad]; 1 if mirrored; 1 if flipped.
        """
        corner = torch.randint(0, 2 * self.pad + 1, (n, 2), generator=generator)
        turned = torch.randint(0, 2, (n, 2), generator=generator)
        turned *= torch.tensor([self.mirror, self.flip])
        return torch.cat([corner, turned], 1)

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The augmented images.

        Args:
            images: ``(n, channels, height, width)``, any dtype; black is 0.
            numbers: ``(n, 4)`` as from :meth:`draw`, on any device.

        Returns:
            A new tensor like ``images``.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if images.dim() != 4 or numbers.shape != (len(images), 4):
            raise ValueError(
                "Augmentation: images must have shape (n, channels, height, width) and numbers "
                f"(n, 4), got {tuple(images.shape)} and {tuple(numbers.shape)}"
            )
        n, channels, height, width = images.shape
        numbers = numbers.to(images.device)
        top, left, mirrored, flipped = numbers[:, :, None].unbind(1)
        down, across = (torch.arange(size, device=images.device) for size in (height, width))
        rows = top + torch.where(flipped > 0, down.flip(0), down)
        columns = left + torch.where(mirrored > 0, across.flip(0), across)
        # One gather from flat images: half the time of indexing windows of the padded ones.
        places = rows[:, :, None] * (width + 2 * self.pad) + columns[:, None, :]
        places = places.view(n, 1, height * width).expand(-1, channels, -1)
        padded = F.pad(images, (self.pad,) * 4).flatten(2)
        return padded.gather(2, places).view(n, channels, height, width)
