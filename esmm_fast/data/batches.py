"""Batches: the impressions of a dataset in the order of an epoch, assembled ahead of their use."""

from __future__ import annotations

import math
import weakref
from numbers import Integral
from typing import Any

import numpy as np
import torch

from .._compiled import _native
from ..batch import Batch
from ..machine import usable_cores
from ..plan import Plan
from ..schema import LabelKind, Schema
from ..vocabulary import LogTables, Vocabulary
from .columns import Carried, batch_source, carried_columns, contradicting_labels

_PLAN = (
    "rows",
    "offsets",
    "weights",
    "bag_of_occurrence",
    "touched_rows",
    "segment_ptr",
    "occurrence_by_row",
    "touched_of_occurrence",
)


class Batches:
    """The batches of a dataset (or of a view of it), one epoch per iteration.

    Order of an epoch: each group (the selected neighbours of one common row) is permuted and cut
    into chunks of at most `group_limit` impressions, the chunks are permuted, and the sequence is
    cut every `batch_size`; a chunk can lie in two batches. It is a function of `seed` and the epoch
    alone: neither the machine nor `threads` can be seen in it. Not shuffled, the order is that of
    the file (of the selection).

    Position: `state_dict()` gives the epoch and the batch that come next; `load_state_dict()` goes
    there, and the next iteration yields exactly the batches that were left. Every iteration
    thereafter is one epoch; one that is begun before the last one ended gives that epoch up.

    Args:
        dataset: What `Dataset` gives: `impressions`, `common_rows`, `schema`, `selection`.
        batch_size: B, impressions per batch; the last batch of an epoch can be smaller.
        vocabulary: Turns feature ids into table rows; an id it does not know becomes row 0.
        shuffle: Permute as above; False: file order (for evaluation).
        group_limit: Chunk length; None: groups stay whole, so that a batch has few common rows. 1:
            a full shuffle.
        seed: Of the order, 0 <= seed < 2^64.
        drop_last: Leave out a last batch of fewer than `batch_size` impressions.
        labels: ``"and"``: t_k = c_1 and ... and c_k of the label columns; ``"raw"``: t_k = c_k;
            ``"drop"``: as "and", without the impressions where a stage is 1 after one that is 0.
        threads: Threads that assemble batches. None: half the cores, at most 8. 0: the calling
            thread does.
        prefetch: Batches made ahead at most. None: 2 per thread.
        schema: Fields and tables to read; None: the dataset's own. A field's values are read where
            the dataset has them, else they are 1.

    Attributes:
        schema: The schema with the vocabulary's table rows in it, for the model.
        epoch: The epoch of the batch that comes next.

    A batch has U common rows in the order in which its impressions first name them, `sample_id`,
    and a plan that is ready. `plan.weights` is None where no field is weighted. Of the schema it
    has `dense`, `impression_weights` (times those of a weighted view, see `Dataset.weighted`), and
    in `extra` every extra column that holds numbers (times as integers). Without common rows in
    the dataset every impression is a group of its own.
    """

    def __init__(
        self,
        dataset: LogTables,
        batch_size: int,
        *,
        vocabulary: Vocabulary,
        shuffle: bool = True,
        group_limit: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
        labels: LabelKind = "and",
        threads: int | None = None,
        prefetch: int | None = None,
        schema: Schema | None = None,
    ) -> None:
        _at_least("batch_size", batch_size, 1)
        _at_least("group_limit", group_limit, 1)
        _at_least("threads", threads, 0)
        _at_least("prefetch", prefetch, 1)
        if labels not in ("and", "drop", "raw"):
            raise ValueError(f"labels: expected 'and', 'drop' or 'raw', got {labels!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: expected 0 <= seed < 2^64, got {seed}")
        schema = schema or dataset.schema
        self.schema = vocabulary.sized(schema)
        self.batch_size = batch_size
        self.threads = max(1, min(8, usable_cores() // 2)) if threads is None else threads
        self.prefetch = 2 * max(1, self.threads) if prefetch is None else prefetch
        self._carried = carried_columns(dataset, schema)
        self._source = batch_source(
            dataset, self.schema, vocabulary, labels == "raw", self._carried
        )
        self._selection = _selected(dataset)
        self._weights: np.ndarray | None = getattr(dataset, "impression_weights", None)
        if labels == "drop":
            contradicts = contradicting_labels(dataset, self.schema.labels)
            if self._selection is None:
                kept = np.flatnonzero(~contradicts)
                self._selection = kept
            else:
                kept = np.flatnonzero(~contradicts[self._selection])
                self._selection = self._selection[kept]
            if self._weights is not None:
                self._weights = self._weights[kept]
        self.impressions = (
            dataset.impressions.num_rows if self._selection is None else len(self._selection)
        )
        self._group_starts: np.ndarray | None = None
        self._length = (
            self.impressions // batch_size
            if drop_last
            else math.ceil(self.impressions / batch_size)
        )
        self._settings: dict[str, Any] = {
            "impressions": self.impressions,
            "batch_size": batch_size,
            "shuffle": shuffle,
            "group_limit": group_limit,
            "seed": seed,
            "drop_last": drop_last,
            "labels": labels,
        }
        self._epoch = 0
        self._batch = 0  # of self._epoch, comes next
        self._begun = False  # an iteration of self._epoch has yielded something
        # Weak: an iterator that its user drops ends its threads there and then.
        self._iterator: weakref.ref[_Epoch] | None = None

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return self._length

    @property
    def epoch(self) -> int:
        return self._epoch

    def __iter__(self) -> _Epoch:
        self.close()
        if self._begun:
            self._epoch, self._batch, self._begun = self._epoch + 1, 0, False
        iterator = _Epoch(self)
        self._iterator = weakref.ref(iterator)
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Returns (epoch, batch) of the batch that comes next, and the settings it belongs to."""
        return {"epoch": self._epoch, "batch": self._batch, **self._settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position; the next iteration begins there.

        Raises:
            ValueError: The position is of other settings (batch_size, seed, ...), whose batches are
                not these.
        """
        for name, value in self._settings.items():
            if name not in state or state[name] != value:
                raise ValueError(
                    f"state: {name} is {state.get(name)!r} there, but {value!r} here: "
                    "the batches that were left cannot be made"
                )
        epoch, batch = state["epoch"], state["batch"]
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(
                f"state: expected an epoch of at least 0 and a batch of at most {len(self)}, got "
                f"{epoch}, {batch}"
            )
        self.close()
        self._epoch, self._batch, self._begun = epoch, batch, False

    def close(self) -> None:
        """Ends the threads of an iteration under way. The position stays."""
        iterator = None if self._iterator is None else self._iterator()
        if iterator is not None:
            iterator.close()

    def __repr__(self) -> str:
        return (
            f"Batches({len(self)} of {self.batch_size}, {self.impressions} impressions, "
            f"epoch {self._epoch}, batch {self._batch})"
        )

    def _order(self) -> np.ndarray | None:
        """Returns the selection's positions in this epoch's order, int64; None: as they stand."""
        if not self._settings["shuffle"]:
            return None
        if self._group_starts is None:
            self._group_starts = _native.group_starts(
                self._source, self._selection, self.impressions
            )
        return _native.epoch_order(
            self._group_starts,
            self._settings["group_limit"] or 0,
            self._settings["seed"],
            self._epoch,
        )


class _Epoch:
    """The batches that are left of one epoch."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._ended: str | None = None
        self._order = batches._order()
        self._loader = _native.Loader(
            batches._source,
            order=self._order,
            selection=batches._selection,
            impressions=batches.impressions,
            batch_size=batches.batch_size,
            first_batch=batches._batch,
            batches=len(batches),
            threads=batches.threads,
            prefetch=batches.prefetch,
        )

    def __iter__(self) -> _Epoch:
        return self

    def __len__(self) -> int:
        """Returns the number of batches left."""
        return 0 if self._ended else len(self._batches) - self._batches._batch

    def __next__(self) -> Batch:
        if self._ended == "closed":
            raise RuntimeError(
                "this iterator was closed: its Batches began another iteration, went to another "
                "position or was closed"
            )
        batches = self._batches
        arrays = None if self._ended else self._loader.next()
        if arrays is None:
            if self._ended is None:
                self._end("done")
                batches._epoch, batches._batch, batches._begun = batches._epoch + 1, 0, False
            raise StopIteration
        if batches._weights is not None:
            begin = batches._batch * batches.batch_size
            here = slice(begin, begin + batches.batch_size)
            which = here if self._order is None else self._order[here]
            arrays["impression_weights"] = np.array(batches._weights[which])
        batches._batch += 1
        batches._begun = True
        return _batch(arrays, batches.schema, batches._carried)

    def close(self) -> None:
        """Ends the threads; a batch that is being made is finished first."""
        if self._ended is None:
            self._end("closed")

    def _end(self, how: str) -> None:
        self._ended = how
        self._loader.stop()


def _batch(arrays: dict[str, Any], schema: Schema, carried: tuple[Carried, ...]) -> Batch:
    """Returns the batch over the arrays of the C++ side, none of them copied."""
    columns = arrays.pop("carried")
    own = {c.name: c.of_batch(column) for c, column in zip(carried, columns, strict=True)}
    if schema.dense:
        arrays["dense"] = own["dense"]
    if schema.weight is not None:
        of_view = arrays.get("impression_weights", np.float32(1))
        arrays["impression_weights"] = own[schema.weight].astype(np.float32, copy=False) * of_view
    extra = {name: torch.from_numpy(own[name]) for name in schema.extra if name in own}
    tensors: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in arrays.items()
    }
    plan = Plan(**{name: tensors.pop(name) for name in _PLAN})
    return Batch(plan, **tensors, extra=extra)


def _selected(dataset: LogTables) -> np.ndarray | None:
    if dataset.selection is None:
        return None
    selection = np.ascontiguousarray(dataset.selection, dtype=np.int64)
    rows = dataset.impressions.num_rows
    if len(selection) and not (selection.min() >= 0 and selection.max() < rows):
        at = int(np.flatnonzero((selection < 0) | (selection >= rows))[0])
        raise ValueError(
            f"selection[{at}] = {selection[at]} is outside the dataset of {rows} impressions"
        )
    return selection


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
