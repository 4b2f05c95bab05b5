"""intervals: DeLong's variance against its definition, and whether intervals cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm_fast import metrics
from esmm_fast.comparison.intervals import auc_error, auc_parts, paired_difference, student_quantile


def literal(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Placement values by comparing every pair, O(n^2)."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    pairs = (positive[:, None] > negative) + (positive[:, None] == negative) / 2
    return pairs.mean(1), pairs.mean(0)


def covariance(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1))


def test_two_and_two_by_hand() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    # Positives .35 and .8 beat 1 and 2 of 2 negatives; variance of (.5, 1) is 1/8, over 2 is 1/16,
    # and the same for the negatives.
    value, error = auc_error(labels, scores)
    assert value == 0.75 and error == pytest.approx(math.sqrt(1 / 16 + 1 / 16))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_against_every_pair(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 40))
    seed = data.draw(st.integers(0, 2**32 - 1))
    levels = data.draw(st.sampled_from([2, 5, 1000]))  # few levels: many ties
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) < random.integers(2, n - 1)).astype(np.float32)
    one, two = random.integers(0, levels, (2, n)).astype(np.float32)
    v10, v01 = literal(labels, one)
    parts = auc_parts(labels, one)
    np.testing.assert_allclose(parts.positive, v10, atol=1e-12)
    np.testing.assert_allclose(parts.negative, v01, atol=1e-12)
    assert parts.auc == pytest.approx(metrics.auc(labels, one), abs=1e-12)
    m, k = len(v10), len(v01)
    variance = covariance(v10, v10) / m + covariance(v01, v01) / k
    assert auc_error(labels, one)[1] == pytest.approx(math.sqrt(variance), abs=1e-12)
    # The difference: var(A) + var(B) - 2 cov(A, B), as DeLong et al. write it.
    w10, w01 = literal(labels, two)
    other = covariance(w10, w10) / m + covariance(w01, w01) / k
    both = covariance(v10, w10) / m + covariance(v01, w01) / k
    value, error = auc_error(labels, one, minus=two)
    assert value == pytest.approx(v10.mean() - w10.mean(), abs=1e-12)
    assert error == pytest.approx(math.sqrt(max(variance + other - 2 * both, 0)), abs=1e-7)


def test_clusters_of_one_are_no_clusters() -> None:
    random = np.random.default_rng(0)
    labels, scores = (random.random(200) < 0.3).astype(int), random.random(200)
    each = auc_error(labels, scores, clusters=random.permutation(200))
    assert each == pytest.approx(auc_error(labels, scores), rel=1e-9)


def test_clusters_against_sums_by_hand() -> None:
    random = np.random.default_rng(1)
    labels = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 0])
    clusters = np.array([7, 7, 7, 3, 3, 9, 9, 9, 4, 4])
    scores = random.random(10)
    v10, v01 = literal(labels, scores)
    auc, positive, negative = v10.mean(), clusters[labels == 1], clusters[labels == 0]
    a = np.array([(v10[positive == c] - auc).sum() for c in (3, 4, 7, 9)])
    b = np.array([(v01[negative == c] - auc).sum() for c in (3, 4, 7, 9)])
    # 3 clusters have positives, 3 have negatives, there are 4; 4 positives, 6 negatives.
    variance = 3 / 2 * (a @ a) / 16 + 3 / 2 * (b @ b) / 36 + 2 * 4 / 3 * (a @ b) / 24
    expected = math.sqrt(max(variance, 0))
    assert auc_error(labels, scores, clusters=clusters)[1] == pytest.approx(expected)


def test_impressions_given_twice_are_no_more_information() -> None:
    random = np.random.default_rng(2)
    labels, scores = (random.random(300) < 0.4).astype(int), random.random(300)
    once = auc_error(labels, scores)[1]
    twice = np.repeat(labels, 2), np.repeat(scores, 2)
    assert auc_error(*twice)[1] == pytest.approx(once / math.sqrt(2), rel=0.01)
    clustered = auc_error(*twice, clusters=np.repeat(np.arange(300), 2))[1]
    assert clustered == pytest.approx(once, rel=0.01)


def test_errors_are_those_of_drawing_test_sets_again() -> None:
    random = np.random.default_rng(3)
    values, errors, differences, of_difference = [], [], [], []
    for _ in range(400):
        labels = (random.random(300) < 0.3).astype(int)
        signal = labels + random.normal(0, 1.5, 300)
        one, two = signal + random.normal(0, 0.5, 300), signal + random.normal(0, 1, 300)
        value, error = auc_error(labels, one)
        values.append(value)
        errors.append(error)
        difference, error = auc_error(labels, one, minus=two)
        differences.append(difference)
        of_difference.append(error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.12)
    assert np.mean(of_difference) == pytest.approx(np.std(differences), rel=0.12)
    assert np.mean(of_difference) < 0.8 * np.mean(errors)  # the pair shares its test set


def test_undefined() -> None:
    for labels in ([], [1, 1], [0, 0]):
        value, error = auc_error(labels, np.arange(len(labels)))
        assert math.isnan(value) and math.isnan(error)
    value, error = auc_error([0, 1], [0.1, 0.2])
    assert value == 1 and math.isnan(error)
    value, error = auc_error([0, 1, 0, 1], [1, 2, 1, 3], clusters=[5, 5, 5, 5])
    assert value == 1 and math.isnan(error)
    with pytest.raises(ValueError, match=r"labels\[1\]: expected 0 or 1, got 0.5"):
        auc_parts([0, 0.5], [1, 2])
    with pytest.raises(ValueError, match="labels: expected 3 values"):
        auc_parts([0, 1], [1, 2, 3])


def test_student_quantiles_of_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 1e6: 1.960}
    for freedom, expected in table.items():
        assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=0.011), freedom
        assert student_quantile(0.025, freedom) == pytest.approx(-expected, rel=0.011)
    between = [student_quantile(0.975, v) for v in (1, 1.3, 1.7, 2, 2.5, 2.999, 3)]
    assert between == sorted(between, reverse=True)
    for bad in (0, 1):
        with pytest.raises(ValueError, match="probability: expected"):
            student_quantile(bad, 5)
    with pytest.raises(ValueError, match=r"freedom: expected at least 1, got 0\.5"):
        student_quantile(0.9, 0.5)


def test_paired_difference_has_both_sources() -> None:
    differences = [0.01, 0.02, 0.03, 0.02]
    seeds_alone = paired_difference(differences)
    std = np.std(differences, ddof=1)
    assert seeds_alone["std"] == pytest.approx(std) and seeds_alone["test_error"] is None
    half = 3.182 * std / 2
    assert seeds_alone["high"] - seeds_alone["mean"] == pytest.approx(half, rel=0.011)
    both = paired_difference(differences, [0.01] * 4)
    assert both["mean"] == pytest.approx(0.02) and both["test_error"] == pytest.approx(0.01)
    variance = std**2 / 4 + 0.01**2
    freedom = variance**2 / ((std**2 / 4) ** 2 / 3)
    half = student_quantile(0.975, freedom) * math.sqrt(variance)
    assert both["low"] == pytest.approx(0.02 - half)
    one = paired_difference([0.02], [0.01])
    assert one["std"] is None and one["high"] == pytest.approx(0.02 + 1.96 * 0.01, rel=1e-3)
    none = paired_difference([0.02])
    assert none["low"] is None and none["high"] is None
    equal = paired_difference([0.02, 0.02], [0.0, 0.0])
    assert equal["low"] == equal["high"] == 0.02
    with pytest.raises(ValueError, match="differences: expected at least one, got none"):
        paired_difference([])


def test_intervals_cover() -> None:
    """Seeds and test sets drawn anew: about 95 of 100 intervals hold the truth, rather more."""
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        of_test = random.normal(0, 0.02)
        found = paired_difference(0.05 + of_test + random.normal(0, 0.02, 5), [0.02] * 5)
        covered += found["low"] <= 0.05 <= found["high"]
    assert 0.92 <= covered / 300 <= 1
