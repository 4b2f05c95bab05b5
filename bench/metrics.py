"""Exact AUC against scikit-learn's: 5M impressions, float32 scores, at two rates of positives."""

import argparse
from collections.abc import Sequence

import harness
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from esmm_fast import metrics

IMPRESSIONS = 5_000_000
RATES = (0.04, 0.5)


def comparison(impressions: int, rate: float, rounds: int = 5) -> harness.Comparison:
    random = np.random.default_rng(0)
    labels = (random.random(impressions) < rate).astype(np.float32)
    scores = random.random(impressions, dtype=np.float32)
    soft = scores * np.float32(rate)
    calls = {
        "scikit-learn": lambda: roc_auc_score(labels, scores),
        "esmm_fast": lambda: metrics.auc(labels, scores),
        "esmm_fast, soft labels": lambda: metrics.auc(soft, scores),
        "esmm_fast, all metrics": lambda: metrics.summary(labels, scores),
    }
    title = f"AUC, n = {impressions}, {rate:.0%} positives, float32 scores"
    return harness.compare(title, calls, rounds=rounds, warmup=1)


def run(options: argparse.Namespace) -> Sequence[harness.Comparison]:
    """Exact AUC against scikit-learn's."""
    return [comparison(IMPRESSIONS, rate, options.rounds) for rate in RATES]


@pytest.mark.parametrize("rate", RATES)
def test_metrics(benchmark, rate):
    harness.record(benchmark, comparison(200_000, rate, rounds=3), "esmm_fast")


if __name__ == "__main__":
    harness.main("metrics", run)
