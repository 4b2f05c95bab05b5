"""Batches: the order of an epoch, and going on in the middle of one."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from batch_content import batches_of, content, rows_of
from tiny_dataset import TinyDataset, tiny_dataset

from esmm_fast import _native


def groups_of(dataset: TinyDataset, rows: list[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for r in rows:
        same = (
            groups and dataset.rows[groups[-1][-1]]["common_row"] == dataset.rows[r]["common_row"]
        )
        groups[-1].append(r) if same else groups.append([r])
    return groups


@pytest.mark.parametrize("group_limit", [None, 2, 5])
def test_chunks_of_groups_stay_together(group_limit: int | None) -> None:
    dataset = tiny_dataset(200, 30)
    groups = groups_of(dataset, list(range(200)))
    order = rows_of(batches_of(dataset, 16, group_limit=group_limit))
    assert sorted(order) == list(range(200)) and order != sorted(order)
    # walk the order: chunks come whole, and each has the length that is left to it
    group_of = {r: g for g, group in enumerate(groups) for r in group}
    lengths: dict[int, list[int]] = defaultdict(list)
    at = 0
    while at < len(order):
        g = group_of[order[at]]
        size = 1
        while at + size < len(order) and group_of[order[at + size]] == g:
            size += 1
        lengths[g].append(size)
        at += size
    for g, group in enumerate(groups):
        if group_limit is None:
            assert lengths[g] == [len(group)]
        else:  # neighbouring chunks of one group melt together: only sums of chunk lengths are seen
            assert sum(lengths[g]) == len(group)
            last = len(group) % group_limit
            assert sum(1 for n in lengths[g] if n % group_limit) <= (1 if last else 0)


def test_limit_1_is_a_full_shuffle() -> None:
    dataset = tiny_dataset(400, 30)
    order = rows_of(batches_of(dataset, 16, group_limit=1))
    group_of = {r: g for g, group in enumerate(groups_of(dataset, list(range(400)))) for r in group}
    together = sum(group_of[a] == group_of[b] for a, b in pairwise(order))
    assert sorted(order) == list(range(400))
    assert together < 20  # about 400 * 5 / 400 neighbours of one group by chance; 320 in file order


def test_permutations_are_uniform() -> None:
    dataset = tiny_dataset(4, 1)
    batches = batches_of(dataset, 4)
    counts = Counter(tuple(rows_of([batch])) for _ in range(2400) for batch in batches)
    assert len(counts) == 24
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 49.7  # chi2, 23 degrees, p = 0.001


def slow_order(starts: list[int], limit: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch, written down a second time."""
    word, gamma = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ z >> 27) * 0x94D049BB133111EB & word
        return z ^ z >> 31

    def permute(items: list[Any], stream: int) -> None:
        state = mix(seed + gamma & word)
        state = mix(state + epoch + gamma & word)
        state = mix(state + stream + gamma & word)
        for i in range(len(items) - 1, 0, -1):
            state = state + gamma & word
            j = mix(state) * (i + 1) >> 64
            items[i], items[j] = items[j], items[i]

    if limit == 1:
        order = list(range(starts[-1]))
        permute(order, 0)
        return order
    chunks = []
    for g, (begin, end) in enumerate(pairwise(starts)):
        group = list(range(begin, end))
        permute(group, g + 1)
        step = limit or len(group)
        chunks += [group[i : i + step] for i in range(0, len(group), step)]
    permute(chunks, 0)
    return [i for chunk in chunks for i in chunk]


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_order_matches_a_slow_one(limit: int) -> None:
    starts = [0, 1, 9, 11, 18, 40]
    for seed, epoch in ((0, 0), (7, 3), (2**64 - 1, 2**40)):
        ours = _native.epoch_order(np.array(starts), limit, seed, epoch)
        assert ours.tolist() == slow_order(starts, limit, seed, epoch)


def test_order_is_the_same_on_every_machine() -> None:
    starts = np.array([0, 3, 4, 8])
    assert _native.epoch_order(starts, 0, 7, 0).tolist() == [3, 4, 5, 7, 6, 0, 2, 1]
    assert _native.epoch_order(starts, 2, 7, 1).tolist() == [2, 1, 0, 4, 6, 7, 5, 3]
    assert _native.epoch_order(starts, 1, 7, 0).tolist() == [2, 4, 3, 0, 6, 5, 7, 1]


def test_groups_are_those_of_the_selection() -> None:
    dataset = tiny_dataset(120, 4)
    selected = [r for r in range(120) if dataset.rows[r]["click"]]
    order = rows_of(batches_of(dataset.select(selected), 10))
    group_of = {r: g for g, group in enumerate(groups_of(dataset, selected)) for r in group}
    seen = [group_of[r] for r in order]
    assert len(set(seen)) == 1 + sum(a != b for a, b in pairwise(seen))


def test_epochs_differ_and_seeds_repeat() -> None:
    dataset = tiny_dataset(60)
    batches = batches_of(dataset)
    first, second = rows_of(batches), rows_of(batches)
    assert first != second and sorted(first) == sorted(second)
    again = batches_of(dataset)
    assert [rows_of(again), rows_of(again)] == [first, second]


def test_drop_last() -> None:
    batches = batches_of(tiny_dataset(60), 7, drop_last=True)
    made = list(batches)
    assert len(made) == len(batches) == 8
    assert all(len(batch.labels) == 7 for batch in made)


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_resumes_exactly(at: int) -> None:
    dataset = tiny_dataset(60)
    batches = batches_of(dataset, group_limit=2)
    list(batches)
    iterator = iter(batches)
    for _ in range(at):
        next(iterator)
    state = batches.state_dict()
    assert (state["epoch"], state["batch"]) == (1, at)
    left = [content(b) for b in iterator] + [content(b) for b in batches]
    other = batches_of(dataset, group_limit=2, threads=2)
    other.load_state_dict(state)
    assert [content(b) for b in other] + [content(b) for b in other] == left
    assert other.epoch == 3 and other.state_dict() == batches.state_dict()


def test_a_new_iteration_is_the_next_epoch() -> None:
    batches = batches_of(tiny_dataset(60))
    first = iter(batches)
    iter(batches)
    assert batches.epoch == 0  # nothing was taken of the first
    with pytest.raises(RuntimeError, match="this iterator was closed"):
        next(first)
    next(iter(batches))
    assert batches.state_dict()["batch"] == 1
    fresh = batches_of(tiny_dataset(60))
    list(fresh)
    assert rows_of(batches) == rows_of(fresh)  # epoch 1 in both
    assert batches.epoch == 2


def test_an_iterator_that_ended_stays_ended() -> None:
    iterator = iter(batches_of(tiny_dataset(20)))
    assert len(iterator) == 3 and len(list(iterator)) == 3
    assert list(iterator) == [] and len(iterator) == 0


def test_state_of_other_settings_is_refused() -> None:
    dataset = tiny_dataset(60)
    state = batches_of(dataset).state_dict()
    with pytest.raises(ValueError, match="seed is 0 there, but 1 here"):
        batches_of(dataset, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size is 7 there, but 8 here"):
        batches_of(dataset, 8).load_state_dict(state)
    with pytest.raises(ValueError, match="a batch of at most 9"):
        batches_of(dataset).load_state_dict({**state, "batch": 10})
