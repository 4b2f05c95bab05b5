"""Do other libraries' ESMMs find the same? torch-rechub and DeepCTR-Torch on the same data.

PYTHONPATH=.:bench python -m peers.agreement [--json]; it needs both packages from the registry:
pip install --no-deps torch-rechub==0.9.0 deepctr-torch==0.3.0, and scikit-learn pandas tqdm
requests.

Their ESMMs take one id per field and no values, so every field keeps its last id here, for all.
Split, batches and their order, epochs, dimension, hidden layers, Adam and learning rate are the
same. Each library is trained as it comes (start, regularization and loss of its own trainer's
defaults), and once more in a pair with this package: without regularization, and this package's
ESMM with a copy of that library's towers (`towers=`) and of its start. The pair computes the same
in exact arithmetic, so only rounding may tell the two apart; in float64 it is seen how little.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import study
import torch
from torch import Tensor, nn
from torch.nn import functional

import esmm_fast as ef
from esmm_fast.evaluation import Predictions
from esmm_fast.schedule import default_optimizers

from .library_esmm import DIM, deepctr_model, last_rows, rechub_loss, rechub_model
from .training_script import Batches

BASELINE = "esmm_fast"
LR = 1e-3
RECHUB_DECAY, DEEPCTR_L2 = 1e-5, 1e-5  # what their trainer and model set unless told


@dataclass(frozen=True)
class Data:
    """Single-valued rows [n, F] of both halves, each field's own, in the order of the schema."""

    schema: ef.Schema
    rows: dict[str, Tensor]
    labels: dict[str, Tensor]
    sample_id: np.ndarray
    batch_size: int

    @staticmethod
    def of(log: study.Log, min_count: int, batch_size: int) -> Data:
        vocabulary = ef.Vocabulary.from_dataset(log.train, min_count=min_count)
        schema = vocabulary.sized(log.train.schema)
        ids = {t: vocabulary.feature_ids(t)[1:].astype(np.int64) for t in schema.table_rows}
        rows, labels = {}, {}
        for half, dataset in (("train", log.train), ("test", log.test)):
            found, labels[half] = last_rows(
                Batches(dataset, schema, ids, batch_size, joined=True), schema
            )
            rows[half] = torch.stack([found[name] for name in Data.names(schema)], 1)
        sample_id = log.test.impressions["sample_id"].to_numpy().astype(np.int64)
        return Data(schema, rows, labels, sample_id, batch_size)

    @staticmethod
    def names(schema: ef.Schema) -> list[str]:
        return [f.name for f in (*schema.common, *schema.impression)]

    @property
    def tables(self) -> dict[str, int]:
        """Rows of each field's table, by field."""
        fields = (*self.schema.common, *self.schema.impression)
        return {f.name: self.schema.table_rows[f.table_name] for f in fields}

    def order(self, seed: int, epochs: int) -> Iterator[Tensor]:
        """Yields the impressions of every step: the same for all who are given the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            shuffled = torch.randperm(len(self.labels["train"]), generator=generator)
            yield from shuffled.split(self.batch_size)


class CopiedTowers(nn.Module):
    """A library's own towers in this package's model: modules that turn [B, F * D] into logits."""

    def __init__(self, ctr: nn.Module, cvr: nn.Module, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.ctr, self.cvr = copy.deepcopy(ctr), copy.deepcopy(cvr)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, common: Tensor, impression: Tensor, which: Tensor) -> Tensor:
        logits = torch.cat([self.ctr(impression), self.cvr(impression)], 1)
        return logits if self.bias is None else logits + self.bias


def ours(
    data: Data,
    seed: int,
    epochs: int,
    hidden: tuple[int, ...],
    *,
    tables: str = "lazy_adam",
    towers: Callable[[], nn.Module] | None = None,
    start: Callable[[], list[Tensor]] | None = None,
    summed: bool = False,
) -> tuple[Predictions, dict[str, Any]]:
    """Trains this package's ESMM, with towers and a start of its own or copied ones.

    `summed`: the loss is the batch's sum instead of its mean, which Adam's eps can tell.
    """
    model = ef.ESMM(
        data.tables,
        DIM,
        hidden,
        seed=seed,
        towers=None if towers is None else lambda common, own: towers(),
    )
    if start is not None:
        (of_model,) = model.embedding_tables()
        with torch.no_grad():
            of_model.weight.copy_(torch.cat(start()))
    optimizers = default_optimizers(model, LR, tables=tables)

    def batch(half: str, at: Tensor) -> ef.Batch:
        rows = data.rows[half][at]
        bags = {name: (rows[:, f].contiguous(), None) for f, name in enumerate(data.tables)}
        return ef.Batch.from_bags(bags, data.labels[half][at], schema=data.tables)

    for at in data.order(seed, epochs):
        now = batch("train", at)
        loss = model.loss(model(now), now)
        (loss * len(at) if summed else loss).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def probabilities(at: Tensor) -> Tensor:
        out = model(batch("test", at))
        return torch.stack([out.pctr, out.pcvr, out.pctcvr], 1)

    return judged(data, model, probabilities), {}


def judged(data: Data, model: nn.Module, probabilities: Callable[[Tensor], Tensor]) -> Predictions:
    """Returns the predictions for the test half; `probabilities` are pCTR, pCVR and pCTCVR."""
    model.eval()
    labels = data.labels["test"]
    with torch.no_grad():
        found = torch.cat([probabilities(at) for at in torch.arange(len(labels)).split(8192)])
    pctr, pcvr, pctcvr = found.numpy().T.copy()
    return Predictions(labels.numpy(), data.sample_id, pctr, pcvr, pctcvr)


def rechub(
    data: Data,
    seed: int,
    epochs: int,
    hidden: tuple[int, ...],
    decay: float,
    reverse: bool = False,
) -> tuple[Predictions, dict[str, Any]]:
    """Trains torch-rechub's ESMM as its MTLTrainer does.

    `reverse`: the impressions of each batch stand in reverse, which only rounding can tell.
    """
    torch.manual_seed(seed)
    model = rechub_model(data.schema, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, weight_decay=decay)

    def out(half: str, at: Tensor) -> Tensor:
        return model(dict(zip(data.tables, data.rows[half][at].unbind(1), strict=True)))

    for at in data.order(seed, epochs):
        at = at.flip(0) if reverse else at
        loss = rechub_loss(out("train", at), data.labels["train"][at])
        model.zero_grad()
        loss.backward()
        optimizer.step()
    return judged(data, model, lambda at: out("test", at)[:, [1, 0, 2]]), {}


def deepctr(
    data: Data, seed: int, epochs: int, hidden: tuple[int, ...], l2: float
) -> tuple[Predictions, dict[str, Any]]:
    """Trains DeepCTR-Torch's ESMM as its `fit` does."""
    torch.manual_seed(seed)
    model = deepctr_model(data.schema, hidden, l2, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    columns = [list(data.tables).index(name) for name in model.feature_index]

    def out(half: str, at: Tensor) -> Tensor:
        return model(data.rows[half][at][:, columns].float())

    for at in data.order(seed, epochs):
        loss = functional.binary_cross_entropy(
            out("train", at), data.labels["train"][at], reduction="sum"
        )
        if l2:
            loss = loss + model.get_regularization_loss().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def probabilities(at: Tensor) -> Tensor:
        pctr, pctcvr = out("test", at).unbind(1)
        return torch.stack([pctr, pctcvr / pctr, pctcvr], 1)  # it has no output for pCVR

    return judged(data, model, probabilities), {}


def ours_like_rechub(
    data: Data, seed: int, epochs: int, hidden: tuple[int, ...]
) -> tuple[Predictions, dict[str, Any]]:
    torch.manual_seed(seed)
    twin = rechub_model(data.schema, hidden)
    start = [twin.embedding.embed_dict[name].weight for name in data.tables]
    towers = partial(CopiedTowers, twin.tower_ctr, twin.tower_cvr)
    return ours(data, seed, epochs, hidden, tables="adam", towers=towers, start=lambda: start)


def ours_like_deepctr(
    data: Data, seed: int, epochs: int, hidden: tuple[int, ...]
) -> tuple[Predictions, dict[str, Any]]:
    torch.manual_seed(seed)
    twin = deepctr_model(data.schema, hidden, 0.0, seed)
    start = [twin.embedding_dict[name].weight for name in data.tables]
    towers = partial(
        CopiedTowers,
        nn.Sequential(twin.ctr_dnn, twin.ctr_dnn_final_layer),
        nn.Sequential(twin.cvr_dnn, twin.cvr_dnn_final_layer),
        twin.out.bias,
    )
    return ours(
        data, seed, epochs, hidden, tables="adam", towers=towers, start=lambda: start, summed=True
    )


PAIRS = {
    "torch-rechub, no weight decay": "esmm_fast, torch-rechub's towers and start",
    "DeepCTR-Torch, no L2": "esmm_fast, DeepCTR-Torch's towers and start",
    "torch-rechub, no weight decay, batches in reverse": "torch-rechub, no weight decay",
}
"""Variants that compute the same in exact arithmetic; the third shows what rounding alone does."""
VARIANTS: dict[str, Callable[..., tuple[Predictions, dict[str, Any]]]] = {
    BASELINE: ours,
    "esmm_fast, dense Adam": partial(ours, tables="adam"),
    "torch-rechub as it comes": partial(rechub, decay=RECHUB_DECAY),
    "torch-rechub, no weight decay": partial(rechub, decay=0.0),
    "torch-rechub, no weight decay, batches in reverse": partial(rechub, decay=0.0, reverse=True),
    "esmm_fast, torch-rechub's towers and start": ours_like_rechub,
    "DeepCTR-Torch as it comes": partial(deepctr, l2=DEEPCTR_L2),
    "DeepCTR-Torch, no L2": partial(deepctr, l2=0.0),
    "esmm_fast, DeepCTR-Torch's towers and start": ours_like_deepctr,
}


def apart_in_float64(data: Data, epochs: int, hidden: tuple[int, ...], peer: str) -> float:
    """Returns the greatest difference of a predicted probability within a pair, in float64."""
    labels = {half: found.double() for half, found in data.labels.items()}
    data = replace(data, labels=labels)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs, own = (VARIANTS[name](data, 1, epochs, hidden)[0] for name in (peer, PAIRS[peer]))
    finally:
        torch.set_default_dtype(before)
    pairs = [(getattr(theirs, task), getattr(own, task)) for task in ("pctr", "pcvr", "pctcvr")]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def run(asked: argparse.Namespace) -> None:
    """Runs the study and prints its tables."""
    torch.set_num_threads(1)
    log = study.log_of(asked)
    data = Data.of(log, asked.min_count, asked.batch_size)
    hidden = tuple(asked.hidden)
    plan = {
        "batch_size": asked.batch_size,
        "min_count": asked.min_count,
        "hidden": hidden,
        "epochs": asked.epochs,
        "lr": LR,
        "rows": sum(data.tables.values()),
        "peers": versions(),
    }
    name = f"agreement-{asked.impressions}-{asked.batch_size}-{asked.epochs}"
    found = study.Study("agreement", log, plan, asked.out / name)
    for seed in range(1, asked.seeds + 1):
        for variant, train in VARIANTS.items():
            found.run(variant, seed, partial(train, data, seed, asked.epochs, hidden))
    pairs = {
        peer: {
            "twin": twin,
            "difference": {t: found.difference(peer, twin, t) for t in study.TASKS},
            "greatest_difference_of_a_probability_in_float64": found.records.record(peer)
            or found.records.save(peer, apart_in_float64(data, asked.epochs, hidden, peer)),
            "greatest_difference_of_an_auc": {
                t: max(
                    abs(study.auc_of(a, t) - study.auc_of(b, t))
                    for a, b in zip(found.runs[peer], found.runs[twin], strict=True)
                )
                for t in study.TASKS
            },
        }
        for peer, twin in PAIRS.items()
    }
    found.finish(BASELINE, asked.json, pairs=pairs)
    for peer, pair in pairs.items():
        differences = ", ".join(
            f"{study.TASKS[t][0]} {study.points(d)}" for t, d in pair["difference"].items()
        )
        apart = pair["greatest_difference_of_a_probability_in_float64"]
        print(f"{peer} minus {pair['twin']}: {differences}; in float64 at most {apart:.1g} apart")


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch-rechub", "deepctr-torch")}


def options() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    found = study.parser(__doc__, impressions=200_000, seeds=5)
    found.add_argument("--min-count", type=int, default=10)
    found.add_argument("--batch-size", type=int, default=256)
    found.add_argument("--hidden", type=int, nargs="+", default=[200, 80])
    found.add_argument("--epochs", type=int, default=1)
    return found


if __name__ == "__main__":
    run(options().parse_args())
