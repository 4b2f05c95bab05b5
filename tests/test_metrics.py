"""metrics: literal examples, scikit-learn as the oracle, and the defined corner cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from esmm_fast import metrics


def test_auc_by_hand() -> None:
    # Pairs (positive, negative): .35 > .1, .35 < .4, .8 > .1, .8 > .4: three of four.
    assert metrics.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert metrics.auc([1, 0, 0], [0.5, 0.5, 0.1]) == 0.75  # one tie, one right
    assert metrics.auc([True, False], [2.0, -3.0]) == 1.0
    assert metrics.auc([0, 1], [-np.inf, np.inf]) == 1.0


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1, 1]])
def test_auc_is_nan_without_two_classes(labels: list[int]) -> None:
    assert math.isnan(metrics.auc(labels, np.linspace(0.1, 0.9, len(labels))))
    assert math.isnan(metrics.auc(np.array(labels) * 1.0, np.full(len(labels), 0.5)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60),
    st.sampled_from([np.float32, np.float64]),
)
def test_auc_equals_scikit_learn(rows: list[tuple[bool, int]], dtype: type) -> None:
    labels = np.array([a for a, _ in rows], np.uint8)
    scores = np.array([b / 7 for _, b in rows], dtype)
    ours = metrics.auc(labels, scores)
    if labels.min() == labels.max():
        assert math.isnan(ours)
        return
    assert ours == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-14)
    weights = 1 + (np.arange(len(labels)) % 3)
    assert metrics.auc(labels, scores, weights) == pytest.approx(
        oracle.roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    # Whole weights are copies.
    assert metrics.auc(labels, scores, weights) == pytest.approx(
        metrics.auc(np.repeat(labels, weights), np.repeat(scores, weights)), abs=1e-12
    )


def test_large_auc_equals_scikit_learn_whichever_class_is_rarer() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 5_000, 50_000).astype(np.float32)
    for share in (0.01, 0.5, 0.99):
        labels = (random.random(50_000) < share).astype(np.float32)
        expected = oracle.roc_auc_score(labels, scores)
        assert metrics.auc(labels, scores) == pytest.approx(expected, abs=1e-13)


def test_soft_labels_are_two_weighted_halves() -> None:
    random = np.random.default_rng(1)
    truth, scores = random.random(500), random.integers(0, 40, 500) / 40
    twice = np.concatenate([np.ones(500), np.zeros(500)])
    weights = np.concatenate([truth, 1 - truth])
    both = np.concatenate([scores, scores])
    assert metrics.auc(truth, scores) == pytest.approx(
        oracle.roc_auc_score(twice, both, sample_weight=weights), abs=1e-12
    )
    p = scores * 0.9 + 0.05
    assert metrics.log_loss(truth, p) == pytest.approx(
        oracle.log_loss(twice, np.concatenate([p, p]), sample_weight=weights)
    )


def test_soft_auc_is_the_expectation_of_the_drawn_one() -> None:
    random = np.random.default_rng(2)
    truth = random.beta(1, 4, 5_000)
    scores = truth + random.normal(0, 0.2, 5_000)
    drawn = [metrics.auc(random.random(5_000) < truth, scores) for _ in range(50)]
    assert metrics.auc(truth, scores) == pytest.approx(np.mean(drawn), abs=2e-3)


def test_metrics_of_parts_are_those_of_their_concatenation() -> None:
    random = np.random.default_rng(3)
    labels, scores = random.random(1_000) < 0.3, random.random(1_000)
    parts = np.array_split(np.arange(1_000), 7)
    order = np.concatenate(parts[::-1])
    assert metrics.auc(labels, scores) == metrics.auc(labels[order], scores[order])


def test_log_loss_and_brier_equal_scikit_learn() -> None:
    random = np.random.default_rng(4)
    labels, p = (random.random(300) < 0.3), random.random(300)
    weights = random.random(300)
    for w in (None, weights):
        assert metrics.log_loss(labels, p, w) == pytest.approx(
            oracle.log_loss(labels, p, sample_weight=w)
        )
        assert metrics.brier(labels, p, w) == pytest.approx(
            oracle.brier_score_loss(labels, p, sample_weight=w)
        )


def test_log_loss_is_finite_at_0_and_1() -> None:
    assert metrics.log_loss([1], [0.0]) == pytest.approx(-math.log(1e-7))
    assert metrics.log_loss([0], np.array([1.0], np.float32)) == pytest.approx(-math.log(1e-7))
    assert metrics.log_loss([0], [1.7], clip=1e-3) == pytest.approx(-math.log(1e-3))


def test_calibration_is_observed_over_expected() -> None:
    assert metrics.calibration([1, 0, 0, 0], [0.1, 0.2, 0.1, 0.1]) == pytest.approx(2.0)
    assert metrics.calibration([1, 0], [0.5, 0.5], [1, 3]) == pytest.approx(0.5)
    assert math.isnan(metrics.calibration([], []))
    assert math.isnan(metrics.calibration([0], [0.0]))
    assert metrics.calibration([1], [0.0]) == math.inf


def test_calibration_curve_never_separates_equal_predictions() -> None:
    p = np.repeat([0.1, 0.4, 0.4, 0.9], 25)
    labels = np.repeat([0, 0, 1, 1], 25)
    curve = metrics.calibration_curve(labels, p, bins=8)
    np.testing.assert_allclose(curve.predicted, [0.1, 0.4, 0.9])
    np.testing.assert_allclose(curve.observed, [0, 0.5, 1])
    assert curve.impressions.tolist() == [25, 50, 25]
    assert metrics.calibration_error(labels, p, bins=8) == pytest.approx(
        (25 * 0.1 + 50 * 0.1 + 25 * 0.1) / 100
    )
    assert len(metrics.calibration_curve([], []).impressions) == 0
    assert math.isnan(metrics.calibration_error([], []))


def test_calibration_curve_bins_hold_equal_shares() -> None:
    p = np.random.default_rng(5).random(1_000)
    curve = metrics.calibration_curve(p, p, bins=10)
    assert curve.impressions.tolist() == [100] * 10
    np.testing.assert_allclose(curve.predicted, curve.observed)


def test_correlation_equals_numpy() -> None:
    random = np.random.default_rng(6)
    a, b = random.random((2, 100))
    assert metrics.correlation(a, a + b) == pytest.approx(np.corrcoef(a, a + b)[0, 1])
    assert math.isnan(metrics.correlation([1, 1], [1, 2]))
    assert math.isnan(metrics.correlation([1], [1]))


def test_roc_curve_has_the_area_auc_and_few_points() -> None:
    random = np.random.default_rng(7)
    scores = random.random(20_000)
    labels = random.random(20_000) < scores
    curve = metrics.roc_curve(labels, scores, points=150)
    assert len(curve.true_positive_rate) <= 152
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(metrics.auc(labels, scores), abs=1e-3)
    assert len(metrics.roc_curve([1, 1], [0.1, 0.2]).true_positive_rate) == 0
    assert len(metrics.roc_curve([], []).true_positive_rate) == 0


def test_summary_of_nothing_is_all_nan() -> None:
    result = metrics.summary([], [])
    assert result.pop("impressions") == 0
    assert result.pop("positives") == 0
    assert all(math.isnan(value) for value in result.values())


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "message"),
    [
        ([0, 1], [0.5], None, "expected one length, got 2 and 1"),
        ([0, 2], [0.5, 0.5], None, r"labels\[1\]: expected a number in \[0, 1\], got 2.0"),
        ([0, np.nan], [0.5, 0.5], None, r"labels\[1\]: expected .* got nan"),
        ([0, 1], [0.5, np.nan], None, r"predictions\[1\]: expected a number, got nan"),
        ([0, 1], [0.5, 0.5], [1, -1], r"weights\[1\]: expected a finite number >= 0, got -1.0"),
        ([0, 1], [0.5, 0.5], [1], "weights: expected 2 values"),
        ([[0, 1]], [[0.5, 0.5]], None, "labels: expected one dimension"),
    ],
)
def test_bad_input_names_place_and_value(labels, scores, weights, message) -> None:  # type: ignore[no-untyped-def]
    for metric in (metrics.auc, metrics.log_loss, metrics.brier, metrics.calibration):
        with pytest.raises(ValueError, match=message):
            metric(labels, scores, weights)
