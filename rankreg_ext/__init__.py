"""Exact ranks, their blackbox gradient, and ranking losses for critical rare classes.

>>> import torch, rankreg_ext
>>> rankreg_ext.rank(torch.tensor([0.3, 0.1, 0.7, 0.6, 0.8]))
tensor([4., 5., 2., 3., 1.])
"""

from . import data, losses, metrics, nn, reference
from ._backend import show_config, use_backend
from ._version import __version__
from .diagnostics import rankreg_diagnostics
from .functional import blackbox_rank, positive_ranks, rank, rankreg_loss

__all__ = [
    "__version__",
    "blackbox_rank",
    "data",
    "losses",
    "metrics",
    "nn",
    "positive_ranks",
    "rank",
    "rankreg_diagnostics",
    "rankreg_loss",
    "reference",
    "show_config",
    "use_backend",
]
