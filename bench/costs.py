"""What speed costs in quality: ESMM with one setting changed at a time, paired by seed.

python bench/costs.py [--variants NAME ...] [--json]. The baseline is this package's default in
every respect that is varied (whole groups shuffled, LazyAdam, float32, one epoch) except
min-count, because a dense Adam would move a row for every id at every step. The batch is small
because the log is.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from typing import Any

import msgspec
import study
import torch

import esmm_fast as ef
from esmm_fast.catalogue import METHODS
from esmm_fast.config import Settings
from esmm_fast.evaluation import Predictions
from esmm_fast.methods import Trained, fit_method

BASELINE = "whole groups, LazyAdam, float32, min-count 5, 1 epoch"
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "groups of at most 8": {"group_limit": 8},
    "every impression by itself (g = 1)": {"group_limit": 1},
    "bfloat16 towers": {"precision": "bfloat16"},
    "min-count 1": {"min_count": 1},
    "min-count 2": {"min_count": 2},
    "min-count 10": {"min_count": 10},
    "row of unknown ids 0 in the test": {"known_alone": True},
    "min-count 1, row of unknown ids 0 in the test": {"min_count": 1, "known_alone": True},
    "3 epochs": {"epochs": 3},
    "dense Adam": {"table_optimizer": "adam"},
    "towers of 360-200-80": {"hidden": (360, 200, 80)},
}


def trained(
    log: study.Log,
    vocabularies: dict[int, ef.Vocabulary],
    settings: Settings,
    method: str,
    seed: int,
    precision: str = "float32",
    known_alone: bool = False,
) -> tuple[Predictions, dict[str, Any]]:
    """Returns the predictions for the test set after a training, and its steps and speed.

    `known_alone`: ids that the vocabulary does not know add nothing to the test's bags.
    """
    if settings.min_count not in vocabularies:
        vocabularies[settings.min_count] = ef.Vocabulary.from_dataset(
            log.train, min_count=settings.min_count
        )
    vocabulary = vocabularies[settings.min_count]
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    with autocast() if precision == "bfloat16" else nullcontext():
        done = fit_method(METHODS[method], log.train, vocabulary, settings, seed=seed)
        if known_alone:
            without_unknown(done)
        found = done.predict(log.test, vocabulary, settings)
    history = next(iter(done.histories.values()))
    rows = sum(vocabulary.rows(table) for table in vocabulary.tables)
    return found, {
        "steps": history.steps,
        "impressions": history.impressions,
        "training_seconds": history.seconds,
        "rows": rows,
    }


def without_unknown(trained: Trained) -> None:
    """Sets row 0 of each table, that of the ids without a row of their own, to 0."""
    for network in trained.networks.values():
        for tables in network.embedding_tables():  # type: ignore[operator]
            with torch.no_grad():
                tables.weight[list(tables.schema.row_bases.values())] = 0


def run(asked: argparse.Namespace) -> None:
    """Runs the study and prints its table."""
    torch.set_num_threads(1)
    log = study.log_of(asked)
    base = Settings(batch_size=asked.batch_size, min_count=5, hidden=tuple(asked.hidden))
    plan = {"method": asked.method, "settings": msgspec.to_builtins(base)}
    name = "-".join(
        str(part) for part in ("costs", asked.method, asked.impressions, asked.batch_size)
    )
    found = study.Study("costs", log, plan, asked.out / name)
    vocabularies: dict[int, ef.Vocabulary] = {}
    chosen = {BASELINE: VARIANTS[BASELINE], **{v: VARIANTS[v] for v in asked.variants}}
    for seed in range(1, asked.seeds + 1):
        for variant, changed in chosen.items():
            changed = dict(changed)
            how = {k: changed.pop(k) for k in ("precision", "known_alone") if k in changed}
            settings = msgspec.structs.replace(base, seed=seed, **changed)
            found.run(
                variant,
                seed,
                partial(trained, log, vocabularies, settings, asked.method, seed, **how),
            )
    found.finish(BASELINE, asked.json)


def options() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    found = study.parser(__doc__, impressions=200_000, seeds=5)
    found.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    found.add_argument("--method", choices=METHODS, default="esmm")
    found.add_argument("--batch-size", type=int, default=256)
    found.add_argument("--hidden", type=int, nargs="+", default=[200, 80])
    return found


if __name__ == "__main__":
    run(options().parse_args())
