"""Does ESMM collapse? Many seeds as this package trains it, and the public failure beside it.

python bench/collapse.py [--part ours|failure|all] [--json]. "ours": ESMM and ESMM-NS in float32 and
bfloat16 autocast. "failure": the towers in plain layers whose logits stay in autocast's precision,
with every combination of three factors that scripts on the net have in common:

- precision: float32; float16 autocast, as it is (no GradScaler), or with one
- tables: drawn from N(0, 0.01) (this package's start), or N(0, 1) (torch.nn.Embedding's own)
- loss: `product_loss` of the logits; or p = sigmoid * sigmoid, clamped to [1e-7, 1 - 1e-7], both in
  autocast's precision, then binary_cross_entropy

A run has collapsed where the AUC of pCVR or pCTCVR on the test set is below `COLLAPSED`, or where
pCVR is one number for (nearly) all impressions.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import study
import torch
from torch import Tensor, nn

import esmm_fast as ef
from esmm_fast.config import Settings
from esmm_fast.evaluation import Predictions, predict
from esmm_fast.schedule import default_optimizers

COLLAPSED = 0.52
"""An AUC below this counts as near 0.5."""
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SETTINGS = Settings(batch_size=128, min_count=5, group_limit=8, hidden=(200, 80))


class PlainTowers(nn.Module):
    """Two towers as `nn.Sequential` over the concatenation, for `towers=`."""

    def __init__(self, in_common: int, in_impression: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.towers = nn.ModuleList()
        for _ in range(2):
            layers: list[nn.Module] = []
            for size, out in pairwise((in_common + in_impression, *hidden)):
                layers += [nn.Linear(size, out), nn.ReLU()]
            self.towers.append(nn.Sequential(*layers, nn.Linear(hidden[-1], 1)))

    def forward(self, common: Tensor, impression: Tensor, which: Tensor) -> Tensor:
        x = torch.cat([common[which], impression], 1)
        return torch.cat([tower(x) for tower in self.towers], 1)


class Variant(nn.Module):
    """A model whose forward pass runs under autocast, and whose loss may be the clamped one."""

    def __init__(self, model: ef.ESMM, dtype: torch.dtype | None, clamped: bool) -> None:
        super().__init__()
        self.model, self.dtype, self.clamped = model, dtype, clamped

    def forward(self, batch: ef.Batch) -> Any:
        with torch.autocast("cpu", self.dtype) if self.dtype else nullcontext():
            return self.model(batch)

    def loss(self, out: Any, batch: ef.Batch) -> Tensor:
        if not self.clamped:
            return self.model.loss(out, batch)
        # The model hands out float32 copies of the logits; a script goes on in autocast's dtype.
        pctr, pcvr = out.logits.to(self.dtype or torch.float32).sigmoid().unbind(1)
        both = torch.stack([pctr, pctr * pcvr], 1).clamp(1e-7, 1 - 1e-7)
        loss = nn.functional.binary_cross_entropy(both.float(), batch.labels, reduction="none")
        return loss.sum(1).mean()


class Scaled(Variant):
    """A `Variant` with GradScaler: its loss is the scaled one, its steps are the scaler's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scaler = torch.amp.GradScaler("cpu")

    def train_on(self, batches: Any, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for batch in batches:
            loss = self.loss(self(batch), batch)
            self.scaler.scale(loss).backward()
            for optimizer in optimizers:
                self.scaler.step(optimizer)
                optimizer.zero_grad()
            self.scaler.update()


def trained(
    log: study.Log,
    vocabulary: ef.Vocabulary,
    settings: Settings,
    seed: int,
    *,
    shared: bool = True,
    precision: str = "float32",
    scaler: bool = False,
    init_std: float | None = None,
    clamped: bool = False,
    plain: bool = False,
) -> tuple[Predictions, dict[str, Any]]:
    """Returns what a variant predicts for the test set after its training, and facts about it."""
    torch.manual_seed(seed)
    hidden = settings.hidden
    model = ef.ESMM(
        vocabulary.sized(log.train.schema),
        settings.dim,
        hidden,
        shared,
        init_std=settings.init_std if init_std is None else init_std,
        seed=seed,
        feature_ids={t: vocabulary.feature_ids(t) for t in vocabulary.tables},
        towers=(lambda common, own: PlainTowers(common, own, hidden)) if plain else None,
    )
    variant = (Scaled if scaler else Variant)(model, DTYPES[precision], clamped)
    batches = log.train.batches(
        settings.batch_size,
        vocabulary=vocabulary,
        group_limit=settings.group_limit,
        seed=seed,
    )
    optimizers = default_optimizers(model, settings.lr)
    failed = None
    try:
        if isinstance(variant, Scaled):
            variant.train_on(batches, optimizers)
        else:
            ef.fit(variant, batches, optimizers=optimizers, epochs=1, progress=False)
    except (FloatingPointError, RuntimeError) as error:
        if "between 0 and 1" not in str(error) and "finite" not in str(error):
            raise
        failed = str(error)  # of BCE, whose input is nan, or of `fit`, which stops at such a loss
    test = log.test.batches(8192, vocabulary=vocabulary, shuffle=False, schema=log.train.schema)
    found = predict(variant, test)
    return _finite(found), {**_spread(found), "failed": failed}


def _finite(found: Predictions) -> Predictions:
    """Returns predictions with 0.5 where a model says nan: no order, an AUC of 0.5."""
    for column in (found.pctr, found.pcvr, found.pctcvr):
        assert column is not None
        np.nan_to_num(column, copy=False, nan=0.5)
    return found


def _spread(found: Predictions) -> dict[str, Any]:
    """Returns how much of the predictions is left to rank by."""
    pcvr, pctcvr = found.pcvr, found.pctcvr
    assert pcvr is not None and pctcvr is not None
    lowest, highest = np.nanquantile(pcvr, [0.05, 0.95])
    return {
        "pcvr_quantiles_5_95": [float(lowest), float(highest)],
        "not_finite": float((~np.isfinite(pcvr)).mean()),
        "most_common_pcvr": float(np.unique(pcvr, return_counts=True)[1].max() / len(pcvr)),
        "below_clamp": float((pctcvr < 1e-7).mean()),
    }


def ours() -> dict[str, dict[str, Any]]:
    """Returns the variants of this package's own training."""
    return {
        f"{title}, {precision}": {"shared": shared, "precision": precision}
        for title, shared in (("ESMM", True), ("ESMM-NS", False))
        for precision in ("float32", "bfloat16")
    }


def failure() -> dict[str, dict[str, Any]]:
    """Returns every combination of the public failure's factors."""
    found = {}
    for precision, scaler, std, clamped in itertools.product(
        ("float32", "float16"), (False, True), (0.01, 1.0), (False, True)
    ):
        if scaler and precision == "float32":
            continue
        name = ", ".join(
            [
                precision + (" + GradScaler" if scaler else ""),
                f"N(0, {std:g})",
                "clamp + BCE" if clamped else "product_loss",
            ]
        )
        found[name] = {
            "precision": precision,
            "scaler": scaler,
            "init_std": std,
            "clamped": clamped,
            "plain": True,
        }
    return found


def collapsed(run: dict[str, Any]) -> bool:
    """Whether a run ended near an AUC of 0.5, or with one pCVR for nearly all."""
    aucs = [study.auc_of(run, task) for task in ("cvr", "ctcvr")]
    return bool(min(aucs) < COLLAPSED or run["most_common_pcvr"] > 0.9)


def run(asked: argparse.Namespace) -> None:
    """Runs the study and prints its tables."""
    torch.set_num_threads(1)
    log = study.log_of(asked)
    settings = msgspec.structs.replace(SETTINGS, batch_size=asked.batch_size, lr=asked.lr)
    vocabulary = ef.Vocabulary.from_dataset(log.train, min_count=settings.min_count)
    for part, variants, seeds in (
        ("ours", ours(), asked.seeds),
        ("failure", failure(), asked.failure_seeds),
    ):
        if asked.part not in (part, "all"):
            continue
        name = "collapse" if part == "ours" else "collapse_failure"
        plan = {"settings": msgspec.to_builtins(settings)}
        out = asked.out / f"{name}-{asked.impressions}-{asked.ctr:g}-{asked.batch_size}"
        found = study.Study(name, log, plan, out)
        for seed in range(1, seeds + 1):
            for variant, arguments in variants.items():
                found.run(
                    variant,
                    seed,
                    lambda a=arguments, s=seed: trained(log, vocabulary, settings, s, **a),
                )
        counts = {v: sum(map(collapsed, runs)) for v, runs in found.runs.items()}
        failed = {v: sum(r["failed"] is not None for r in runs) for v, runs in found.runs.items()}
        found.finish(None, asked.json, collapsed=counts, stopped_by_a_loss=failed)
        for variant, runs in found.runs.items():
            least = [min(study.auc_of(r, t) for r in runs) for t in ("cvr", "ctcvr")]
            print(
                f"{variant}: {counts[variant]} of {len(runs)} collapsed, {failed[variant]} stopped "
                f"by a loss that is not finite; least CVR {100 * least[0]:.2f}, CTCVR "
                f"{100 * least[1]:.2f}"
            )


def options() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    found = study.parser(__doc__, impressions=200_000, seeds=20)
    found.add_argument("--part", choices=["ours", "failure", "all"], default="all")
    found.add_argument("--failure-seeds", type=int, default=5)
    found.add_argument("--batch-size", type=int, default=SETTINGS.batch_size)
    found.add_argument("--lr", type=float, default=SETTINGS.lr)
    return found


if __name__ == "__main__":
    run(options().parse_args())
