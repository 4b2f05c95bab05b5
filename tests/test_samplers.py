"""samplers: each view against NumPy, and how views and weights reach the batches."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from esmm_fast import Dataset, Vocabulary, prepare
from esmm_fast.evaluation import Predictions
from esmm_fast.samplers import (
    Context,
    clicked,
    common_rows_of,
    entire_space,
    groups_of,
    inverse_propensity,
    propensity_weights,
    share_of_groups,
    split_off_end,
    with_copies,
    with_unclicked,
)

CLICKS = (1, 0, 0, 1, 1, 0, 0, 0, 1, 0)
CONVERSIONS = (0, 0, 1, 1, 0, 0, 0, 0, 1, 0)  # impression 3 converts without a click
GROUPS = "aabbbbbccd"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten impressions of four groups; ids 1 to 10."""
    folder = tmp_path_factory.mktemp("ten")
    rows = zip(CLICKS, CONVERSIONS, GROUPS, strict=True)
    (folder / "skeleton.csv").write_text(
        "".join(
            f"{i},{y},{z},{ord(g):016x},1,205\x02{i % 3 + 7}\x031.0\n"
            for i, (y, z, g) in enumerate(rows, 1)
        )
    )
    (folder / "common.csv").write_text(
        "".join(f"{ord(g):016x},1,101\x02{ord(g)}\x031.0\n" for g in "abcd")
    )
    made = prepare(
        skeleton=folder / "skeleton.csv", common=folder / "common.csv", out=folder / "dataset"
    )
    assert isinstance(made, Dataset)
    return made


def ids(view: Dataset) -> list[int]:
    stored = view.impressions["sample_id"].to_numpy()
    return (stored if view.selection is None else stored[view.selection]).tolist()


def test_entire_space_and_clicked(log: Dataset) -> None:
    assert entire_space(log, Context(0)) is log
    assert ids(clicked(log, Context(0))) == [1, 4, 5, 9]
    assert ids(clicked(log.select([9, 8, 8, 0]), Context(0))) == [9, 9, 1]


@pytest.mark.parametrize(("rate", "unclicked"), [(0.1, 1), (0.5, 3), (1.0, 6)])
def test_aman_samples_a_share_of_all_unclicked_impressions(
    log: Dataset, rate: float, unclicked: int
) -> None:
    seen = set()
    for seed in range(40):
        view = with_unclicked(rate)(log, Context(seed))
        found = ids(view)
        assert found == sorted(set(found))  # the log's order, no impression twice
        assert {1, 4, 5, 9} <= set(found) and len(found) == 4 + unclicked
        assert ids(with_unclicked(rate)(log, Context(seed))) == found
        labels = view.labels("and")
        assert labels[:, 1].sum() == 2  # an unclicked impression has no conversion: 4 and 9 alone
        seen |= set(found)
    assert seen == set(range(1, 11))  # every unclicked impression has its turn


def test_aman_draws_every_unclicked_impression_alike(log: Dataset) -> None:
    view = with_unclicked(0.5)
    drawn = np.concatenate([ids(view(log, Context(seed))) for seed in range(600)])
    counts = np.bincount(drawn, minlength=11)[[2, 3, 6, 7, 8, 10]]
    assert counts.sum() == 1800
    assert np.abs(counts - 300).max() < 4 * np.sqrt(600 * 0.25)  # binomial, 4 deviations


@pytest.mark.parametrize("times", [1, 2, 3, 5, 10])
def test_oversampling_repeats_conversions_in_place(log: Dataset, times: int) -> None:
    view = with_copies(times)(log, Context(0))
    assert ids(view) == [1, *[4] * times, 5, *[9] * times]
    assert view.impressions is log.impressions  # no copy of the data
    np.testing.assert_array_equal(groups_of(view), [0, *[1] * (times + 1), *[2] * times])


def test_propensity_weights_against_numpy() -> None:
    pctr = np.array([0.2, 0.05, 0.001, 0.5], np.float32)
    floor = 0.1 * 0.08
    raw = [1 / max(float(p), floor) for p in pctr]
    expected = [w / (sum(raw) / 4) for w in raw]
    np.testing.assert_allclose(propensity_weights(pctr, 0.08), expected, rtol=1e-6)
    assert propensity_weights(np.empty(0, np.float32), 0.08).shape == (0,)


def test_inverse_propensity_weighs_the_clicked_impressions(log: Dataset) -> None:
    labels = np.ones((4, 2), np.float32)
    pctr = np.array([0.4, 0.1, 0.2, 0.001], np.float32)
    context = Context(0, {"ctr": Predictions(labels, pctr=pctr)})
    view = inverse_propensity(log, context)
    assert ids(view) == [1, 4, 5, 9]
    assert view.impression_weights is not None
    raw = 1 / np.maximum(pctr, 0.1 * 0.4)
    np.testing.assert_allclose(view.impression_weights, raw / raw.mean(), rtol=1e-6)
    with pytest.raises(ValueError, match="ctr: expected predictions with a pctr, got none"):
        inverse_propensity(log, Context(0, {"ctr": Predictions(labels)}))


def test_weights_follow_their_impressions_into_batches(log: Dataset) -> None:
    weights = np.arange(1.0, 11.0)  # of impression i: i
    view = log.weighted(weights).select([0, 8, 8, 3, 9, 4])
    vocabulary = Vocabulary.from_dataset(log)
    for labels, expected in (("and", [1, 9, 9, 4, 10, 5]), ("drop", [1, 9, 9, 4, 10, 5])):
        plain = view.batches(4, vocabulary=vocabulary, shuffle=False, labels=labels)
        found = [(b.sample_id.tolist(), b.impression_weights.tolist()) for b in plain]
        assert [i for i, _ in found] == [expected[:4], expected[4:]]
        assert all(i == w for i, w in found)
    # "drop" leaves impression 3 out, and its weight.
    dropped = log.weighted(weights).batches(20, vocabulary=vocabulary, shuffle=False, labels="drop")
    (batch,) = dropped
    assert batch.sample_id.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert batch.impression_weights.tolist() == batch.sample_id.tolist()
    # Shuffled, by threads, and from a position in the middle of an epoch.
    shuffled = view.batches(2, vocabulary=vocabulary, group_limit=1, threads=2)
    for epoch in range(3):
        seen = []
        for batch in shuffled:
            assert batch.impression_weights.tolist() == batch.sample_id.tolist()
            assert batch.impression_weights.dtype.is_floating_point
            seen += batch.sample_id.tolist()
        assert sorted(seen) == [1, 4, 5, 9, 9, 10], epoch
    again = view.batches(2, vocabulary=vocabulary, group_limit=1)
    iterator = iter(again)
    next(iterator)
    other = view.batches(2, vocabulary=vocabulary, group_limit=1)
    other.load_state_dict(again.state_dict())
    for left, right in zip(iterator, other, strict=True):
        assert left.impression_weights.tolist() == right.impression_weights.tolist()


def test_a_batch_does_not_share_its_weights_with_the_view(log: Dataset) -> None:
    view = log.weighted(np.ones(10))
    (batch,) = view.batches(10, vocabulary=Vocabulary.from_dataset(log), shuffle=False)
    batch.impression_weights.zero_()
    assert view.impression_weights is not None and view.impression_weights.sum() == 10


def test_weights_multiply_survive_pickling_and_are_checked(log: Dataset) -> None:
    view = log.weighted([2] * 10).select(np.arange(10) > 6).weighted([1, 0.5, 3])
    assert view.impression_weights is not None and log.impression_weights is None
    assert view.impression_weights.tolist() == [2, 1, 6]
    again = pickle.loads(pickle.dumps(view))
    assert again.impression_weights.tolist() == [2, 1, 6] and ids(again) == [8, 9, 10]
    with pytest.raises(ValueError, match=r"weights: expected 10, one for each.* got shape \[3\]"):
        log.weighted([1, 2, 3])
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"weights\[1\]: expected a finite number >= 0, got"):
            log.weighted([1, bad, *[1] * 8])


def test_shares_are_of_groups_and_nested(log: Dataset) -> None:
    common = common_rows_of(log)
    assert groups_of(log).tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 3]
    before: set[int] = set()
    for share, groups in ((0.01, 1), (0.5, 2), (0.75, 3), (1, 4)):
        view = share_of_groups(log, share, seed=3)
        chosen = set(common_rows_of(view).tolist())
        assert len(chosen) == groups and before <= chosen
        assert len(view) == sum(int((common == c).sum()) for c in chosen)  # whole groups
        before = chosen
    assert share_of_groups(log, 1) is log


def test_the_end_is_split_off_between_groups(log: Dataset) -> None:
    for share, cut in ((0.1, 9), (0.3, 7), (0.4, 7), (0.7, 7), (0.85, 2)):
        kept, end = split_off_end(log, share)
        assert ids(kept) == list(range(1, cut + 1)), share
        assert ids(end) == list(range(cut + 1, 11))
    with pytest.raises(ValueError, match="leaves no whole group on either side"):
        split_off_end(log.select([2, 3, 4]), 0.5)


def test_bad_arguments(log: Dataset) -> None:
    with pytest.raises(ValueError, match=r"rate: expected a share in \(0, 1\], got 0"):
        with_unclicked(0)
    with pytest.raises(ValueError, match="times: expected at least 1, got 0"):
        with_copies(0)
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=r"share: expected a share in \(0, 1\], got"):
            share_of_groups(log, share)
    with pytest.raises(ValueError, match=r"share: expected a share in \(0, 1\), got 1"):
        split_off_end(log, 1)


def test_the_log_is_as_described(log: Dataset) -> None:
    assert log.labels("and")[:, 1].sum() == 2 and log.labels("raw")[:, 1].sum() == 3
    assert Path(log.path).is_dir()
