"""Calibration where it matters: by slice of the impressions, and after negative down-sampling."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from .vocabulary import LogTables

Array = NDArray[np.float64]


def undo_down_sampling(probabilities: ArrayLike, kept: float) -> NDArray[Any]:
    """Returns probabilities as of all impressions, from those of a down-sampled training set.

    A model that was trained on all clicked impressions, but only on a share `kept` of the others,
    predicts q; of all impressions it is p = q / (q + (1 - q) / kept). That holds for P(click);
    P(click and conversion) is that times P(conversion | click), which no such sampling touches.

    Args:
        probabilities: [n] in [0, 1].
        kept: Share of the unclicked impressions that were kept, in (0, 1].

    Returns:
        [n], of the same floating type; where `kept` is 1 the same bits.

    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014,
    section 6.3.

    >>> undo_down_sampling([0.5, 0.0, 1.0], kept=0.25).round(6).tolist()
    [0.2, 0.0, 1.0]
    """
    if not 0 < kept <= 1:
        raise ValueError(f"kept: expected a share above 0 and at most 1, got {kept}")
    q = np.asarray(probabilities)
    if q.dtype not in (np.float32, np.float64):
        q = q.astype(np.float64)
    if kept == 1:
        return q
    exact = q.astype(np.float64)
    corrected: NDArray[Any] = (exact / (exact + (1 - exact) / kept)).astype(q.dtype)
    return corrected


@dataclass(frozen=True)
class Slices:
    """The impressions that hold each feature id of a field; a bag of several ids is in several.

    Letters: n impressions, M units: what the field belongs to, impressions or common rows.
    """

    feature_ids: NDArray[np.uint64]  # [S], ascending
    slice_of_pair: NDArray[np.int64]  # [P], index into feature_ids
    unit_of_pair: NDArray[np.int64]  # [P]
    unit_of_impression: NDArray[np.int64] | None  # [n]; None: impressions are the units
    units: int

    @staticmethod
    def of(dataset: LogTables, field: str) -> Slices:
        """Returns the slices of a dataset (or of a view) by a field.

        Raises:
            ValueError: There is no such field; the nearest name is given.
        """
        fields = {f.name: f for f in dataset.schema.fields}
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(fields)}"
            raise ValueError(f"field {field!r}: the dataset has none of that name; {hint}")
        common = fields[field].side == "common"
        column = (dataset.common_rows if common else dataset.impressions)[field]
        unit_of_impression = None
        if common:
            unit_of_impression = dataset.impressions["common_row"].to_numpy().astype(np.int64)
            if dataset.selection is not None:
                unit_of_impression = unit_of_impression[dataset.selection]
        elif dataset.selection is not None:
            column = column.take(dataset.selection)
        units, ids = _pairs(column)
        found, which = np.unique(ids, return_inverse=True)
        if fields[field].multi:  # an id that a bag names twice counts once
            pairs = np.unique(units * max(len(found), 1) + which)
            units, which = pairs // max(len(found), 1), pairs % max(len(found), 1)
        return Slices(found, which, units, unit_of_impression, len(column))

    def calibration(
        self,
        labels: ArrayLike,
        predictions: ArrayLike,
        among: NDArray[np.bool_] | None = None,
        top: int | None = None,
    ) -> list[dict[str, Any]]:
        """Returns the calibration in each slice, the slice of the most impressions first.

        Keys: `feature_id`, `impressions`, `observed` and `expected` (means), `calibration`
        (observed / expected, None where nothing is expected) and `deviations`: (sum of labels - sum
        of predictions) / sqrt(sum of p (1 - p)), about a standard normal number where the
        predictions are right; without it a small slice cannot be told from a wrong one.

        Args:
            labels: [n].
            predictions: [n].
            among: [n], the impressions that count; None: all.
            top: As many slices at most, the largest ones; None: all.
        """
        y, p = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
        counted = np.ones(len(y)) if among is None else among.astype(np.float64)
        sums = [self._sum(counted * part) for part in (1, y, p, p * (1 - p))]
        there = np.flatnonzero(sums[0])
        first = there[np.argsort(-sums[0][there], kind="stable")][:top]
        return [
            {
                "feature_id": feature_id,
                "impressions": int(n),
                "observed": observed / n,
                "expected": expected / n,
                "calibration": observed / expected if expected else None,
                "deviations": (observed - expected) / variance**0.5 if variance else None,
            }
            for feature_id, n, observed, expected, variance in zip(
                self.feature_ids[first].tolist(),
                *(part[first].tolist() for part in sums),
                strict=True,
            )
        ]

    def _sum(self, values: Array) -> Array:
        """Returns the sums of values [n] over the impressions of each slice, [S]."""
        of_unit: NDArray[Any] = values
        if self.unit_of_impression is not None:
            of_unit = np.bincount(self.unit_of_impression, values, minlength=self.units)
        sums = np.bincount(
            self.slice_of_pair, of_unit[self.unit_of_pair], minlength=len(self.feature_ids)
        )
        return sums.astype(np.float64)


def _pairs(column: Any) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns (row, feature id) of every occurrence of an Arrow column of ids or lists of ids."""
    import pyarrow as pa
    import pyarrow.compute

    rows, ids, before = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type):
            rows.append(before + pa.compute.list_parent_indices(chunk).to_numpy().astype(np.int64))
            values = chunk.flatten()
        else:
            valid = chunk.is_valid().to_numpy(zero_copy_only=False)
            rows.append(before + np.flatnonzero(valid))
            values = chunk.drop_null()
        ids.append(values.to_numpy(zero_copy_only=False).astype(np.uint64))
        before += len(chunk)
    return np.concatenate(rows), np.concatenate(ids)
