"""Batches from a user's own bags: checks, bag order, the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bag_values import Values, check_integers, integers, tensor, values
from .ops.batch_plan import batch_plan
from .schema import Field, Schema
from .vocabulary import Vocabulary


@dataclass
class _Given:
    """One field's bags as they were given: whole entries, and what says where bags end."""

    rows: Values  # feature ids, where there is a vocabulary
    weights: np.ndarray | None  # [N_f] floats
    offsets: np.ndarray | None  # [bags + 1] or [bags] int64

    def counts(self) -> list[int]:
        """Returns the numbers of bags that this can mean, the likeliest first."""
        if self.offsets is None:
            return [len(self.rows) if self.rows.lengths is None else len(self.rows.lengths)]
        ends = [len(self.offsets) - 1] if self.offsets[-1] == len(self.rows) else []
        return [*ends, len(self.offsets)]

    def check_end(self, name: str, counts: set[int]) -> None:
        """Raises where [bags + 1] offsets, by the `counts` of the others, do not end with N."""
        if self.offsets is None or self.offsets[-1] == len(self.rows):
            return
        last = len(self.offsets) - 1
        if last in counts and last + 1 not in counts:
            raise ValueError(
                f"field {name!r}: offsets[{last}] = {self.offsets[-1]}: expected the number of "
                f"rows, {len(self.rows)}, at the end of {last} bags"
            )

    def lengths(self, bags: int) -> np.ndarray:
        """Returns the length of every bag, [bags] int64."""
        if self.offsets is not None:
            ends = self.offsets if len(self.offsets) > bags else [*self.offsets, len(self.rows)]
            return np.diff(ends)
        lengths = self.rows.lengths
        return np.ones(len(self.rows), np.int64) if lengths is None else lengths.astype(np.int64)

    def place(self, name: str, at: int) -> str:
        """Returns where an entry was given, and its value."""
        value, lengths = self.rows.flat[at], self.rows.lengths
        if lengths is None:
            return f"{name}[{at}] = {value}"
        return f"{value} in {name}[{np.searchsorted(lengths.cumsum(), at, side='right')}]"


@dataclass
class _Bags:
    """One field's bags, checked."""

    rows: Tensor  # [N_f] int64, rows of the field's table
    lengths: Tensor  # [bags] int64
    weights: Tensor | None  # [N_f] float32


def batch_arguments(
    bags: Mapping[str, Any],
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
    given = {f.name: _given(f, bags[f.name], padding, vocabulary) for f in schema.fields}
    beside = {
        "labels": labels,
        "common_of_impression": common_of_impression,
        "sample_id": sample_id,
        "dense": dense,
        "impression_weights": impression_weights,
    }
    known = {name: _count(name, value) for name, value in beside.items() if value is not None}
    impressions = _bag_count(schema.impression, given, known)
    if impressions is None:
        raise ValueError("bags: no impression field, labels or common_of_impression gives B")
    paired = {} if common_of_impression is not None else {"impressions": impressions}
    common = 0
    if schema.common:
        common = _bag_count(schema.common, given, paired) or 0
    units = {"common": common, "impression": impressions}
    read = {
        f.name: _read(f, given[f.name], units[f.side], table_rows, vocabulary)
        for f in schema.fields
    }

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
        sample_id=None if sample_id is None else _sample_id(sample_id, impressions),
        extra={name: _extra(name, column, impressions) for name, column in extra.items()},
    )


def _count(name: str, given: Any) -> int:
    try:
        return len(given)
    except TypeError:
        raise ValueError(
            f"{name}: expected an entry for each impression, got {type(given).__name__}"
        ) from None


def _bag_count(
    fields: tuple[Field, ...], given: Mapping[str, _Given], known: Mapping[str, int]
) -> int | None:
    """Returns how many bags each of the fields has; None where nothing says it."""
    counts = {f.name: given[f.name].counts() for f in fields}
    for name in counts:
        others = {c for other in counts if other != name for c in counts[other]} | {*known.values()}
        given[name].check_end(name, others)
    agreed = set.intersection(*map(set, counts.values())) if counts else {*known.values()}
    if fields and not agreed:
        raise ValueError(
            f"bags: expected as many bags in every {fields[0].side} field, got "
            + ", ".join(f"{name!r}: {likely}" for name, (likely, *_) in counts.items())
        )
    beside = [count for count in known.values() if count in agreed]
    return next(iter(beside), min(agreed, default=None))


def _given(field: Field, bags: Any, padding: int | None, vocabulary: Vocabulary | None) -> _Given:
    """Returns one field's bags in arrays that fit each other, without padding."""
    here = f"field {field.name!r}"
    name = "rows" if vocabulary is None else "ids"
    parts = bags if isinstance(bags, tuple) else (bags,)
    if bags is None or isinstance(bags, str | Mapping) or not 1 <= len(parts) <= 3:
        of = f" of {len(parts)}" if isinstance(bags, tuple) else ""
        raise ValueError(
            f"{here}: expected {name} or a tuple ({name}, offsets, weights), got "
            f"{type(bags).__name__}{of}"
        )
    given_rows, given_offsets, given_weights = (*parts, None, None)[:3]
    rows = values(f"{here}: {name}", given_rows)
    rows.flat = check_integers(f"{here}: {name}", rows.flat)
    weights = None if given_weights is None else values(f"{here}: weights", given_weights)
    if weights is not None:
        _check_same_shape(here, name, rows, weights)
    if rows.lengths is not None:
        if given_offsets is not None:
            raise ValueError(
                f"{here}: offsets: expected None beside {name} that are {len(rows.lengths)} bags "
                "already"
            )
        kept = np.ones(len(rows), bool) if padding is None else rows.flat != padding
        if weights is not None and weights.flat.dtype == bool:
            kept &= weights.flat
            weights = None
        if not kept.all():
            bag = np.repeat(np.arange(len(rows.lengths)), rows.lengths)[kept]
            lengths = np.bincount(bag, minlength=len(rows.lengths))
            rows = Values(rows.flat[kept], lengths)
            weights = None if weights is None else Values(weights.flat[kept], lengths)
    if weights is not None and weights.flat.dtype.kind != "f" and len(weights):
        raise ValueError(f"{here}: weights: expected floats, got {weights.flat.dtype}")
    offsets = None if given_offsets is None else _offsets(here, given_offsets, len(rows))
    return _Given(rows, None if weights is None else weights.flat, offsets)


def _check_same_shape(here: str, name: str, rows: Values, weights: Values) -> None:
    if rows.lengths is None or weights.lengths is None:
        same = len(rows) == len(weights) and rows.lengths is weights.lengths
    else:
        same = len(rows.lengths) == len(weights.lengths)
        if same and (other := np.flatnonzero(rows.lengths != weights.lengths)).size:
            at = other[0]
            raise ValueError(
                f"{here}: weights[{at}]: expected {rows.lengths[at]} values, as {name}[{at}] has, "
                f"got {weights.lengths[at]}"
            )
    if not same:
        raise ValueError(
            f"{here}: weights: expected the shape of {name}, {_shape(rows)}, got {_shape(weights)}"
        )


def _shape(of: Values) -> str:
    return f"[{len(of)}]" if of.lengths is None else f"{len(of.lengths)} bags"


def _offsets(here: str, given: Any, occurrences: int) -> np.ndarray:
    """Returns offsets, checked but for their number, [bags + 1] or [bags] int64."""
    offsets = integers(f"{here}: offsets", given)
    if offsets.ndim != 1 or (offsets.size == 0 and occurrences):
        raise ValueError(
            f"{here}: offsets: expected integers [bags + 1] or [bags], got shape "
            f"{list(offsets.shape)}"
        )
    offsets = offsets.astype(np.int64) if offsets.size else np.zeros(1, np.int64)
    if offsets[0] != 0:
        raise ValueError(f"{here}: offsets[0] = {offsets[0]}: expected 0")
    if (falls := np.flatnonzero(np.diff(offsets) < 0)).size:
        at = falls[0] + 1
        raise ValueError(
            f"{here}: offsets[{at}] = {offsets[at]} is less than "
            f"offsets[{at - 1}] = {offsets[at - 1]}: expected ascending offsets"
        )
    if offsets[-1] > occurrences:
        raise ValueError(
            f"{here}: offsets[{len(offsets) - 1}] = {offsets[-1]}: expected at most the number of "
            f"rows, {occurrences}"
        )
    return offsets


def _read(
    field: Field,
    given: _Given,
    bags: int,
    table_rows: Mapping[str, int],
    vocabulary: Vocabulary | None,
) -> _Bags:
    """Returns one field's bags as lengths, rows of its table, and weights."""
    here, rows = f"field {field.name!r}", given.rows.flat
    if vocabulary is not None:
        if (below := np.flatnonzero(rows < 0)).size:
            place = given.place("ids", below[0])
            raise ValueError(f"{here}: {place}: expected an id of at least 0")
        rows = vocabulary.lookup(field.table_name, rows)
    size = table_rows[field.table_name]
    if (outside := np.flatnonzero((rows < 0) | (rows >= size))).size:
        hint = ""
        if field.hashed_rows:
            hint = (
                " (feature ids are hashed with "
                "vocabulary=Vocabulary({}, hashed=schema.hashed_tables))"
            )
        place = given.place("rows", outside[0])
        raise ValueError(f"{here}: {place} is outside the table of {size} rows{hint}")
    weights = given.weights
    return _Bags(
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(given.lengths(bags)),
        None if weights is None else torch.from_numpy(weights.astype(np.float32)),
    )


def _extra(name: str, column: Any, impressions: int) -> Tensor:
    found = tensor(f"extra[{name!r}]", column)
    if found.ndim == 0 or found.shape[0] != impressions:
        raise ValueError(
            f"extra[{name!r}]: expected {impressions} values, got shape {list(found.shape)}"
        )
    return found


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


def _integers(name: str, value: Any, impressions: int) -> np.ndarray:
    found = integers(name, value)
    if found.shape != (impressions,):
        raise ValueError(
            f"{name}: expected integers [B] = [{impressions}], got shape {list(found.shape)}"
        )
    return found


def _sample_id(value: Any, impressions: int) -> Tensor:
    """Returns the ids as int64; those from 2^63 keep their bits."""
    return torch.from_numpy(_integers("sample_id", value, impressions).astype(np.int64))


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
    if (outside := np.flatnonzero((index < 0) | (index >= common))).size:
        at = outside[0]
        raise ValueError(
            f"common_of_impression[{at}] = {index[at]} is outside the {common} common rows"
        )
    return torch.from_numpy(index.astype(np.int32))


def _labels(value: Any, impressions: int, stages: int) -> Tensor:
    if value is None:
        return torch.full((impressions, stages), torch.nan)
    labels = tensor("labels", value).float()
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
    found = tensor(name, value).float()
    if tuple(found.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(found.shape)}")
    return found.contiguous()
