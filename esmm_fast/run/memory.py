"""Memory of the embedding tables: how much they take, before it is taken, and how much is free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..embedding import EmbeddingTables
from ..schedule import default_optimizers
from ..schema import Schema
from .nested import split_tensors


@dataclass(frozen=True)
class TableMemory:
    """Bytes of tables that do not exist yet."""

    rows: Mapping[str, int]  # by table
    fields: Mapping[str, tuple[str, ...]]  # by table: whose ids it holds
    row_bytes: Mapping[str, int]  # by table: of a row in all networks, with the optimizer's state
    copied_row_bytes: Mapping[str, int]  # by table: of a row's copy while a checkpoint is written

    @property
    def total(self) -> int:
        """Bytes of all tables in all networks, with the optimizer's state."""
        return sum(rows * self.row_bytes[table] for table, rows in self.rows.items())

    @property
    def peak(self) -> int:
        """Bytes while a checkpoint is written, which copies a part of them."""
        return self.total + sum(
            rows * self.copied_row_bytes[table] for table, rows in self.rows.items()
        )

    def check(self, available: int | None, *, checkpoint: bool = True) -> None:
        """Raises MemoryError where `available` bytes (None: nobody knows) are too few.

        Args:
            available: What `available()` gives.
            checkpoint: Whether checkpoints will be written, which copies a part of the tables.
        """
        needed = self.peak if checkpoint else self.total
        if available is not None and needed > available:
            most = max(self.rows, key=lambda table: self.rows[table] * self.row_bytes[table])
            raise MemoryError(
                f"the tables need {size_text(needed)} ({sum(self.rows.values()):,} rows, the "
                f"optimizer's state{' and the copy of a checkpoint' * checkpoint}), "
                f"{size_text(available)} are "
                f"available; table {most!r} is the largest with {self.rows[most]:,} rows: "
                "raise min_count, lower dim, or take a machine with more memory"
            )

    def lines(self, *, checkpoint: bool = True) -> list[str]:
        """Returns a line for all tables, and one for each; `checkpoint` as in `check`."""
        rows = sum(self.rows.values())
        shown = [
            f"tables: {rows:,} rows, {size_text(self.total)} with the optimizer's state"
            + f", {size_text(self.peak)} while a checkpoint is written" * checkpoint
        ]
        width = max((len(table) for table in self.rows), default=0)
        for table, n in self.rows.items():
            others = [field for field in self.fields[table] if field != table]
            shown.append(
                f"  {table:{width}} {n:>12,} rows {size_text(n * self.row_bytes[table]):>10}"
                + (f"  (fields {', '.join(self.fields[table])})" if others else "")
            )
        return shown


def of_tables(
    build: Callable[[Schema], Iterable[nn.Module]],
    schema: Schema,
    table_optimizer: str = "lazy_adam",
    kept_copies: int = 0,
) -> TableMemory:
    """Returns the memory that tables will take, measured on tables of one or two rows.

    Args:
        build: Makes the networks for a schema with table rows.
        schema: With the rows that are really wanted.
        table_optimizer: As in `config.Settings`.
        kept_copies: Copies of the parameters that training keeps beside them.
    """
    ones = {table: 1 for table in schema.tables}
    base = _bytes(build(schema.with_rows(ones)), table_optimizer, kept_copies)
    row_bytes, copied = {}, {}
    for table in schema.tables:
        more = _bytes(build(schema.with_rows({**ones, table: 2})), table_optimizer, kept_copies)
        row_bytes[table], copied[table] = more[0] - base[0], more[1] - base[1]
    fields: dict[str, tuple[str, ...]] = {}
    for field in schema.fields:
        fields[field.table_name] = (*fields.get(field.table_name, ()), field.name)
    return TableMemory(schema.table_rows, fields, row_bytes, copied)


def available() -> int | None:
    """Returns the bytes that this process can still take, or None where the system does not say.

    The memory that Linux calls available, or what is left below the limit of the control group
    (a container's), where that is less.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for folder, limit, used, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            most = int(Path(folder, limit).read_text())
            taken = int(Path(folder, used).read_text())
            stat = dict(
                line.split() for line in Path(folder, "memory.stat").read_text().splitlines()
            )
        except (OSError, ValueError):  # no such group, or no limit: "max"
            continue
        found.append(most - taken + int(stat.get(cache, 0)))
    return min(found, default=None)


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


def _bytes(
    networks: Iterable[nn.Module], table_optimizer: str, kept_copies: int
) -> tuple[int, int]:
    """Returns bytes of networks' tables with the optimizer's state, and of a checkpoint's copy.

    A checkpoint copies the parameters of a network, and after them the optimizer's state.
    """
    total, copied = 0, 0
    for network in networks:
        optimizer = default_optimizers(network, tables=table_optimizer)[0]
        tables = [m for m in network.modules() if isinstance(m, EmbeddingTables)]
        weights = sum(m.weight.numel() * m.weight.element_size() for m in tables)
        total += sum(m.nbytes for m in tables) + kept_copies * weights
        if all(m.fused for m in tables):
            saved = split_tensors(optimizer.state_dict())[1].values()
            copied += max(weights, sum(t.numel() * t.element_size() for t in saved))
        else:  # Adam of torch: a dense gradient, and two averages, which are saved as they are
            total += 3 * weights
    return total, copied
