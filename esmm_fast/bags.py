"""Batches from a user's own bags: checks, bag order, the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ops.batch_plan import batch_plan
from .schema import Field, Schema
from .vocabulary import Vocabulary

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass
class _Bags:
    """One field's bags, checked."""

    rows: Tensor  # [N_f] int64, rows of the field's table
    lengths: Tensor  # [bags] int64
    weights: Tensor | None  # [N_f] float32


def batch_arguments(
    bags: Mapping[str, tuple[Any, ...]],
    labels: Any,
    *,
    schema: Schema | Mapping[str, int],
    common_of_impression: Any,
    vocabulary: Vocabulary | None,
    padding: int | None,
    dense: Any,
    impression_weights: Any,
    sample_id: Any,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the fields of the batch that `Batch.from_bags` describes, by name."""
    schema = Schema.of(schema)
    if vocabulary is not None:
        schema = vocabulary.sized(schema)
    table_rows, bases = schema.table_rows, schema.row_bases
    names = [f.name for f in schema.fields]
    if missing := [name for name in names if name not in bags]:
        raise ValueError(f"bags: no bags of field {', '.join(map(repr, missing))}")
    if unknown := [name for name in bags if name not in names]:
        raise ValueError(
            f"bags: the schema has no field {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(names)}"
        )
    read = {f.name: _read(f, bags[f.name], table_rows, vocabulary, padding) for f in schema.fields}
    common = _bag_count(schema.common, read)
    if common is None:
        common = 0
    impressions = _bag_count(schema.impression, read)
    for other in (labels, common_of_impression, sample_id):
        if impressions is None and other is not None:
            impressions = len(other)
    if impressions is None:
        raise ValueError("bags: no impression field, labels or common_of_impression gives B")

    joined = [
        _interleave(schema.common, common, read),
        _interleave(schema.impression, impressions, read),
    ]
    row_base = {f.name: bases[f.table_name] for f in schema.fields}
    rows = torch.cat([_gather(side, read, row_base) for side in joined])
    lengths = torch.cat([side.lengths for side in joined])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    weights = None
    if any(b.weights is not None for b in read.values()):
        weights = torch.cat([_gather_weights(side, read) for side in joined])
    stages = len(schema.labels)
    return dict(
        plan=batch_plan(rows.int(), offsets.int(), weights, sum(table_rows.values())),
        common=common,
        common_of_impression=_common_of_impression(
            common_of_impression, impressions, common, schema
        ),
        labels=_labels(labels, impressions, stages),
        dense=_floats("dense", dense, (impressions, schema.dense)),
        impression_weights=_floats("impression_weights", impression_weights, (impressions,)),
        sample_id=None if sample_id is None else _integers("sample_id", sample_id, impressions),
        extra={name: _extra(name, column, impressions) for name, column in extra.items()},
    )


def _tensor(what: str, value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{what}: expected a tensor on cpu, got one on {tensor.device}; build the batch on "
            "the CPU and "
            "call .to(device)"
        )
    return tensor.detach()


def _read(
    field: Field,
    bags: tuple[Any, ...],
    table_rows: Mapping[str, int],
    vocabulary: Vocabulary | None,
    padding: int | None,
) -> _Bags:
    """Returns one field's bags as lengths, rows of its table, and weights."""
    here = f"field {field.name!r}"
    if not isinstance(bags, tuple) or not 1 <= len(bags) <= 3:
        raise ValueError(
            f"{here}: expected a tuple (rows, offsets, weights), got {type(bags).__name__}"
            + (f" of {len(bags)}" if isinstance(bags, tuple) else "")
        )
    rows, offsets, weights = (*bags, None, None)[:3]
    name = "rows" if vocabulary is None else "ids"
    rows = _tensor(f"{here}: {name}", rows)
    if rows.numel() == 0:
        rows = rows.long()  # an empty list has no integer dtype
    if rows.dtype not in _INTEGERS:
        raise ValueError(f"{here}: {name}: expected integers, got {rows.dtype}")
    rows = rows.long()
    weights = None if weights is None else _tensor(f"{here}: weights", weights)
    if weights is not None and weights.shape != rows.shape:
        raise ValueError(
            f"{here}: weights: expected the shape of {name}, {list(rows.shape)}, got "
            f"{list(weights.shape)}"
        )
    if rows.dim() == 2:
        rows, lengths, weights = _unpad(here, rows, offsets, weights, padding)
    elif rows.dim() == 1:
        lengths = _lengths(here, offsets, rows.numel())
    else:
        raise ValueError(f"{here}: {name}: expected shape [N] or [bags, L], got {list(rows.shape)}")
    if weights is not None:
        if not weights.is_floating_point():
            raise ValueError(f"{here}: weights: expected floats, got {weights.dtype}")
        weights = weights.float()
    if vocabulary is not None:
        if rows.numel() and rows.min() < 0:
            at = int((rows < 0).nonzero()[0])
            raise ValueError(f"{here}: ids[{at}] = {int(rows[at])}: expected an id of at least 0")
        rows = torch.from_numpy(vocabulary.lookup(field.table_name, rows.numpy())).long()
    size = table_rows[field.table_name]
    outside = (rows < 0) | (rows >= size)
    if outside.any():
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"{here}: rows[{at}] = {int(rows[at])} is outside the table of {size} rows"
        )
    return _Bags(rows, lengths, weights)


def _lengths(here: str, offsets: Any, occurrences: int) -> Tensor:
    """Returns the length of every bag, [bags] int64; offsets None: one row per bag."""
    if offsets is None:
        return torch.ones(occurrences, dtype=torch.int64)
    offsets = _tensor(f"{here}: offsets", offsets)
    if offsets.dtype not in _INTEGERS or offsets.dim() != 1 or offsets.numel() == 0:
        raise ValueError(
            f"{here}: offsets: expected integers [bags + 1], got {offsets.dtype} "
            f"{list(offsets.shape)}"
        )
    offsets = offsets.long()
    lengths = offsets.diff()
    if offsets[0] != 0:
        raise ValueError(f"{here}: offsets[0] = {int(offsets[0])}: expected 0")
    if (lengths < 0).any():
        at = int((lengths < 0).nonzero()[0]) + 1
        raise ValueError(
            f"{here}: offsets[{at}] = {int(offsets[at])} is less than "
            f"offsets[{at - 1}] = {int(offsets[at - 1])}: expected ascending offsets"
        )
    if offsets[-1] != occurrences:
        raise ValueError(
            f"{here}: offsets[{offsets.numel() - 1}] = {int(offsets[-1])}: expected the number of "
            "rows, "
            f"{occurrences} (offsets have one element more than there are bags)"
        )
    return lengths


def _unpad(
    here: str, rows: Tensor, offsets: Any, weights: Tensor | None, padding: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the entries that are no padding: rows [N_f], lengths [bags], weights [N_f]."""
    if offsets is not None:
        raise ValueError(f"{here}: offsets: expected None beside padded rows {list(rows.shape)}")
    kept = torch.ones_like(rows, dtype=torch.bool)
    if padding is not None:
        kept &= rows != padding
    if weights is not None and weights.dtype == torch.bool:
        kept &= weights
        weights = None
    return rows[kept], kept.sum(1), None if weights is None else weights[kept]


def _extra(name: str, column: Any, impressions: int) -> Tensor:
    tensor = torch.as_tensor(column)
    if tensor.ndim == 0 or tensor.shape[0] != impressions:
        raise ValueError(
            f"extra[{name!r}]: expected {impressions} values, got shape {list(tensor.shape)}"
        )
    return tensor


def _bag_count(fields: tuple[Field, ...], read: Mapping[str, _Bags]) -> int | None:
    counts = {f.name: read[f.name].lengths.numel() for f in fields}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"bags: expected as many bags in every {fields[0].side} field, got "
            + ", ".join(f"{name!r}: {count}" for name, count in counts.items())
        )
    return next(iter(counts.values()), None)


@dataclass
class _Side:
    """Where the occurrences of one side's fields go, bag = unit * F + f."""

    fields: tuple[Field, ...]
    lengths: Tensor  # [units * F] int64
    places: list[Tensor]  # per field [N_f]: its occurrences' places among the side's


def _interleave(fields: tuple[Field, ...], units: int, read: Mapping[str, _Bags]) -> _Side:
    if not fields:
        return _Side(fields, torch.zeros(0, dtype=torch.int64), [])
    lengths = torch.stack([read[f.name].lengths for f in fields], dim=1)  # [units, F]
    begins = (lengths.flatten().cumsum(0) - lengths.flatten()).view(units, len(fields))
    places = []
    for f in range(len(fields)):
        own = (
            lengths[:, f].cumsum(0) - lengths[:, f]
        )  # begin of each bag among the field's own occurrences
        shift = torch.repeat_interleave(begins[:, f] - own, lengths[:, f])
        places.append(torch.arange(shift.numel()) + shift)
    return _Side(fields, lengths.flatten(), places)


def _gather(side: _Side, read: Mapping[str, _Bags], row_base: Mapping[str, int]) -> Tensor:
    rows = torch.empty(sum(p.numel() for p in side.places), dtype=torch.int64)
    for field, places in zip(side.fields, side.places, strict=True):
        rows[places] = read[field.name].rows + row_base[field.name]
    return rows


def _gather_weights(side: _Side, read: Mapping[str, _Bags]) -> Tensor:
    weights = torch.ones(sum(p.numel() for p in side.places), dtype=torch.float32)
    for field, places in zip(side.fields, side.places, strict=True):
        own = read[field.name].weights
        if own is not None:
            weights[places] = own
    return weights


def _integers(name: str, value: Any, impressions: int) -> Tensor:
    tensor = _tensor(name, value)
    if tensor.numel() == 0:
        tensor = tensor.long()
    if tensor.dtype not in _INTEGERS or list(tensor.shape) != [impressions]:
        raise ValueError(
            f"{name}: expected integers [B] = [{impressions}], got {tensor.dtype} "
            f"{list(tensor.shape)}"
        )
    return tensor.long()


def _common_of_impression(value: Any, impressions: int, common: int, schema: Schema) -> Tensor:
    if not schema.common:
        if value is not None:
            raise ValueError(
                "common_of_impression: expected None, for the schema has no common fields"
            )
        return torch.zeros(impressions, dtype=torch.int32)
    if value is None:
        if common != impressions:
            raise ValueError(
                f"common_of_impression: expected [B] integers, for {impressions} impressions share "
                f"{common} common rows; None stands for U = B"
            )
        return torch.arange(impressions, dtype=torch.int32)
    index = _integers("common_of_impression", value, impressions)
    outside = (index < 0) | (index >= common)
    if outside.any():
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"common_of_impression[{at}] = {int(index[at])} is outside the {common} common rows"
        )
    return index.int()


def _labels(value: Any, impressions: int, stages: int) -> Tensor:
    if value is None:
        return torch.full((impressions, stages), torch.nan)
    labels = _tensor("labels", value).float()
    if labels.dim() == 1 and stages == 1:
        labels = labels.unsqueeze(1)
    if list(labels.shape) != [impressions, stages]:
        raise ValueError(
            f"labels: expected shape [B, K] = [{impressions}, {stages}], got {list(labels.shape)}"
        )
    return labels.contiguous()


def _floats(name: str, value: Any, shape: tuple[int, ...]) -> Tensor | None:
    if value is None:
        return None
    tensor = _tensor(name, value).float()
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    return tensor.contiguous()
