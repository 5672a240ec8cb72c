"""Metrics of classifiers with a critical rare class, from the ranks of its items.

Scores need no sigmoid: only their order counts, and logits do not saturate into ties. Lists lie
along the last dimension, everything before it is batch, and nothing is differentiable. A metric is
NaN where a list has no positive, no negative or a NaN score: an undefined value is never hidden.

The functions take whole lists; the classes take one list in batches. :func:`bootstrap` and
:func:`bootstrap_difference` give intervals for any of the functions.
"""

from ._accumulated import (
    ROCAUC,
    Accuracy,
    AveragePrecision,
    ErrorAtTPR,
    FPRAtTPR,
    PartialAUC,
)
from ._binary import average_precision, fpr_at_tpr, partial_auc, roc_auc, roc_curve
from ._bootstrap import Interval, bootstrap, bootstrap_difference
from ._multiclass import accuracy, error_at_tpr

__all__ = [
    "ROCAUC",
    "Accuracy",
    "AveragePrecision",
    "ErrorAtTPR",
    "FPRAtTPR",
    "Interval",
    "PartialAUC",
    "accuracy",
    "average_precision",
    "bootstrap",
    "bootstrap_difference",
    "error_at_tpr",
    "fpr_at_tpr",
    "partial_auc",
    "roc_auc",
    "roc_curve",
]
