"""Early stopping: the best evaluation of a training so far, and its parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .config import METRICS, EarlyStopping


@dataclass
class Best:
    """The best evaluation of a training so far."""

    value: float  # more is better
    step: int
    since: int  # evaluations after it, none of them better
    parameters: dict[str, Tensor]  # the model's state_dict there, copied

    @staticmethod
    def of(
        best: Best | None,
        result: Mapping[str, Any],
        stopping: EarlyStopping,
        step: int,
        parameters: Mapping[str, Tensor],
    ) -> Best:
        """Returns the best of `best` and a new evaluation.

        Args:
            best: What was the best until now.
            result: The new evaluation, as `evaluation.evaluate` gives it.
            stopping: What is watched, and what counts as an improvement.
            step: Steps before the evaluation.
            parameters: The model's state_dict, copied where it is the best.

        Raises:
            ValueError: The model has no such metric, or it is undefined on the validation set.
        """
        value = watched(result, stopping)
        if best is not None and not value > best.value + stopping.min_delta:
            return replace(best, since=best.since + 1)
        return Best(value, step, 0, {n: t.detach().clone() for n, t in parameters.items()})


def watches(stopping: EarlyStopping | None, model: Any) -> EarlyStopping | None:
    """Returns what is watched of a model: `stopping`, or None where the model lacks its metric.

    Args:
        stopping: None: nothing.
        model: A network, its class or its maker; its `predicts` says the tasks it predicts. One
            that does not say it is taken to predict all.
    """
    model = getattr(model, "func", model)  # of a partial
    if stopping is None or stopping.metric is None or not hasattr(model, "predicts"):
        return stopping
    return stopping if stopping.metric.partition(".")[0] in model.predicts else None


def watched(result: Mapping[str, Any], stopping: EarlyStopping) -> float:
    """Returns what early stopping watches, as a number of which more is better.

    >>> watched({"cvr": {"auc": 0.6, "log_loss": 0.3}}, EarlyStopping())
    -0.3
    """
    tasks = {task: result[task] for task in ("ctcvr", "cvr", "ctr") if task in result}
    tasks |= dict(reversed(result.get("stages", {}).items()))
    there = [f"{t}.{m}" for t in tasks for m in METRICS if m in tasks[t]]
    name = stopping.metric or next((n for n in there if n.endswith("log_loss")), "a log loss")
    if name not in there:
        raise ValueError(
            f"early_stopping.metric: expected one of {', '.join(there) or 'none there'}, "
            f"got {name!r}: this model does not predict it"
        )
    task, _, metric = name.rpartition(".")
    value = METRICS[metric] * float(tasks[task][metric])
    if math.isnan(value):
        raise ValueError(
            f"early_stopping.metric: {name} is undefined on the validation set "
            f"({result['impressions']} impressions, {result['clicks']} clicks, "
            f"{result['conversions']} conversions)"
        )
    return value
