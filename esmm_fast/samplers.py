"""What the networks of a method train on: views and weights over a training set, none of it copied.

A view holds row numbers of the training set (8 bytes per impression) and at most one weight (4
bytes); the columns stay where they are. Everything drawn is a function of `Context.seed`: drawn
once for a training, the same in each of its epochs, another one in each repeat. Views keep the
order of the log, so that the impressions of one common row stay neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .data.dataset import Dataset
from .data.facts import common_rows_of
from .evaluation import Predictions

PROPENSITY_FLOOR = 0.1
"""Least pCTR that UNBIAS divides by, as a share of the training set's CTR."""


@dataclass(frozen=True)
class Context:
    """What a view may depend on besides the training set."""

    seed: int
    """Seeds whatever a view draws; another one in each repeat."""
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    """Of the networks that a network's `needs` names, over the views that stand there."""


View = Callable[[Dataset, Context], Dataset]
"""The part of a training set that a network is trained on; its `__name__` tells it from others."""


def entire_space(train: Dataset, context: Context) -> Dataset:
    """Returns all impressions."""
    return train


def clicked(train: Dataset, context: Context) -> Dataset:
    """Returns the clicked impressions."""
    return train.select(train.labels("and")[:, 0] == 1)


def with_unclicked(rate: float) -> View:
    """Returns the view of AMAN: the clicked impressions, and a share of **all** unclicked ones.

    Unclicked impressions come as negatives: their label "conversion" is 0 where labels are "and" or
    "drop" (with "raw" it is the log's, which is 1 in a handful of rows). The share is exact:
    round(rate * unclicked) impressions without replacement, any set of that many as likely as any
    other.

    Args:
        rate: In (0, 1]; 1 is the entire space.

    Source: Pan et al., One-Class Collaborative Filtering, ICDM 2008 (all missing as negative), as
    arXiv:1804.07931, section 3.1, uses it; the rates it searches are 10, 20, 50 and 100 %.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate: expected a share in (0, 1], got {rate}")

    def view(train: Dataset, context: Context) -> Dataset:
        kept = train.labels("and")[:, 0] == 1
        unclicked = np.flatnonzero(~kept)
        draw = np.random.default_rng([context.seed, 0xA])
        kept[draw.permutation(unclicked)[: round(rate * len(unclicked))]] = True
        return train.select(kept)

    view.__name__ = f"with_unclicked({rate:g})"
    return view


def with_copies(times: int) -> View:
    """Returns the view of OVERSAMPLING: clicked impressions, each conversion among them `times`
    times.

    The copies of an impression stand together with its group; how far the shuffle takes them apart
    is decided by `group_limit`.

    Args:
        times: How often a conversion occurs in all; 1 is BASE.

    Source: Weiss, Mining with Rarity, SIGKDD Explorations 2004, as arXiv:1804.07931, section 3.1,
    uses it; the rates it searches are 2, 3, 5 and 10.
    """
    if times < 1:
        raise ValueError(f"times: expected at least 1, got {times}")

    def view(train: Dataset, context: Context) -> Dataset:
        labels = train.labels("and")
        rows = np.flatnonzero(labels[:, 0] == 1)
        return train.select(np.repeat(rows, np.where(labels[rows, 1] == 1, times, 1)))

    view.__name__ = f"with_copies({times})"
    return view


def inverse_propensity(train: Dataset, context: Context) -> Dataset:
    """Returns the view of UNBIAS: clicked impressions, each with the weight `propensity_weights`.

    It reads the predictions of the network "ctr" over `clicked`.
    """
    view = clicked(train, context)
    pctr = context.predictions["ctr"].pctr
    if pctr is None:
        raise ValueError("ctr: expected predictions with a pctr, got none")
    return view.weighted(propensity_weights(pctr, len(view) / max(len(train), 1)))


def propensity_weights(
    pctr: NDArray[np.floating],  # [n]
    ctr: float,
) -> NDArray[np.float64]:
    """Returns the weight of each clicked impression [n]: 1 / max(pctr, floor), of mean 1.

    Rejection sampling that keeps a clicked impression in proportion to 1 / pCTR makes the kept ones
    look like all impressions; here the expectation of that draw is taken instead of the draw, so
    that no click is thrown away. The floor is `PROPENSITY_FLOOR` * `ctr`: no impression counts more
    than 10 times an impression of average pCTR. Without it one click of a tiny pCTR can outweigh
    all others (the variance of 1 / pCTR has no bound), with it the weights are biased where pCTR is
    below the floor. The mean of 1 only sets the scale: the loss of a batch is sum(w L) / sum(w).

    Args:
        pctr: Of the clicked impressions.
        ctr: Clicks / impressions of the training set.

    >>> propensity_weights(np.array([0.1, 0.2, 0.0001]), ctr=0.1).round(3).tolist()
    [0.261, 0.13, 2.609]
    """
    weights = 1 / np.maximum(pctr.astype(np.float64), max(PROPENSITY_FLOOR * ctr, 1e-12))
    return weights / weights.mean() if len(weights) else weights


def share_of_groups(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """Returns a view of a share of the groups: all impressions of randomly chosen common rows.

    Nested: what a smaller share holds, a larger one of the same seed holds too.

    Args:
        dataset: Any view.
        share: In (0, 1]; round(share * groups) groups, at least one.
        seed: Of the choice.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a share in (0, 1], got {share}")
    if share == 1 or not len(dataset):
        return dataset
    group = groups_of(dataset)
    kept = np.random.default_rng([seed, 0x5]).permutation(int(group[-1]) + 1)
    chosen = np.zeros(len(kept), bool)
    chosen[kept[: max(1, round(share * len(kept)))]] = True
    return dataset.select(chosen[group])


def split_off_end(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Returns the dataset without its end, and its end: about a share of it, cut between groups.

    Logs are in the order of time where they are in any, so the end is to the rest what the test set
    is to the training set.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a share in (0, 1), got {share}")
    group = groups_of(dataset)
    wanted = round((1 - share) * len(group))
    cut = int(np.searchsorted(group, group[wanted - 1], "right")) if wanted else 0
    if cut in (0, len(group)):
        raise ValueError(
            f"share: {share} of {len(group)} impressions leaves no whole group on either side"
        )
    rows = np.arange(len(group))
    return dataset.select(rows[:cut]), dataset.select(rows[cut:])


def groups_of(dataset: Dataset) -> NDArray[np.int64]:
    """Returns the number of each impression's group in a view, [n], ascending from 0."""
    rows = common_rows_of(dataset)
    return np.cumsum(np.append(0, rows[1:] != rows[:-1]))[: len(rows)]
