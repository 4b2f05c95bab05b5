"""What a method is, and how one is trained: networks, each on its view, and what is made of them.

A method is a description (`catalogue` lists them); training and evaluation are the same code for
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .batch import Batch
from .config import Settings
from .data.dataset import Dataset
from .evaluation import Predictions, predict
from .samplers import Context, View, entire_space
from .schedule import default_optimizers, schedulers
from .schema import Schema
from .train import History, Training
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Network:
    """One network of a method: its model and the impressions it is trained on."""

    model: Callable[..., nn.Module]
    """model(schema, dim=, hidden=, init_std=, seed=, feature_ids=) -> nn.Module."""
    view: View = entire_space
    """The part of the training set that is trained on."""
    shared: str | None = None
    """Networks of one name here are the same network, so a comparison trains it once a repeat."""
    needs: Mapping[str, View] = field(default_factory=dict)
    """Earlier networks whose predictions `view` reads, and the view that they predict."""
    entire_steps: bool = False
    """Trains for as many steps as the entire space takes, however small the view."""

    def build(
        self,
        schema: Schema,
        settings: Settings,
        seed: int,
        feature_ids: dict[str, Any] | None = None,
    ) -> nn.Module:
        """Returns the network, initialized by `seed` alone.

        Args:
            schema: With table rows, as `Vocabulary.sized` gives it.
            settings: Dimensions, hidden layers and initialization.
            seed: Of the initial tables and towers.
            feature_ids: Feature ids [rows] of each table by row; the initial value of a row then
                depends on its id and not on its place. None: by place.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(
                schema.with_tables(settings.dims),
                dim=settings.dim,
                hidden=settings.hidden,
                init_std=settings.init_std,
                seed=seed,
                feature_ids=feature_ids,
            )


@dataclass(frozen=True)
class Method:
    """A way to predict pCVR: the networks it trains, and what is made of their predictions."""

    name: str
    """As it is typed: --methods base,esmm."""
    title: str
    """As the paper writes it."""
    formula: str
    """What is minimized, and how pCVR is made."""
    source: str
    """Where it is defined."""
    target: str
    """What its pCVR really estimates."""
    networks: Mapping[str, Network]
    """By name, in the order of training."""
    family: str = ""
    """The method that this is one setting of, as it is typed; empty: `name`."""
    setting: str = ""
    """What sets it apart in its family: "10 %"."""
    stages: bool = False
    """Predicts every label of the schema (`evaluation.stage_columns`), not pctr, pcvr, pctcvr."""
    instability: str = ""
    """Where it is known to fail."""
    combine: Callable[[Mapping[str, Predictions]], Predictions] = field(
        default=lambda networks: next(iter(networks.values()))
    )
    """Predictions of the networks, by name -> predictions of the method."""


@dataclass
class Trained:
    """The trained networks of a method, and what their training did."""

    method: Method
    schema: Schema
    networks: dict[str, nn.Module] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each network was trained on: see `view_facts`."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all networks together."""
        return sum(history.steps for history in self.histories.values())

    def predict(
        self,
        dataset: Dataset,
        vocabulary: Vocabulary,
        settings: Settings,
        *,
        progress: bool = False,
    ) -> Predictions:
        """Returns the method's predictions for every impression of a dataset, in its order."""
        batches = evaluation_batches(dataset, vocabulary, settings, self.schema)
        by_network = {
            name: predict(network, batches, progress=progress, description=f"predict {name}")
            for name, network in self.networks.items()
        }
        return self.method.combine(by_network)


def build_networks(
    method: Method, schema: Schema, vocabulary: Vocabulary, settings: Settings, seed: int
) -> dict[str, nn.Module]:
    """Returns the networks of a method, initialized by `seed`, by name."""
    sized = vocabulary.sized(schema)
    feature_ids = {table: vocabulary.feature_ids(table) for table in sized.tables}
    return {
        name: network.build(sized, settings, seed, feature_ids)
        for name, network in method.networks.items()
    }


def fit_method(
    method: Method,
    train: Dataset,
    vocabulary: Vocabulary,
    settings: Settings,
    *,
    seed: int | None = None,
    valid: Dataset | None = None,
    predictions: Mapping[str, Predictions] | None = None,
    prepare: Callable[[str, Training], None] | None = None,
    progress: bool = False,
) -> Trained:
    """Returns a method trained on a dataset, network by network.

    Args:
        method: What is trained.
        train: All impressions; each network takes its view of them.
        vocabulary: The tables' rows; of all impressions, whatever a network's view is.
        settings: Of every network.
        seed: Of the initialization, the views and the order; None means `settings.seed`.
        valid: Evaluated after each epoch of each network.
        predictions: Of networks that were trained before, over the views that a network `needs`;
            None: the method's own networks predict them.
        prepare: Called with the name and the training of each network before it runs; it can set
            callbacks and load a state into it.
        progress: Shows bars.

    Raises:
        ValueError: If a network's view holds no impressions.
    """
    seed = settings.seed if seed is None else seed
    trained = Trained(method, train.schema)
    checked = (
        None if valid is None else evaluation_batches(valid, vocabulary, settings, train.schema)
    )
    for name, model in build_networks(method, train.schema, vocabulary, settings, seed).items():
        network = method.networks[name]
        known = dict(predictions or {})
        for other, part in network.needs.items():
            if other not in known:
                seen = part(train, Context(seed, known))
                known[other] = predict(
                    trained.networks[other],
                    evaluation_batches(seen, vocabulary, settings, train.schema),
                    progress=progress,
                )
        view = network.view(train, Context(seed, known))
        if not len(view):
            raise ValueError(
                f"{method.name}: network {name!r} is trained on a part of {train.path} "
                f"that holds none of its {len(train)} impressions"
            )
        trained.views[name] = view_facts(view)
        batches = view.batches(
            settings.batch_size,
            vocabulary=vocabulary,
            group_limit=settings.group_limit,
            seed=seed,
            labels=settings.labels,
        )
        entire = settings.epochs * -(-len(train) // settings.batch_size)
        total = entire if network.entire_steps else settings.epochs * len(batches)
        if settings.warmup_steps > total:
            raise ValueError(
                f"warmup_steps: expected at most the {total} steps of network {name!r}, "
                f"got {settings.warmup_steps}"
            )
        optimizers = default_optimizers(
            model, settings.lr, settings.betas, settings.eps, settings.table_optimizer
        )
        training = Training(
            model,
            batches,
            epochs=settings.epochs,
            max_steps=entire if network.entire_steps else None,
            optimizers=optimizers,
            schedulers=schedulers(
                optimizers,
                settings.schedule,
                warmup=settings.warmup_steps,
                total=total,
                final=settings.final_lr_share,
            ),
            valid=checked,
            progress=progress,
            description=f"{method.title}: {name}" if len(method.networks) > 1 else method.title,
        )
        if prepare is not None:
            prepare(name, training)
        trained.histories[name] = training.run()
        trained.networks[name] = model
    return trained


def view_facts(view: Dataset) -> dict[str, Any]:
    """Returns impressions, clicks and conversions of a view, and how unequal its weights are.

    `effective_impressions` is (sum w)^2 / sum w^2: as many impressions of equal weight have a mean
    of about the same variance.
    """
    labels = view.labels("and")
    facts: dict[str, Any] = {
        "impressions": len(view),
        "clicks": int(labels[:, 0].sum()),
        "conversions": int(labels[:, -1].sum()),
    }
    weights = view.impression_weights
    if weights is not None and len(weights):
        w = weights.astype(np.float64)
        facts["greatest_weight"] = float(w.max() / w.mean())
        facts["effective_impressions"] = float(w.sum() ** 2 / (w @ w))
    return facts


def evaluation_batches(
    dataset: Dataset, vocabulary: Vocabulary, settings: Settings, schema: Schema
) -> Iterable[Batch]:
    """Returns the batches of an evaluation: every impression once, in order, labels click AND.

    The schema is the training set's: it says the order of the bags.
    """
    return dataset.batches(
        settings.evaluation_batch_size,
        vocabulary=vocabulary,
        shuffle=False,
        labels="and",
        schema=schema,
    )
