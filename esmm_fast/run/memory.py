"""Memory of a training: how much it takes, before it is taken, and how much is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from torch import nn

from ..config import Settings
from ..embedding import EmbeddingTables, tables_in
from ..methods import Network
from ..schedule import default_optimizers
from ..schema import Schema
from .nested import split_tensors


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training that has not begun."""

    rows: Mapping[str, int]  # by table
    fields: Mapping[str, tuple[str, ...]]  # by table: whose ids it holds
    row_bytes: Mapping[str, int]  # by table: of a row in all networks, with the optimizer's state
    copied_row_bytes: Mapping[str, int]  # by table: of a row's copy while a checkpoint is written
    towers: int = 0  # parameters, gradients and the optimizer's state of all that is no table
    activations: int = 0  # about: a batch's pooled fields and layers, and their gradients

    @property
    def tables(self) -> int:
        """Bytes of all tables in all networks, with the optimizer's state."""
        return sum(rows * self.row_bytes[table] for table, rows in self.rows.items())

    @property
    def total(self) -> int:
        """Bytes of tables, towers and activations."""
        return self.tables + self.towers + self.activations

    @property
    def peak(self) -> int:
        """Bytes while a checkpoint is written, which copies a part of the tables."""
        return self.total + sum(
            rows * self.copied_row_bytes[table] for table, rows in self.rows.items()
        )

    def check(self, available: int | None, *, checkpoint: bool = True) -> None:
        """Raises MemoryError where `available` bytes (None: nobody knows) are too few.

        Args:
            available: What `machine.available_memory` gives.
            checkpoint: Whether checkpoints will be written, which copies a part of the tables.
        """
        needed = self.peak if checkpoint else self.total
        if available is not None and needed > available:
            most = max(self.rows, key=lambda table: self.rows[table] * self.row_bytes[table])
            of_tables, of_batch = (self.tables + needed - self.total, self.activations)
            advice = "raise min_count, lower dim" if of_tables >= of_batch else "lower batch_size"
            raise MemoryError(
                f"the training needs about {size_text(needed)}: tables {size_text(of_tables)} "
                f"({sum(self.rows.values()):,} rows with the "
                f"optimizer's state{' and the copy of a checkpoint' * checkpoint}), towers "
                f"{size_text(self.towers)}, a batch {size_text(of_batch)}; "
                f"{size_text(available)} are "
                f"available; table {most!r} is the largest with {self.rows[most]:,} rows: "
                f"{advice}, or take a machine with more memory"
            )

    def lines(self, *, checkpoint: bool = True) -> list[str]:
        """Returns a line for the whole, and one for each table; `checkpoint` as in `check`."""
        rows = sum(self.rows.values())
        shown = [
            f"memory: about {size_text(self.total)}: tables {size_text(self.tables)} ({rows:,} "
            f"rows with the optimizer's state), towers {size_text(self.towers)}, a batch "
            + size_text(self.activations)
            + f"; {size_text(self.peak)} while a checkpoint is written" * checkpoint
        ]
        width = max((len(table) for table in self.rows), default=0)
        for table, n in self.rows.items():
            others = [field for field in self.fields[table] if field != table]
            shown.append(
                f"  {table:{width}} {n:>12,} rows {size_text(n * self.row_bytes[table]):>10}"
                + (f"  (fields {', '.join(self.fields[table])})" if others else "")
            )
        return shown


def of_training(
    build: Callable[[Schema, Settings], Iterable[nn.Module]],
    schema: Schema,
    settings: Settings,
    kept_copies: int = 0,
) -> TrainingMemory:
    """Returns the memory that a training will take, measured on tables of one or two rows.

    Tables and towers are exact. Activations are an estimate: for each impression of a batch the
    pooled fields and the outputs of all layers, twice for their gradients (or once for a batch of
    an evaluation, where that is more). Not counted: Python and torch themselves, the dataset's
    mapped pages, batches made ahead (28 bytes for each occurrence).

    Args:
        build: Makes the networks for a schema with table rows.
        schema: With the rows that are really wanted.
        settings: Dimensions, hidden layers, optimizer and batch sizes.
        kept_copies: Copies of the parameters that training keeps beside them.
    """
    small = msgspec.structs.replace(settings, hidden=(1,))
    ones = {table: 1 for table in schema.tables}

    def table_bytes(rows: Mapping[str, int]) -> tuple[int, int]:
        networks = build(schema.with_rows(rows), small)
        return _table_bytes(networks, settings.table_optimizer, kept_copies)

    base, row_bytes, copied = table_bytes(ones), {}, {}
    for table in schema.tables:
        more = table_bytes({**ones, table: 2})
        row_bytes[table], copied[table] = more[0] - base[0], more[1] - base[1]
    fields: dict[str, tuple[str, ...]] = {}
    for field in schema.fields:
        fields[field.table_name] = (*fields.get(field.table_name, ()), field.name)
    networks = list(build(schema.with_rows(ones), settings))
    values = max(map(_values_of_impression, networks))  # networks are trained in turn
    most = max(2 * settings.batch_size, settings.evaluation_batch_size)
    return TrainingMemory(
        schema.table_rows,
        fields,
        row_bytes,
        copied,
        sum(_tower_bytes(network, kept_copies) for network in networks),
        4 * values * most,
    )


def training_memory(
    networks: Sequence[Network], schema: Schema, settings: Settings, kept_copies: int = 0
) -> TrainingMemory:
    """Returns the memory that networks will take all at once; see `of_training`.

    Args:
        networks: Of a method.
        schema: With table rows.
        settings: Of the training.
        kept_copies: Copies of the parameters that training keeps beside them.
    """
    return of_training(
        lambda schema, settings: [network.build(schema, settings, 0) for network in networks],
        schema,
        settings,
        kept_copies,
    )


def size_text(size: float) -> str:
    """Returns bytes as a person reads them.

    >>> size_text(512), size_text(1536), size_text(3 * 2**30)
    ('512 B', '1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _table_bytes(
    networks: Iterable[nn.Module], table_optimizer: str, kept_copies: int
) -> tuple[int, int]:
    """Returns bytes of networks' tables with the optimizer's state, and of a checkpoint's copy.

    A checkpoint copies the parameters of a network, and after them the optimizer's state.
    """
    total, copied = 0, 0
    for network in networks:
        optimizer = default_optimizers(network, tables=table_optimizer)[0]
        tables = tables_in(network)
        weights = sum(m.weight.numel() * m.weight.element_size() for m in tables)
        total += sum(m.nbytes for m in tables) + kept_copies * weights
        if all(m.fused for m in tables):
            saved = split_tensors(optimizer.state_dict())[1].values()
            copied += max(weights, sum(t.numel() * t.element_size() for t in saved))
        else:  # Adam of torch: a dense gradient, and two averages, which are saved as they are
            total += 3 * weights
    return total, copied


def _tower_bytes(network: nn.Module, kept_copies: int) -> int:
    """Returns bytes of what is no table: parameters, their gradient, Adam's two averages."""
    tables = {id(m.weight) for m in tables_in(network)}
    rest = [p for p in network.parameters() if id(p) not in tables]
    return (4 + kept_copies) * sum(p.numel() * p.element_size() for p in rest)


def _values_of_impression(network: nn.Module) -> int:
    """Returns the numbers that a network computes for an impression with a common row."""
    pooled = sum(m.dim * len(m.schema.fields) for m in tables_in(network))
    several = any(isinstance(m, EmbeddingTables) and m.by_dim for m in network.modules())
    layers = sum(getattr(m, "out_features", 0) for m in network.modules())
    return (1 + several) * pooled + layers  # those of several dimensions are put side by side
