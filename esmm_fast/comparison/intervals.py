"""Confidence intervals of AUCs: the test set's own variance (DeLong), and that of repeats.

An AUC is uncertain for two reasons: another test set would have had other impressions, and another
seed would have made another model. `auc_parts` splits an AUC into a contribution of each
impression, from which the first follows, also of a difference of two models on one test set;
`paired_difference` puts the second to it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class AucParts(NamedTuple):
    """An AUC as the mean of one number per positive, and of one per negative."""

    auc: float  # nan without a positive or without a negative
    positive: Array  # [positives] share of negatives below, ties half
    negative: Array  # [negatives] share of positives above, ties half


def auc_parts(labels: ArrayLike, scores: ArrayLike) -> AucParts:
    """Returns the AUC and its placement values, in the order of the impressions, in O(n log n).

    Args:
        labels: [n], 0 or 1.
        scores: [n], without nan.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988, Eqs. 1 and 2; by ranks as Sun and
    Xu, IEEE Signal Processing Letters 2014.

    >>> auc_parts([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    AucParts(auc=0.75, positive=array([0.5, 1. ]), negative=array([1. , 0.5]))
    """
    s = np.asarray(scores)
    is_positive = _zero_or_one(labels, len(s))
    of_positives, of_negatives = s[is_positive], s[~is_positive]
    few, many = len(of_positives), len(of_negatives)
    if not few or not many:
        nothing = np.empty(0)
        return AucParts(math.nan, nothing, nothing)
    positive = _below(np.sort(of_negatives), of_positives) / many
    negative = 1 - _below(np.sort(of_positives), of_negatives) / few
    return AucParts(float(positive.mean()), positive, negative)


def _zero_or_one(labels: ArrayLike, n: int) -> NDArray[np.bool_]:
    y = np.asarray(labels)
    if y.shape != (n,):
        raise ValueError(f"labels: expected {n} values, as many as scores, got shape {y.shape}")
    positive = y == 1
    if not np.array_equal(positive, y):
        at = int(np.flatnonzero(positive != y)[0])
        raise ValueError(f"labels[{at}]: expected 0 or 1, got {y[at]}")
    return positive


def _below(ordered: NDArray[Any], scores: NDArray[Any]) -> Array:
    """Returns how many of `ordered` are below each score, an equal one counting half."""
    ascending = np.argsort(scores, kind="stable")  # neighbouring look-ups hit neighbouring memory
    asked = scores[ascending]
    below = np.searchsorted(ordered, asked, "left") + np.searchsorted(ordered, asked, "right")
    found = np.empty(len(scores))
    found[ascending] = below / 2
    return found


def auc_error(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    minus: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
) -> tuple[float, float]:
    """Returns an AUC, or the difference of two AUCs of one test set, and its standard error.

    The error is that of drawing another test set, for models as they are. nan where it is
    undefined.

    Args:
        labels: [n], 0 or 1.
        scores: [n].
        minus: [n], scores of another model on the same impressions: the AUC of `scores` minus that
            of these. The two are correlated, and the error accounts for it.
        clusters: [n], integers: impressions of one cluster are drawn together (those of one user,
            one session), so they need not be independent of each other. None: each for itself.

    Source: DeLong et al. 1988; with clusters: Obuchowski, Nonparametric analysis of clustered ROC
    curve data, Biometrics 1997.

    >>> value, error = auc_error([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> value, round(error, 4)
    (0.75, 0.3536)
    """
    auc, positive, negative = auc_parts(labels, scores)
    if minus is not None:
        other = auc_parts(labels, minus)
        auc, positive, negative = (
            auc - other.auc,
            positive - other.positive,
            negative - other.negative,
        )
    m, n = len(positive), len(negative)
    if m < 2 or n < 2:
        return auc, math.nan
    positive, negative = positive - auc, negative - auc
    if clusters is None:
        variance = positive @ positive / (m - 1) / m + negative @ negative / (n - 1) / n
        return auc, math.sqrt(float(variance))
    is_positive = np.asarray(labels) == 1
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    of_positives, of_negatives = cluster[is_positive], cluster[~is_positive]
    total = int(cluster.max()) + 1
    positives = np.bincount(of_positives, positive, total)  # [clusters] sums
    negatives = np.bincount(of_negatives, negative, total)
    with_positive = len(np.unique(of_positives))
    with_negative = len(np.unique(of_negatives))
    if min(with_positive, with_negative, total) < 2:
        return auc, math.nan
    variance = (
        with_positive / (with_positive - 1) * (positives @ positives) / m**2
        + with_negative / (with_negative - 1) * (negatives @ negatives) / n**2
        + 2 * total / (total - 1) * (positives @ negatives) / (m * n)
    )
    return auc, math.sqrt(max(float(variance), 0.0))


def paired_difference(
    differences: Sequence[float],
    test_errors: Sequence[float] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Returns the mean of paired differences over repeats and its confidence interval.

    The squared standard error is std^2 / repeats, for the seeds, plus the mean of the squared
    `test_errors`, for the test set, which all repeats share and more repeats do not shrink. The
    second is that of one repeat's difference and therefore an upper bound of what the mean's is:
    the interval errs on the wide side. The quantile is Student's with Satterthwaite's degrees of
    freedom (the test set's part has as good as infinitely many).

    Args:
        differences: One for each repeat, both models of the same seed and test set.
        test_errors: The standard error of each over test sets (`auc_error` with `minus`); None
            leaves the test set out: the interval then holds for this test set alone.
        level: Of confidence.

    Returns:
        `mean`, `std` (None for one repeat), `repeats`, `test_error` (None without), `low`, `high`
        (None where there is nothing to take them from: one repeat and no test error).

    >>> found = paired_difference([0.01, 0.03], [0.0, 0.0])
    >>> round(found["mean"], 4), round(found["low"], 4), round(found["high"], 4)
    (0.02, -0.1071, 0.1471)
    """
    repeats = len(differences)
    if repeats == 0:
        raise ValueError("differences: expected at least one, got none")
    mean = statistics.fmean(differences)
    std = statistics.stdev(differences) if repeats > 1 else None
    test_error = None
    if test_errors is not None and all(math.isfinite(e) for e in test_errors):
        test_error = math.sqrt(statistics.fmean([e * e for e in test_errors]))
    result = {"mean": mean, "std": std, "repeats": repeats, "test_error": test_error}
    of_seeds = 0.0 if std is None else std**2 / repeats
    variance = of_seeds + (test_error or 0.0) ** 2
    if (std is None and test_error is None) or not math.isfinite(mean):
        return {**result, "low": None, "high": None}
    freedom = math.inf
    if of_seeds > 0:
        freedom = max(variance**2 / of_seeds**2, 1.0) * (repeats - 1)
    half = student_quantile(1 - (1 - level) / 2, freedom) * math.sqrt(variance)
    return {**result, "low": mean - half, "high": mean + half}


def student_quantile(probability: float, freedom: float) -> float:
    """Returns the quantile of Student's t distribution with `freedom` degrees of freedom (>= 1).

    Below 3 degrees by interpolation of the exact values at 1 and 2 and of the series at 3; from 3
    on by the Cornish-Fisher series (Abramowitz and Stegun 26.7.5), to about 1 % at 97.5 %.

    >>> [round(student_quantile(0.975, v), 2) for v in (1, 2, 10, float("inf"))]
    [12.71, 4.3, 2.23, 1.96]
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability: expected a number in (0, 1), got {probability}")
    if not freedom >= 1:
        raise ValueError(f"freedom: expected at least 1, got {freedom}")
    if freedom < 3:
        known = {
            1: math.tan(math.pi * (probability - 0.5)),
            2: (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability)),
            3: student_quantile(probability, 3),
        }
        low = int(freedom)
        # Nearly linear in 1 / freedom.
        share = (1 / low - 1 / freedom) / (1 / low - 1 / (low + 1))
        return known[low] + share * (known[low + 1] - known[low])
    z = statistics.NormalDist().inv_cdf(probability)
    if math.isinf(freedom):
        return z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))
