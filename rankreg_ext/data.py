"""Batches that hold positives: a batch sampler for rare classes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from . import _validate

__all__ = ["PositiveBatchSampler"]


class PositiveBatchSampler(Sampler[list[int]]):
    """Batches of indices with the same number of positives in each, for ``DataLoader``.

    An epoch is one pass over all negatives in random order, a few per batch, each batch completed
    by ``positives_per_batch`` positives, which come first. The positives run through one fresh
    permutation after the other, across epochs as well: all are used equally often (the counts
    differ by at most one), several times per epoch when they are few. A batch at the seam of two
    permutations, or one that asks for more positives than there are, may hold a positive twice.

    What it does: every list that RankReg sees has positives, which it needs to do anything. What it
    does not do: a repeated positive is no new positive. And it changes the class prior that the
    base loss sees, from the data's to ``positives_per_batch`` in ``batch_size``: probabilities
    learned so are calibrated to the batches, and weights or margins computed from class counts
    should be computed from these.

    The order depends on ``seed`` and the epoch alone. Each iteration is one epoch and moves on to
    the next, also when it is broken off; :meth:`set_epoch` goes to any other. With several
    processes, give each its own share of the data.

    Args:
        positives: ``(n,)`` bool tensor: whether item ``i`` of the data set is a positive.
        batch_size: items per batch; the last of an epoch may have fewer negatives.
        positives_per_batch: 1 to ``batch_size - 1``.
        seed: an integer.
        drop_last: leave out the last batch of an epoch if it is smaller.

    Raises:
        TypeError, ValueError: for an argument that is not as described, without a positive or
            without a negative, and if ``drop_last`` leaves no batch.

    Example:
        >>> positives = torch.tensor([False, True, False, False, False, False])
        >>> sampler = PositiveBatchSampler(positives, batch_size=3, positives_per_batch=1)
        >>> len(sampler)  # five negatives, two per batch
        3
        >>> [batch[0] for batch in sampler]
        [1, 1, 1]
        >>> loader = torch.utils.data.DataLoader(torch.arange(6), batch_sampler=sampler)
        >>> [len(batch) for batch in loader]
        [3, 3, 2]
    """

    def __init__(
        self,
        positives: Tensor,
        batch_size: int,
        positives_per_batch: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
    ):
        super().__init__()
        name = "PositiveBatchSampler"
        if not isinstance(positives, Tensor) or positives.dtype is not torch.bool:
            got = positives.dtype if isinstance(positives, Tensor) else type(positives).__name__
            raise TypeError(
                f"{name}: positives must be a bool torch.Tensor, got {got} "
                "(for 0/1 labels pass `labels == 1`)"
            )
        if positives.dim() != 1:
            raise ValueError(
                f"{name}: positives must have 1 dimension, got shape {tuple(positives.shape)}"
            )
        _validate.integer(name, "batch_size", batch_size, 2)
        _validate.integer(name, "positives_per_batch", positives_per_batch, 1)
        if positives_per_batch >= batch_size:
            raise ValueError(
                f"{name}: positives_per_batch must lie in [1, batch_size - 1 = {batch_size - 1}], "
                f"got {positives_per_batch}"
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"{name}: seed must be an integer, got {seed!r}")

        self.positives = positives.nonzero().flatten().cpu()
        self.negatives = (~positives).nonzero().flatten().cpu()
        for kind, indices in (("positive", self.positives), ("negative", self.negatives)):
            if not len(indices):
                raise ValueError(
                    f"{name}: positives must hold at least one {kind}, "
                    f"got none among {len(positives)} items"
                )
        self.batch_size = batch_size
        self.positives_per_batch = positives_per_batch
        self.seed = seed
        self.drop_last = bool(drop_last)
        if not len(self):
            raise ValueError(
                f"{name}: drop_last must leave a batch, got {len(self.negatives)} negatives "
                f"and {batch_size - positives_per_batch} needed per batch"
            )
        self.set_epoch(0)

    def __len__(self) -> int:
        """Batches per epoch."""
        per_batch = self.batch_size - self.positives_per_batch
        batches, rest = divmod(len(self.negatives), per_batch)
        return batches + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of one epoch, or those left of one that was resumed."""
        if self._begun:  # a pass that was broken off
            self.set_epoch(self.epoch + 1)
        self._begun = True
        epoch, first = self.epoch, self.batch

        per_batch = self.batch_size - self.positives_per_batch
        negatives = self.negatives[self._permutation("negatives", epoch, len(self.negatives))]
        positives = self._positives_from((epoch * len(self) + first) * self.positives_per_batch)
        for batch in range(first, len(self)):
            self.batch = batch + 1
            yield [
                *itertools.islice(positives, self.positives_per_batch),
                *negatives[batch * per_batch : (batch + 1) * per_batch].tolist(),
            ]
        self.set_epoch(epoch + 1)

    def _positives_from(self, place: int) -> Iterator[int]:
        """The endless sequence of positives, from ``place`` on."""
        n = len(self.positives)
        cycle, start = divmod(place, n)
        while True:
            yield from self.positives[self._permutation("positives", cycle, n)[start:]].tolist()
            cycle, start = cycle + 1, 0

    def _permutation(self, kind: str, number: int, n: int) -> Tensor:
        # Mixed rather than added: seed 1 in epoch 0 is not seed 0 in epoch 1.
        seed = random.Random(f"{kind} {self.seed} {number}").getrandbits(63)
        return torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration be that of ``epoch``, from ``batch`` on.

        Raises:
            TypeError, ValueError: if one is no integer or negative.
        """
        _validate.integer("PositiveBatchSampler.set_epoch", "epoch", epoch, 0)
        _validate.integer("PositiveBatchSampler.set_epoch", "batch", batch, 0)
        self.epoch = epoch
        self.batch = batch
        self._begun = False

    def state_dict(self) -> dict[str, int]:
        """Where the sampler stands: after a batch, the state that goes on with the next one.

        A ``DataLoader`` with workers draws ahead of the training loop: save at the end of an epoch,
        or count the batches used and resume by ``set_epoch(epoch, batch=used)``.
        """
        return {**self._setting(), "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: if the sampler was built from other arguments.
        """
        for key, value in self._setting().items():
            if state[key] != value:
                raise ValueError(
                    f"PositiveBatchSampler.load_state_dict: {key} must be that of this sampler, "
                    f"{value}, got {state[key]}"
                )
        self.set_epoch(state["epoch"], state["batch"])

    def _setting(self) -> dict[str, int]:
        return {
            "positives": len(self.positives),
            "negatives": len(self.negatives),
            "batch_size": self.batch_size,
            "positives_per_batch": self.positives_per_batch,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }
