"""Exact AUC, log loss, Brier score and calibration of predicted probabilities, in NumPy.

Every function takes labels [n] in [0, 1] and predictions [n] as arrays. A label between 0 and 1 is
a *soft label*: the impression counts `label` times as a positive and `1 - label` times as a
negative. With the true probability as the soft label a metric is taken "against the truth" instead
of against one draw of it. All metrics of parts of a data set are the metrics of the parts'
concatenation; an AUC cannot be averaged over parts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns the area under the ROC curve: P(positive scores above negative) + P(equal) / 2.

    Exact: every pair counts, no bins. With 0/1 labels and no weights the count is done in integers,
    so that the result is the correctly rounded quotient. Soft labels: every pair (i, j) counts
    ``label_i * (1 - label_j)`` times, pairs i = j included; that is scikit-learn's `roc_auc_score`
    with every impression given twice, as a positive with weight `label` and as a negative with
    weight `1 - label`.

    Args:
        labels: [n], 0 or 1 or soft.
        scores: [n], any real numbers; only their order matters. Infinite scores are allowed.
        weights: [n], not negative; None means all 1.

    Returns:
        A number in [0, 1], or nan where there is no positive or no negative (one class, or nothing
        at all).

    Raises:
        ValueError: For different lengths, a label outside [0, 1], a negative weight or a nan.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    >>> auc([0, 1], [0.5, 0.5]), auc([1, 1], [0.1, 0.2])
    (0.5, nan)
    """
    y, s, w = _checked(labels, scores, weights)
    if w is None and (hard := _as_bool(y)) is not None:
        return _auc_by_search(np.sort(s[hard]), np.sort(s[~hard]))
    below, positive, negative = _by_score(y, s, w)
    total = positive.sum() * negative.sum()
    if not total > 0:
        return float("nan")
    return float((positive * (below + negative / 2)).sum() / total)


def auc_standard_error(value: float, positives: float, negatives: float) -> float:
    """Returns the standard error of an AUC from the size of its sample (Hanley and McNeil, 1982).

    It covers the draw of the impressions alone, not the training's seeds; nan where it is
    undefined.

    >>> round(auc_standard_error(0.7, 1000, 9000), 4)
    0.0096
    """
    if not (positives > 0 and negatives > 0 and 0 <= value <= 1):
        return float("nan")
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (positives - 1) * (q1 - value**2)
    variance += (negatives - 1) * (q2 - value**2)
    return float(np.sqrt(max(variance, 0) / (positives * negatives)))


def log_loss(
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    clip: float = 1e-7,
) -> float:
    """Returns the mean of -label * log(p) - (1 - label) * log(1 - p) in nats; nan of nothing.

    `p` is the prediction brought into [clip, 1 - clip]; the default is about the step of float32
    just below 1.

    >>> round(log_loss([1, 0], [0.5, 0.25]), 6)
    0.490415
    """
    y, p, w = _checked(labels, predictions, weights)
    if not len(y):
        return float("nan")
    p = np.clip(p.astype(np.float64), clip, 1 - clip)
    return float(_mean(-(y * np.log(p) + (1 - y) * np.log1p(-p)), w))


def brier(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns the mean of (label - p)^2; nan where there is nothing.

    With the true probability as the label it is the squared distance to the truth, 0 for a perfect
    prediction.

    >>> brier([1, 0], [0.5, 0.25])
    0.15625
    """
    y, p, w = _checked(labels, predictions, weights)
    if not len(y):
        return float("nan")
    return float(_mean((y - p.astype(np.float64)) ** 2, w))


def calibration(
    labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Returns observed / expected, sum(labels) / sum(predictions); below 1 is over-estimation.

    nan where there is nothing or both sums are 0; inf where only the expected sum is 0.

    >>> calibration([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5])
    0.5
    """
    y, p, w = _checked(labels, predictions, weights)
    if w is not None:
        y, p = y * w, p * w
    observed, expected = float(y.sum(dtype=np.float64)), float(p.sum(dtype=np.float64))
    if expected == 0:
        return float("nan") if observed == 0 else float("inf")
    return observed / expected


class CalibrationCurve(NamedTuple):
    """Bins of impressions in ascending order of the prediction."""

    predicted: Array  # [bins] mean prediction
    observed: Array  # [bins] mean label
    impressions: NDArray[np.int64]  # [bins]


def calibration_curve(
    labels: ArrayLike, predictions: ArrayLike, bins: int = 20
) -> CalibrationCurve:
    """Returns mean prediction and mean label in up to `bins` bins of about equal impressions.

    Equal predictions are never separated, so there can be fewer bins; none is empty.

    >>> curve = calibration_curve([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.9], bins=2)
    >>> curve.observed.tolist(), curve.impressions.tolist()
    ([0.5, 0.5], [2, 2])
    """
    y, p, _ = _checked(labels, predictions, None)
    if bins < 1:
        raise ValueError(f"bins: expected at least 1, got {bins}")
    if not len(y):
        empty = np.empty(0)
        return CalibrationCurve(empty, empty, np.empty(0, np.int64))
    order = np.argsort(p, kind="stable")
    p, y = p[order].astype(np.float64), y[order].astype(np.float64)
    wanted = np.arange(1, bins) * len(p) // bins
    starts = np.unique(np.concatenate([[0], np.searchsorted(p, p[wanted], side="left")]))
    count = np.diff(np.append(starts, len(p)))
    return CalibrationCurve(
        np.add.reduceat(p, starts) / count, np.add.reduceat(y, starts) / count, count
    )


def calibration_error(labels: ArrayLike, predictions: ArrayLike, bins: int = 20) -> float:
    """Returns the expected calibration error: mean |observed - predicted| over bins.

    The bins are those of `calibration_curve`, each counts with its impressions; nan where there is
    nothing.

    >>> round(calibration_error([0, 1, 0, 1], [0.1, 0.2, 0.6, 0.9], bins=2), 3)
    0.3
    """
    curve = calibration_curve(labels, predictions, bins)
    if not len(curve.impressions):
        return float("nan")
    return float(np.average(np.abs(curve.observed - curve.predicted), weights=curve.impressions))


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Returns Pearson's correlation; nan for fewer than two values or a constant side.

    >>> round(correlation([1, 2, 3], [2, 4, 7]), 4)
    0.9934
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two arrays of one length, got shapes {x.shape} and {y.shape}")
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


class RocCurve(NamedTuple):
    """Points of a ROC curve from (0, 0) to (1, 1)."""

    false_positive_rate: Array  # [points]
    true_positive_rate: Array  # [points]


def roc_curve(labels: ArrayLike, scores: ArrayLike, points: int = 200) -> RocCurve:
    """Returns the ROC curve, thinned to about `points` points; empty where it is undefined.

    >>> curve = roc_curve([0, 1], [0.2, 0.8])
    >>> curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist()
    ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    """
    y, s, _ = _checked(labels, scores, None)
    _below, positive, negative = _by_score(y, s, None)
    if not (positive.sum() > 0 and negative.sum() > 0):
        return RocCurve(np.empty(0), np.empty(0))
    true_rate = np.append(0, np.cumsum(positive[::-1])) / positive.sum()
    false_rate = np.append(0, np.cumsum(negative[::-1])) / negative.sum()
    if len(true_rate) > points:
        # Evenly along the curve's length, so that steep and flat parts are drawn alike.
        length = true_rate + false_rate
        keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)))
        keep = np.union1d(np.minimum(keep, len(length) - 1), [0, len(length) - 1])
        true_rate, false_rate = true_rate[keep], false_rate[keep]
    return RocCurve(false_rate, true_rate)


def summary(labels: ArrayLike, predictions: ArrayLike) -> dict[str, float | int]:
    """Returns every metric of one prediction in one space, as plain numbers.

    Keys: `impressions`, `positives` (sum of labels), `observed` and `expected` (means of labels and
    of predictions), `calibration` (observed / expected), `auc`, `log_loss`, `brier`,
    `calibration_error`.

    >>> metrics = summary([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> metrics["impressions"], metrics["positives"], metrics["auc"]
    (4, 2.0, 0.75)
    """
    y, p, _ = _checked(labels, predictions, None)
    n = len(y)
    nan = float("nan")
    return {
        "impressions": n,
        "positives": float(y.sum(dtype=np.float64)),
        "observed": float(y.mean(dtype=np.float64)) if n else nan,
        "expected": float(p.mean(dtype=np.float64)) if n else nan,
        "calibration": calibration(y, p),
        "auc": auc(y, p),
        "log_loss": log_loss(y, p),
        "brier": brier(y, p),
        "calibration_error": calibration_error(y, p),
    }


def _checked(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.floating], NDArray[np.floating], Array | None]:
    y, s = _floating(labels, "labels"), _floating(scores, "predictions")
    if y.shape != s.shape:
        raise ValueError(
            f"labels and predictions: expected one length, got {len(y)} and {len(s)} values"
        )
    if len(y) and not (y.min() >= 0 and y.max() <= 1):
        at = int(np.flatnonzero(~((y >= 0) & (y <= 1)))[0])
        raise ValueError(f"labels[{at}]: expected a number in [0, 1], got {y[at]}")
    if len(s) and np.isnan(s.max()):
        at = int(np.flatnonzero(np.isnan(s))[0])
        raise ValueError(f"predictions[{at}]: expected a number, got nan")
    if weights is None:
        return y, s, None
    w = np.asarray(weights, np.float64)
    if w.shape != y.shape:
        raise ValueError(f"weights: expected {len(y)} values, got shape {w.shape}")
    if len(w) and not (w.min() >= 0 and w.max() < np.inf):
        at = int(np.flatnonzero(~((w >= 0) & (w < np.inf)))[0])
        raise ValueError(f"weights[{at}]: expected a finite number >= 0, got {w[at]}")
    return y, s, w


def _floating(values: ArrayLike, name: str) -> NDArray[np.floating]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _as_bool(labels: NDArray[np.floating]) -> NDArray[np.bool_] | None:
    """Returns the labels as booleans where all are 0 or 1, else None."""
    positive = labels == 1
    return positive if np.array_equal(positive, labels) else None


def _auc_by_search(positive: NDArray[np.floating], negative: NDArray[np.floating]) -> float:
    """Returns the AUC of two sorted arrays of scores: the shorter is looked up in the longer."""
    pairs = len(positive) * len(negative)
    if pairs == 0:
        return float("nan")
    few, many = sorted((positive, negative), key=len)
    # Twice the number of pairs in which `many` is below (a tie counts 1 of 2).
    below = int(np.searchsorted(many, few, "left").sum()) + int(
        np.searchsorted(many, few, "right").sum()
    )
    return (below if few is positive else 2 * pairs - below) / (2 * pairs)


def _by_score(
    labels: NDArray[np.floating], scores: NDArray[np.floating], weights: Array | None
) -> tuple[Array, Array, Array]:
    """Returns, by ascending distinct score: negatives below, positives at, negatives at it."""
    order = np.argsort(scores)
    sorted_scores = scores[order]
    last = np.flatnonzero(np.append(sorted_scores[1:] != sorted_scores[:-1], True))[: len(scores)]
    positive = labels[order].astype(np.float64)
    negative = 1 - positive
    if weights is not None:
        positive, negative = positive * weights[order], negative * weights[order]
    positives, negatives = np.cumsum(positive)[last], np.cumsum(negative)[last]
    at_positive, at_negative = np.diff(positives, prepend=0), np.diff(negatives, prepend=0)
    return negatives - at_negative, at_positive, at_negative


def _mean(values: NDArray[np.floating], weights: Array | None) -> float:
    if weights is None:
        return float(values.mean())
    return float(values @ weights / weights.sum()) if weights.sum() > 0 else float("nan")
