"""calibration: by slice against a loop over impressions, and the undoing of down-sampling."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from tiny_dataset import tiny_dataset

from esmm_fast import metrics
from esmm_fast.calibration import Slices, undo_down_sampling


def test_down_sampling_is_undone_in_expectation() -> None:
    random = np.random.default_rng(0)
    p = random.beta(2, 20, 200_000)
    click = random.random(len(p)) < p
    for kept in (0.05, 0.5):
        seen = click | (random.random(len(p)) < kept)
        q = p / (p + (1 - p) * kept)  # what a perfect model of the kept impressions predicts
        assert metrics.calibration(click[seen], q[seen]) == pytest.approx(1, abs=0.02)
        np.testing.assert_allclose(undo_down_sampling(q, kept), p, rtol=1e-12)
    assert undo_down_sampling(np.float32([0.25, 0.5]), 0.5).dtype == np.float32
    ones = np.float32([0.1, 0.2])
    assert undo_down_sampling(ones, 1.0) is ones
    for kept in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="kept: expected a share above 0 and at most 1, got"):
            undo_down_sampling([0.5], kept)


@pytest.mark.parametrize("field", ["user", "history", "seen", "item", "tags", "crosses"])
@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("coded", [None, pa.uint8()])
def test_slices_against_a_loop(field: str, selected: bool, coded: pa.DataType | None) -> None:
    dataset = tiny_dataset(80, sliced=True, coded=coded)
    random = np.random.default_rng(1)
    if selected:
        dataset = dataset.select(random.integers(0, 80, 50))
    rows = range(80) if dataset.selection is None else dataset.selection.tolist()
    labels, predictions = random.integers(0, 2, len(rows)), random.random(len(rows))
    among = random.random(len(rows)) < 0.7

    expected: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        impression = dataset.rows[row]
        here = impression if field in impression else dataset.common[impression["common_row"]]
        for feature_id in {id for id, _ in here[field]}:
            expected.setdefault(feature_id, []).extend([at] if among[at] else [])
    expected = {key: found for key, found in expected.items() if found}

    result = Slices.of(dataset, field).calibration(labels, predictions, among)
    assert {part["feature_id"] for part in result} == expected.keys()
    first = Slices.of(dataset, field).calibration(labels, predictions, among, top=2)
    assert first == result[:2]
    counts = [part["impressions"] for part in result]
    assert counts == sorted(counts, reverse=True)
    for part in result:
        at = expected[part["feature_id"]]
        y, p = labels[at], predictions[at]
        assert part["impressions"] == len(at)
        assert part["observed"] == pytest.approx(y.mean())
        assert part["expected"] == pytest.approx(p.mean())
        assert part["calibration"] == pytest.approx(y.sum() / p.sum())
        deviation = (y.sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
        assert part["deviations"] == pytest.approx(deviation)


def test_an_unknown_field_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"field 'itm': the dataset has none .*; did you mean 'it"):
        Slices.of(tiny_dataset(), "itm")


def test_nothing_expected_has_no_ratio() -> None:
    dataset = tiny_dataset(20)
    for part in Slices.of(dataset, "item").calibration(np.zeros(20), np.zeros(20)):
        assert part["calibration"] is None and part["deviations"] is None
