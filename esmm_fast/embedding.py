"""EmbeddingTables: every field's table in one row space, pooled for a whole batch at once."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import ops
from .batch import Batch, check_batch
from .field_columns import FieldColumns
from .gradient_queue import GradientQueue
from .plan import Plan
from .schema import Schema

_HALF_LINE = 32  # bytes
_HUGE_PAGE = 2 << 20  # bytes


class EmbeddingTables(nn.Module):
    """The tables of a schema in one parameter `weight` [R, D]; pools the fields of a whole batch.

    Letters: R rows of all tables together, D dimension, U common rows and B impressions of the
    batch, Fc and Fs fields of the common and the impression side.

    Where fields have dimensions of their own (`Field.dim`), the tables of each dimension are
    EmbeddingTables in themselves: `by_dim["8"].weight` [R of them, 8], `by_dim["16"].weight`, and
    so on, which are also their names in `state_dict()`; there is no `weight` then. The pooled
    fields stand side by side in the order of the fields, and all that is said below holds.

    Training, either way with the usual three lines:

    * Ordinary: with any optimizer of torch. `weight.grad` is dense, or with ``sparse=True`` sparse,
      each touched row once.
    * Fused: with an optimizer of `esmm_fast.optim`, which moves the weight into one buffer [R,
      stride] beside its own state. `weight` (still the same parameter) is then a strided view,
      `weight.grad` stays None, and the gradient waits by bag until `opt.step()` applies it in one
      pass over the touched rows. `opt.zero_grad()` drops what waits.

    `state_dict()` holds a contiguous `weight` in both; the optimizer's state is in the optimizer's
    `state_dict()`. A copy or a pickle of the tables alone is in ordinary mode; together with their
    optimizer both stay connected.

    Args:
        schema: Fields with `rows` (a vocabulary's `sized(schema)`). Tables follow each other in
            `schema.tables` order.
        dim: D, from 1 to 256, of every field that does not say one. Fields that share a table have
            the same.
        init_std: Standard deviation of the initial weight, N(0, init_std^2); 0 gives zeros.
        seed: Seed of the initial weight, which depends on (seed, table name, feature id) alone:
            growing a table or changing the order of its rows does not change the values of a
            feature.
        feature_ids: The feature id of each row, per table (uint64 or int64, [rows]); a table that
            is not named uses the row's index.
        sparse: Give `weight.grad` as a sparse tensor over the touched rows (ordinary mode only).
        mean: Divide each pooled sum by the number of occurrences of its bag.
        dtype: float32 (default) or float64.
        device: Where the weight lies and is made; its bits are the same on CPU and CUDA.

    >>> from esmm_fast import Field, Schema
    >>> from esmm_fast.reference import batch_plan
    >>> schema = Schema((Field("user", side="common", rows=4), Field("item", rows=3)))
    >>> tables = EmbeddingTables(schema, dim=2)
    >>> tables
    EmbeddingTables(2 fields, 2 tables, 7 rows, dim=2, 56 bytes)
    >>> rows = torch.tensor([1, 2, 4, 6])  # one user {1, 2}, items 0 and 2
    >>> plan = batch_plan(rows, torch.tensor([0, 2, 3, 4]))
    >>> batch = Batch(plan, 1, torch.tensor([0, 0], dtype=torch.int32), labels=torch.zeros(2, 2))
    >>> common, impression = tables(batch)
    >>> common.shape, impression.shape
    (torch.Size([1, 2]), torch.Size([2, 2]))
    >>> torch.equal(common[0], tables.weight[1] + tables.weight[2])
    True
    """

    def __init__(
        self,
        schema: Schema,
        dim: int = 18,
        *,
        init_std: float = 0.01,
        seed: int = 0,
        feature_ids: Mapping[str, Any] | None = None,
        sparse: bool = False,
        mean: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        schema = Schema.of(schema)
        if not 1 <= dim <= 256:
            raise ValueError(f"dim: expected 1 to 256, got {dim}")
        self.schema = schema
        self.sparse = sparse
        self.mean = mean
        rows = sum(schema.table_rows.values())
        if rows >= 2**31:
            raise ValueError(
                f"schema: expected fewer than 2^31 rows in all tables together, got {rows}"
            )
        feature_ids = dict(feature_ids or {})
        if unknown := sorted(feature_ids.keys() - set(schema.tables)):
            raise ValueError(
                f"feature_ids: expected names of tables {list(schema.tables)}, got {unknown}"
            )
        self._states: dict[str, tuple[int, int]] = {}  # name -> first element in a row, width
        self._queue: GradientQueue | None = None
        dims = schema.table_dims(dim)
        self.by_dim: nn.ModuleDict | None = None
        if len(of_dim := list(dict.fromkeys(dims.values()))) > 1:
            self.by_dim = nn.ModuleDict()
            for own in of_dim:
                fields = tuple(f for f in schema.fields if dims[f.table_name] == own)
                ids = {t: ids for t, ids in feature_ids.items() if dims[t] == own}
                self.by_dim[str(own)] = EmbeddingTables(
                    Schema(tuple(replace(f, dim=own) for f in fields)),
                    own,
                    init_std=init_std,
                    seed=seed,
                    feature_ids=ids,
                    sparse=sparse,
                    mean=mean,
                    dtype=dtype,
                    device=device,
                )
            self._columns = FieldColumns.of(schema, dims, of_dim)
            return
        self.dim = next(iter(dims.values()), dim)
        weight = _zeros(torch.empty(rows, 0, dtype=dtype, device=device), self.dim)
        self._init_weight(weight, init_std, seed, feature_ids)
        self.weight = nn.Parameter(weight)

    def _init_weight(
        self, weight: Tensor, init_std: float, seed: int, feature_ids: dict[str, Any]
    ) -> None:
        bases = self.schema.row_bases
        for table, rows in self.schema.table_rows.items():
            ids = torch.arange(rows)
            if table in feature_ids:
                array = np.ascontiguousarray(np.asarray(feature_ids[table]))
                if array.shape != (rows,) or array.dtype.kind not in "iu":
                    raise ValueError(
                        f"feature_ids[{table!r}]: expected {rows} integers, one per row, "
                        f"got shape {array.shape} of {array.dtype}"
                    )
                ids = torch.from_numpy(array.astype(np.uint64).view(np.int64))
            part = weight[bases[table] : bases[table] + rows]
            ops.embedding_init(
                part, ids.to(weight.device), key=_table_key(seed, table), std=init_std
            )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the pooled fields of common rows, [U, Fc * D], and impressions, [B, Fs * D].

        Where fields differ in their dimensions, their sum takes the place of Fc * D and Fs * D.

        Raises:
            TypeError: The batch is none.
            ValueError: The batch is on another device, was made with another vocabulary, or has
                another number of bags than the schema's fields.
            NotImplementedError: In torch.jit or torch.func.grad, or with ``sparse=True`` inside
                DistributedDataParallel.
            IndexError: A row is outside the tables, e.g. ``rows[17] = 400012 is outside the table
                of 400000 rows: was the batch made with another vocabulary?``
        """
        self._refuse_what_torch_explains_badly()
        check_batch(batch, self.schema)
        plan, impressions = batch.plan, batch.labels.shape[0]
        common_fields, impression_fields = len(self.schema.common), len(self.schema.impression)
        common_bags = batch.common * common_fields
        device = self.parts[0].weight.device
        if plan.rows.device != device:
            raise ValueError(
                f"batch: expected it on the tables' device {device}, "
                f"got {plan.rows.device} (batch.to(device) moves it)"
            )
        if plan.offsets.shape[0] - 1 != common_bags + impressions * impression_fields:
            raise ValueError(
                f"batch: expected {batch.common} common rows x {common_fields} fields + "
                f"{impressions} impressions x {impression_fields} fields = "
                f"{common_bags + impressions * impression_fields} bags, "
                f"got {plan.offsets.shape[0] - 1}"
            )
        try:
            if self.by_dim is None:
                return self._pool(plan, batch.common, impressions, self)
            plans = self._columns.split(plan, batch.common)
            return self._columns.join(
                [
                    part._pool(own, batch.common, impressions, self)
                    for part, own in zip(self.parts, plans, strict=True)
                ]
            )
        except IndexError as error:
            raise IndexError(f"{error}: was the batch made with another vocabulary?") from error

    def _pool(
        self, plan: Plan, common_rows: int, impressions: int, whole: EmbeddingTables
    ) -> tuple[Tensor, Tensor]:
        common_fields, impression_fields = len(self.schema.common), len(self.schema.impression)
        common, impression = ops.pooled_embedding(
            self.weight,
            plan,
            common_rows * common_fields,
            whole.mean,
            sparse=whole.sparse,
            queue=self._queue,
        )
        return (
            common.reshape(common_rows, common_fields * self.dim),
            impression.reshape(impressions, impression_fields * self.dim),
        )

    def _refuse_what_torch_explains_badly(self) -> None:
        if torch.jit.is_tracing():
            self.__prepare_scriptable__()
        if self.sparse and getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
            raise NotImplementedError(
                "EmbeddingTables: expected sparse=False inside DistributedDataParallel, which "
                "takes sparse gradients of torch.nn.Embedding and EmbeddingBag alone"
            )

    def __prepare_scriptable__(self) -> Any:
        raise NotImplementedError(
            "EmbeddingTables: expected no torch.jit, whose graphs hold no batch; torch.compile "
            "takes them"
        )

    def __dir__(self) -> list[str]:  # torch.jit reads every attribute there is
        return [name for name in super().__dir__() if name != "queue" or self.fused]

    @property
    def parts(self) -> list[EmbeddingTables]:
        """The tables of each dimension; where there is one, these themselves."""
        return [self] if self.by_dim is None else list(self.by_dim.values())  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of the tables in memory, with a fused optimizer's state and padding."""
        weights = [part.weight for part in self.parts]
        return sum(w.shape[0] * w.stride(0) * w.element_size() for w in weights)

    def extra_repr(self) -> str:
        schema = self.schema
        rows = sum(part.weight.shape[0] for part in self.parts)
        dims = ", ".join(str(part.dim) for part in self.parts)
        return (
            f"{len(schema.fields)} fields, {len(schema.tables)} tables, {rows} rows, "
            f"dim={dims if self.by_dim is None else f'({dims})'}, {_readable(self.nbytes)}"
            + (", fused" if self.fused else "")
        )

    # ---- fused mode: weight and optimizer state in one buffer; esmm_fast.optim calls these, on the
    # `parts` of tables of several dimensions

    @property
    def fused(self) -> bool:
        """Whether an optimizer of esmm_fast.optim owns the state beside the weight."""
        return all(part._queue is not None for part in self.parts)

    @property
    def queue(self) -> GradientQueue:
        """The gradients that wait for the fused optimizer."""
        if self._queue is None:
            raise RuntimeError(
                "the tables are in ordinary mode: no gradient waits for a fused optimizer"
            )
        return self._queue

    def fuse(self, owner: Any, states: Mapping[str, tuple[int, float]]) -> None:
        """Moves the weight into one buffer with the states of `owner`.

        Args:
            owner: The optimizer; it is not kept alive.
            states: name -> (elements per row, initial value).
        """
        if self._queue is not None:
            self._queue.retire()
        self._states, first = {}, self.dim
        for name, (width, _) in states.items():
            self._states[name] = (first, width)
            first += width
        stride = _stride(first, self.weight.element_size(), self.weight.device.type)
        table = _zeros(self.weight, stride)
        table[:, : self.dim] = self.weight.detach()
        for name, (_, initial) in states.items():
            if initial != 0:
                self._state_of(table, name).fill_(initial)
        self._place(table)
        self.weight.grad = None
        self._queue = GradientQueue(owner)

    def unfuse(self) -> None:
        """Returns to ordinary mode; drops the optimizer's state and what waits for it."""
        for part in self.parts:
            if part._queue is not None:
                part._queue.retire()
            part._states, part._queue = {}, None
            part.weight.data = part.weight.detach().contiguous()

    def table(self) -> Tensor:
        """Returns the buffer itself, [R, stride]: a row's weight, then its states, then padding."""
        weight = self.weight.detach()
        return weight.as_strided((weight.shape[0], weight.stride(0)), (weight.stride(0), 1))

    def state(self, name: str) -> Tensor:
        """Returns the view [R, width] of an optimizer's state, e.g. ``exp_avg``."""
        return self._state_of(self.table(), name)

    def _state_of(self, table: Tensor, name: str) -> Tensor:
        first, width = self._states[name]
        return table[:, first : first + width]

    def _place(self, table: Tensor) -> None:
        self.weight.data = table[:, : self.dim]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradient: `weight.grad`, or what waits for a fused optimizer."""
        super().zero_grad(set_to_none)
        for part in self.parts:
            if part._queue is not None:
                part._queue.clear()

    # ---- what torch does to modules, on the whole buffer

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EmbeddingTables:
        if self._queue is None:
            return super()._apply(fn, recurse)
        table = fn(self.table())
        if table.dtype not in (torch.float32, torch.float64) or table.device.type == "meta":
            raise TypeError(
                "tables with a fused optimizer can be float32 or float64 on a real device, "
                f"not {table.dtype} on {table.device}: call unfuse() first (it drops the state)"
            )
        self._place(table)
        self._queue.convert(fn)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars and self.by_dim is None:
            destination[prefix + "weight"] = self.weight.detach().contiguous()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, *args: Any
    ) -> None:
        if self._queue is not None:  # assign=True would take the weight out of its buffer
            metadata = {**metadata, "assign_to_params_buffers": False}
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingTables:
        from copy import deepcopy

        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__setstate__(deepcopy({**self.__dict__, "_states": {}, "_queue": None}, memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        parameters = self._parameters
        if self._queue is not None:
            weight = nn.Parameter(self.weight.detach().contiguous(), self.weight.requires_grad)
            parameters = {**parameters, "weight": weight}
        return {**self.__dict__, "_parameters": parameters, "_states": {}, "_queue": None}


def tables_in(module: nn.Module) -> list[EmbeddingTables]:
    """Returns the tables inside a module, those of several dimensions by dimension."""
    found = [m for m in module.modules() if isinstance(m, EmbeddingTables)]
    return [tables for tables in found if tables.by_dim is None]


def _table_key(seed: int, table: str) -> int:
    """Returns the 64-bit generator key of a table, as a signed integer."""
    digest = hashlib.blake2b(f"{seed}:{table}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _stride(elements: int, element_size: int, device: str = "cpu") -> int:
    """Returns the elements from row to row: half cache lines, or a part of one for small rows.

    Rows of whole half lines lie in as few lines as rows that begin with one. On CUDA whole sectors
    of 32 bytes too; there rows that fill no more than 2.5 of them (D = 18 with one number of state)
    lie 16 bytes apart, which costs as many sectors and less memory.

    >>> _stride(54, 4), _stride(19, 4), _stride(3, 4)
    (56, 24, 4)
    >>> _stride(54, 4, "cuda"), _stride(19, 4, "cuda"), _stride(18, 4, "cuda")
    (56, 20, 20)
    """
    size = elements * element_size
    if device != "cuda" and size <= _HALF_LINE:
        return (1 << (size - 1).bit_length()) // element_size
    unit = 16 if device == "cuda" and size <= 80 else _HALF_LINE
    return -(-size // unit) * unit // element_size


def _zeros(like: Tensor, width: int) -> Tensor:
    """Returns zeros [len(like), width] in huge pages where the system has them.

    A batch touches rows all over the tables, so nearly every row is on a page of its own: with
    pages of 4 KiB each needs a walk through page tables that themselves miss the cache.
    """
    size = like.shape[0] * width * like.element_size()
    if like.device.type != "cpu" or size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(like.shape[0], width, dtype=like.dtype, device=like.device)
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=like.dtype)
    first = -whole.data_ptr() % _HUGE_PAGE // like.element_size()
    return whole[first : first + like.shape[0] * width].view(-1, width)


def _readable(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.4g} GiB"
