"""ESMM, and the entire-space chain of K stages that ESMM is the case K = 2 of.

Letters: B impressions, U common rows, Fc / Fs fields of the common / impression side, D dimension,
K stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import ops
from .batch import Batch, check_batch
from .embedding import EmbeddingTables
from .schema import Field, Schema
from .tower import SplitLinear, Tower, at_least_float32, check_int, tower_logits

__all__ = ["ESMM", "ChainOutput", "ESMMOutput", "EntireSpaceChain", "SplitLinear", "Tower"]


class ChainOutput(NamedTuple):
    """What a chain of K stages returns: the stages' logits, and the probabilities they mean."""

    logits: Tensor  # [B, K], at least float32

    @property
    def stage_probabilities(self) -> Tensor:
        """P(stage k | stages before it), [B, K]."""
        return self.logits.sigmoid()

    @property
    def probabilities(self) -> Tensor:
        """P(stages 1 to k), [B, K]: the running product of the stage probabilities."""
        return self.logits.sigmoid().cumprod(1)


class ESMMOutput(ChainOutput):
    """What ESMM returns: the two stages of the chain by their names."""

    __slots__ = ()

    @property
    def ctr_logit(self) -> Tensor:
        """The logit of a click, [B]."""
        return self.logits[:, 0]

    @property
    def cvr_logit(self) -> Tensor:
        """The logit of a conversion given a click, [B]."""
        return self.logits[:, 1]

    @property
    def pctr(self) -> Tensor:
        """P(click), [B]."""
        return self.ctr_logit.sigmoid()

    @property
    def pcvr(self) -> Tensor:
        """P(conversion | click), [B]."""
        return self.cvr_logit.sigmoid()

    @property
    def pctcvr(self) -> Tensor:
        """P(click and conversion), [B]: pctr * pcvr."""
        return self.pctr * self.pcvr


class EntireSpaceChain(nn.Module):
    """K towers over pooled embeddings, trained on the products of their probabilities.

    Tower k gives P(stage k | stages before it). The loss is that of the products P_k over all
    impressions, so that no tower is trained on a selected part of them. One stage makes an ordinary
    network: ``stages=("ctr",)`` a CTR network; ``stages=("cvr",), label_columns=("conversion",)``,
    trained on clicked impressions, the CVR network of BASE.

    The towers' first layers are split (`SplitLinear`), and with shared tables run as one product.
    State: ``tables.*`` (``tables.<stage>.*`` unless shared), ``towers.<stage>.<layer>.*``.

    Args:
        fields: A schema whose fields have rows (`Vocabulary.sized`), fields, or ``{name: rows}``.
        stages: Names of the K stages, first stage first.
        label_columns: Column of `Batch.labels` of each stage, as a number or a name of the schema's
            labels. None: column k for stage k.
        dim: Embedding dimension D of fields that do not say one. The towers' inputs are as wide as
            the sum of their fields' dimensions.
        hidden: Sizes of each tower's hidden layers.
        shared_tables: All towers read the same tables; False gives each its own (ESMM-NS).
        dense_features: Number of dense float features per impression, `Batch.dense`; they go into
            the towers beside the pooled fields. 0 means the schema's.
        init_std: Standard deviation of the tables' rows at the start.
        seed: Tables and towers at the start are a function of this. Towers start like
            torch.nn.Linear: U(-1/sqrt(in), 1/sqrt(in)).
        feature_ids: Feature ids by row for each table, where the tables' start is keyed by them.
        sparse: The tables' ordinary gradients are sparse, for torch.optim.SparseAdam and the like.
        towers: Makes a module to take the towers' place, from the sizes of its two inputs. It is
            called with the common rows [U, in_common], the impressions [B, in_impression] and
            common_of_impression [B] (see `SplitLinear`), and returns the stages' logits [B, K].
            `hidden` is then not used; its start is its own.

    Raises:
        ValueError: an argument that does not fit, by name; fields without rows.
        TypeError: sizes that are not ints.

    Source: ESMM, arXiv 1804.07931, section 2.3, and its outlook on more than two stages.
    """

    def __init__(
        self,
        fields: Schema | Mapping[str, int] | Iterable[Field],
        stages: Sequence[str] = ("ctr", "cvr"),
        label_columns: Sequence[int | str] | None = None,
        dim: int = 18,
        hidden: Sequence[int] = (360, 200, 80),
        shared_tables: bool = True,
        dense_features: int = 0,
        *,
        init_std: float = 0.01,
        seed: int = 0,
        feature_ids: dict[str, Any] | None = None,
        sparse: bool = False,
        towers: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        schema = Schema.of(fields)
        if not schema.fields:
            raise ValueError("fields: expected at least one field, got none")
        check_int("dim", dim, 1)
        check_int("dense_features", dense_features, 0)
        if dense_features and schema.dense and dense_features != schema.dense:
            raise ValueError(
                f"dense_features: expected the schema's {schema.dense}, got {dense_features}"
            )
        self.schema = schema
        self.stages = _check_stages(stages)
        self.label_columns = _label_columns(label_columns, self.stages, schema)
        self.dim = dim
        self.dense_features = dense_features or schema.dense
        self.shared_tables = shared_tables

        def tables(stream: int) -> EmbeddingTables:
            return EmbeddingTables(
                schema,
                dim,
                init_std=init_std,
                seed=_derived_seed(seed, stream),
                feature_ids=feature_ids,
                sparse=sparse,
            )

        self.tables: EmbeddingTables | nn.ModuleDict
        if shared_tables:
            self.tables = tables(0)
        else:
            self.tables = nn.ModuleDict({s: tables(k) for k, s in enumerate(self.stages)})
        in_common = sum(f.dim or dim for f in schema.common)
        in_impression = sum(f.dim or dim for f in schema.impression) + self.dense_features
        self.towers: nn.Module
        if towers is not None:
            if not shared_tables:
                raise ValueError("towers: expected shared_tables=True with towers of your own")
            self.towers = towers(in_common, in_impression)
            return
        self.towers = nn.ModuleDict({s: Tower(in_common, in_impression, hidden) for s in stages})
        generator = torch.Generator().manual_seed(_derived_seed(seed, -1))
        for tower in self._towers():
            tower.reset_parameters(generator)

    def _towers(self) -> list[Tower]:
        return list(self.towers.values())  # type: ignore[operator]

    def embedding_tables(self) -> list[EmbeddingTables]:
        """Returns the tables: one, or one per stage where they are not shared."""
        if isinstance(self.tables, EmbeddingTables):
            return [self.tables]
        return list(self.tables.values())  # type: ignore[arg-type]

    def tower_parameters(self) -> Iterator[nn.Parameter]:
        """Yields every parameter that is not a table."""
        yield from self.towers.parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops every gradient, also what waits in the tables for a fused optimizer's step."""
        super().zero_grad(set_to_none)
        for tables in self.embedding_tables():
            tables.zero_grad(set_to_none)

    def _logits(self, batch: Batch) -> Tensor:  # [B, K]
        check_batch(batch, self.schema)
        which = batch.common_of_impression
        if isinstance(self.tables, EmbeddingTables):
            pooled = self._with_dense(self.tables(batch), batch)
            if isinstance(self.towers, nn.ModuleDict):
                return tower_logits(self._towers(), *pooled, which)
            logits = self.towers(*pooled, which)
            expected = (len(which), len(self.stages))
            if logits.shape != expected:
                raise ValueError(
                    f"towers: expected logits of shape {list(expected)}, one column for each of "
                    f"the stages {list(self.stages)}, got {list(logits.shape)}"
                )
            return at_least_float32(logits)
        of_stages = [
            tower(*self._with_dense(tables(batch), batch), which)
            for tower, tables in zip(self._towers(), self.tables.values(), strict=True)
        ]
        return torch.stack(of_stages, 1)

    def _with_dense(self, pooled: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        if not self.dense_features:
            return pooled
        common, impression = pooled
        expected = [impression.shape[0], self.dense_features]
        if batch.dense is None or list(batch.dense.shape) != expected:
            got = None if batch.dense is None else list(batch.dense.shape)
            raise ValueError(f"batch.dense: expected shape {expected}, got {got}")
        return common, torch.cat([impression, batch.dense.to(impression.dtype)], 1)

    def forward(self, batch: Batch) -> ChainOutput:
        """Returns the stages' logits for each impression of the batch, a `ChainOutput`."""
        return ChainOutput(self._logits(batch))

    def loss(self, out: ChainOutput, batch: Batch) -> Tensor:
        """Returns the mean loss of the batch, []: sum_k BCE(t_k, P_k) of each impression, weighted.

        Labels t_k are the batch's as they are: that a conversion without a click counts as none is
        decided where batches are made. See `ops.product_loss`.
        """
        columns, labels = self.label_columns, batch.labels
        if labels.dim() != 2 or labels.shape[1] <= max(columns):
            raise ValueError(
                f"batch.labels: expected shape [B, {max(columns) + 1} or more], "
                f"got {list(labels.shape)}"
            )
        if columns == tuple(range(columns[0], columns[0] + len(columns))):
            labels = labels[:, columns[0] : columns[0] + len(columns)]
        else:
            labels = torch.stack([labels[:, c] for c in columns], 1)
        return ops.product_loss(out.logits, labels, batch.impression_weights)


class ESMM(EntireSpaceChain):
    """The entire-space multi-task model: a CTR and a CVR tower, trained as pCTR and pCTR * pCVR.

    Loss: sum over all impressions of BCE(click, pCTR) + BCE(click and conversion, pCTR * pCVR).

    Args:
        fields: A schema whose fields have rows (`Vocabulary.sized`), fields, or ``{name: rows}``.
        dim: Embedding dimension D of fields that do not say one.
        hidden: Sizes of each tower's hidden layers; ``(200, 80)`` goes from the concatenation
            straight into 200.
        shared_tables: Both towers read the same tables; False is ESMM-NS.
        dense_features: Number of dense float features per impression; 0 means the schema's.
        init_std, seed, feature_ids, sparse, towers: As in `EntireSpaceChain`.

    Source: ESMM, arXiv 1804.07931, Figure 2 and Eq. 3.

    >>> from esmm_fast.reference import batch_plan
    >>> model = ESMM({"item": 10, "shop": 4}, dim=2, hidden=(8,))
    >>> rows = torch.tensor([3, 10 + 1, 7, 10 + 2])  # (item 3, shop 1), (item 7, shop 2)
    >>> plan = batch_plan(rows, torch.arange(5))
    >>> labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> batch = Batch(plan, 0, torch.zeros(2, dtype=torch.int32), labels)
    >>> out = model(batch)
    >>> bool((out.pctcvr == out.pctr * out.pcvr).all()), out.ctr_logit.shape
    (True, torch.Size([2]))
    >>> model.loss(out, batch).backward()
    """

    predicts = ("ctr", "cvr", "ctcvr")

    def __init__(
        self,
        fields: Schema | Mapping[str, int] | Iterable[Field],
        dim: int = 18,
        hidden: Sequence[int] = (360, 200, 80),
        shared_tables: bool = True,
        dense_features: int = 0,
        *,
        init_std: float = 0.01,
        seed: int = 0,
        feature_ids: dict[str, Any] | None = None,
        sparse: bool = False,
        towers: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        schema = Schema.of(fields)
        if len(schema.labels) != 2:
            raise ValueError(
                f"fields: expected a schema of two labels, got {list(schema.labels)}: "
                "EntireSpaceChain(schema, stages=[...]), the method chain of the command line, "
                "takes any number"
            )
        super().__init__(
            schema,
            ("ctr", "cvr"),
            None,
            dim,
            hidden,
            shared_tables,
            dense_features,
            init_std=init_std,
            seed=seed,
            feature_ids=feature_ids,
            sparse=sparse,
            towers=towers,
        )

    def forward(self, batch: Batch) -> ESMMOutput:
        """Returns logits and probabilities for each impression of the batch."""
        return ESMMOutput(self._logits(batch))


def _derived_seed(seed: int, stream: int) -> int:
    """Returns the seed of a stream: of stage k's tables (k = 0: `seed` itself), of the towers (-1).

    Neighbouring seeds must not share a stream, hence the multiple of the golden ratio.
    """
    return (seed + stream * 0x9E3779B97F4A7C15) % 2**63


def _check_stages(stages: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stages, str) or not stages or len(set(stages)) != len(stages):
        raise ValueError(f"stages: expected one or more different names, got {stages!r}")
    for stage in stages:
        if not isinstance(stage, str) or not stage.isidentifier() or hasattr(nn.ModuleDict, stage):
            raise ValueError(f"stages: expected names like 'ctr', got {stage!r}")
    return tuple(stages)


def _label_columns(
    columns: Sequence[int | str] | None, stages: tuple[str, ...], schema: Schema
) -> tuple[int, ...]:
    if columns is None:
        return tuple(range(len(stages)))
    if isinstance(columns, str) or len(columns) != len(stages):
        raise ValueError(
            f"label_columns: expected one for each of the stages {list(stages)}, got {columns!r}"
        )
    resolved = []
    for column in columns:
        if isinstance(column, str):
            if column not in schema.labels:
                raise ValueError(
                    f"label_columns: expected one of {list(schema.labels)}, got {column!r}"
                )
            column = schema.labels.index(column)
        check_int("label_columns", column, 0)
        resolved.append(column)
    return tuple(resolved)
