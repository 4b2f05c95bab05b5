"""The methods that are compared: which networks they train on what, and how pCVR is made of them.

Every network is the paper's: one table per field, sum pooling, concatenation, a tower of hidden
layers. A method is a description; training and evaluation are the same code for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .config import Settings
from .dataset import Dataset
from .model import ESMM, ChainOutput, EntireSpaceChain
from .schedule import default_optimizers, schedulers
from .schema import Schema
from .train import History, Predictions, Training, predict
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Context:
    """What a view may depend on besides the training set."""

    seed: int
    """Seeds whatever a view draws; another one in each repeat."""


def entire_space(train: Dataset, context: Context) -> Dataset:
    """Returns all impressions."""
    return train


def clicked(train: Dataset, context: Context) -> Dataset:
    """Returns the clicked impressions."""
    return train.select(train.labels("and")[:, 0] == 1)


class CTROutput(ChainOutput):
    """What `CTRNetwork` returns."""

    __slots__ = ()

    @property
    def pctr(self) -> Tensor:
        """P(click), [B]."""
        return self.logits[:, 0].sigmoid()


class CTRNetwork(EntireSpaceChain):
    """The network of one task, p(click | impression); the arguments are those of `ESMM`."""

    def __init__(self, fields: Any, **options: Any) -> None:
        super().__init__(fields, ("ctr",), ("click",), **options)

    def forward(self, batch: Batch) -> CTROutput:
        """Returns logit and probability for each impression of the batch."""
        return CTROutput(self._logits(batch))


class CVROutput(ChainOutput):
    """What `CVRNetwork` returns."""

    __slots__ = ()

    @property
    def pcvr(self) -> Tensor:
        """P(conversion | click), [B]."""
        return self.logits[:, 0].sigmoid()


class CVRNetwork(EntireSpaceChain):
    """The network of one task, p(conversion | click), for batches of clicked impressions."""

    def __init__(self, fields: Any, **options: Any) -> None:
        super().__init__(fields, ("cvr",), ("conversion",), **options)

    def forward(self, batch: Batch) -> CVROutput:
        """Returns logit and probability for each impression of the batch."""
        return CVROutput(self._logits(batch))


@dataclass(frozen=True)
class Network:
    """One network of a method: its model and the impressions it is trained on."""

    model: Callable[..., nn.Module]
    """model(schema, dim=, hidden=, init_std=, seed=, feature_ids=) -> nn.Module."""
    view: Callable[[Dataset, Context], Dataset] = entire_space
    """The part of the training set that is trained on."""

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
            settings: Dimension, hidden layers and initialization.
            seed: Of the initial tables and towers.
            feature_ids: Feature ids [rows] of each table by row; the initial value of a row then
                depends on its id and not on its place. None: by place.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(
                schema,
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
    combine: Callable[[Mapping[str, Predictions]], Predictions] = field(
        default=lambda networks: next(iter(networks.values()))
    )
    """Predictions of the networks, by name -> predictions of the method."""


_PAPER = "Ma et al., Entire Space Multi-Task Model, SIGIR 2018 (arXiv:1804.07931)"

CTR = Method(
    name="ctr",
    title="CTR network",
    formula="minimize BCE(click, pCTR) over all impressions",
    source=f"{_PAPER}, section 3.2",
    target="p(click | impression)",
    networks={"ctr": Network(CTRNetwork)},
)
"""The separately trained network whose pCTR the protocol multiplies with every method's pCVR."""

BASE = Method(
    name="base",
    title="BASE",
    formula="minimize BCE(conversion, pCVR) over clicked impressions",
    source=f"{_PAPER}, sections 2.2 and 3.1",
    target=(
        "p(conversion | impression, click) as clicked impressions show it; it is used on all "
        "impressions, most of which are unlike those it was trained on (sample selection bias)"
    ),
    networks={"cvr": Network(CVRNetwork, clicked)},
)
"""The CVR network trained on clicked impressions alone."""

ESMM_METHOD = Method(
    name="esmm",
    title="ESMM",
    formula=(
        "minimize BCE(click, pCTR) + BCE(click and conversion, pCTR * pCVR) over all impressions; "
        "both towers share the tables"
    ),
    source=f"{_PAPER}, Eq. 3",
    target=(
        "p(conversion | impression, click), as the factor that turns pCTR into "
        "p(click and conversion | impression) over the entire space"
    ),
    networks={"esmm": Network(ESMM)},
)
"""The entire-space model; it has a pCTR of its own."""

METHODS: dict[str, Method] = {method.name: method for method in (BASE, ESMM_METHOD)}
"""The methods of a comparison, by name."""

TRAINABLE: dict[str, Method] = {CTR.name: CTR, **METHODS}
"""What `esmm-fast train` can train, by name."""


@dataclass
class Trained:
    """The trained networks of a method, and what their training did."""

    method: Method
    schema: Schema
    networks: dict[str, nn.Module] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)

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
        view = method.networks[name].view(train, Context(seed))
        if not len(view):
            raise ValueError(
                f"{method.name}: network {name!r} is trained on a part of {train.path} "
                f"that holds none of its {len(train)} impressions"
            )
        batches = view.batches(
            settings.batch_size,
            vocabulary=vocabulary,
            group_limit=settings.group_limit,
            seed=seed,
            labels=settings.labels,
        )
        optimizers = default_optimizers(
            model, settings.lr, settings.betas, settings.eps, settings.table_optimizer
        )
        training = Training(
            model,
            batches,
            epochs=settings.epochs,
            optimizers=optimizers,
            schedulers=schedulers(
                optimizers,
                settings.schedule,
                warmup=settings.warmup_steps,
                total=settings.epochs * len(batches),
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


def by_name(name: str, among: Mapping[str, Method] = METHODS) -> Method:
    """Returns the method of a name.

    Raises:
        ValueError: Listing the names there are.
    """
    if name not in among:
        raise ValueError(f"method: expected one of {', '.join(among)}, got {name!r}")
    return among[name]
