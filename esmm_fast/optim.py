"""Optimizers of EmbeddingTables: one pass over the touched rows per step, state beside its row."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from . import ops
from .embedding import EmbeddingTables, tables_in
from .gradient_queue import merged

_fused: weakref.WeakSet[EmbeddingTables] = weakref.WeakSet()


class TableOptimizer(torch.optim.Optimizer):
    """What the optimizers of tables share; a subclass gives its rule, states and step size.

    Constructing one moves the tables of `model` into fused mode (see EmbeddingTables). Then:

    * `step()` applies the gradient that waits, once: after it nothing waits, and another `step()`
      changes nothing. Several backward passes before a step add up, whether of one batch or of
      several.
    * `zero_grad()` drops what waits. `model.zero_grad()` of a model that only contains the tables
      does not reach it.
    * torch.amp.GradScaler works, also with `unscale_`; learning-rate schedulers of torch work.
    * Clipping: `max_grad_norm` clips the gradient of the tables by its norm over the touched rows,
      `clip_grad_norm_` of this module clips tables and towers together.
      torch.nn.utils.clip_grad_norm_ sees towers only.
    * `state_dict()` has the format of torch's optimizers with contiguous states, whatever the
      buffer's stride.
    * A new optimizer on the same tables takes them over, with new state; the old one then raises.

    Args:
        model: Tables, or any module that contains some: every EmbeddingTables inside it.
        lr: Learning rate.
        max_grad_norm: Largest norm of the tables' gradient over the touched rows, of all tables
            together; None for any. A norm that is not finite raises.
        check_finite: Read the gradient and the weights once more before the update, and raise where
            a number is not finite.
    """

    _step_supports_amp_scaling = True
    rule: ClassVar[str]

    def __init__(self, model: nn.Module, defaults: dict[str, Any]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                "model: expected a module with EmbeddingTables (not its parameters), "
                f"got {type(model).__name__}"
            )
        tables = tables_in(model)
        if not tables:
            raise ValueError(
                "model: expected a module with EmbeddingTables, "
                f"{type(model).__name__} contains none"
            )
        _check_at_least("lr", defaults["lr"], 0)
        if (norm := defaults["max_grad_norm"]) is not None and not norm > 0:
            raise ValueError(f"max_grad_norm: expected a positive number or None, got {norm}")
        self._groups: list[dict[str, Any]] = []
        self.tables: list[EmbeddingTables] = []
        super().__init__([t.weight for t in tables], defaults)
        self._take(tables)

    def _take(self, tables: list[EmbeddingTables]) -> None:
        self.tables = tables
        for each in tables:
            each.fuse(self, self.states(each.dim))
            self.state[each.weight]["step"] = 0
            _fused.add(each)
        self._queues = [each.queue for each in tables]

    # ---- what a subclass gives

    def states(self, dim: int) -> dict[str, tuple[int, float]]:
        """Returns the states beside a row: name -> (elements per row, initial value)."""
        raise NotImplementedError

    def arguments(self, group: dict[str, Any], step: int) -> dict[str, float]:
        """Returns the arguments of ops.embedding_update for the step-th step, from 1."""
        raise NotImplementedError

    # ---- torch's protocol

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group: the tables' weights and, while gradients wait, their carriers."""
        if self.tables:
            carriers = [carrier for queue in self._owned_queues() for carrier in queue.carriers()]
            self._groups[0]["params"] = [t.weight for t in self.tables] + carriers
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if self.tables:
            raise NotImplementedError(
                f"{type(self).__name__} has one group: "
                "make a second optimizer for tables with other settings"
            )
        super().add_param_group(param_group)

    def _owned_queues(self) -> list[Any]:
        for table, queue in zip(self.tables, self._queues, strict=True):
            if table._queue is not queue:
                raise RuntimeError(
                    f"this {type(self).__name__} no longer owns its tables: another optimizer took "
                    "them over, or unfuse() gave them back. Use that one, or make a new optimizer."
                )
        return self._queues

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradient that waits."""
        for queue in self._owned_queues():
            queue.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Applies the gradient that waits to the touched rows; does nothing where none waits.

        Raises:
            ValueError: ``grad_impression[3, 7] = nan: expected finite numbers`` (`check_finite`);
                a norm that is not finite (`max_grad_norm`). Tables and state are as they were, and
                what waits still waits.
            RuntimeError: In one of several processes of `torch.distributed`: the gradient that
                waits is this process's alone, and the tables would drift apart.
        """
        _refuse_several_processes(type(self).__name__)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        waiting = [
            (table, merged(queue.entries))
            for table, queue in zip(self.tables, self._owned_queues(), strict=True)
            if queue.entries
        ]
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or not float(found_inf) > 0:
            group, factor = self._groups[0], 1.0
            if group["check_finite"]:
                for _, gradient in waiting:
                    gradient.expect_finite()
            if (scale := getattr(self, "grad_scale", None)) is not None:
                factor = 1 / float(scale)
            if (largest := group["max_grad_norm"]) is not None and waiting:
                norm = math.sqrt(sum(gradient.squared_norm() for _, gradient in waiting)) * factor
                if not math.isfinite(norm):
                    raise ValueError(
                        f"the norm of the tables' gradient is {norm}: expected a finite one; "
                        "nothing was updated"
                    )
                factor *= min(1.0, largest / (norm + 1e-6))
            for table, gradient in waiting:
                state = self.state[table.weight]
                arguments = self.arguments(group, state["step"] + 1)
                ops.embedding_update(
                    table.table(), gradient, self.rule, grad_factor=factor, **arguments
                )
                state["step"] += 1
        for queue in self._queues:
            queue.clear()
        return loss

    # ---- saving and copying

    def _named_state(self, table: EmbeddingTables) -> dict[str, Any]:
        state = {name: table.state(name).contiguous() for name in self.states(table.dim)}
        return {"step": self.state[table.weight]["step"], **state}

    def state_dict(self) -> dict[str, Any]:
        """Returns state (step and one contiguous tensor per state) and groups in torch's format."""
        self._owned_queues()
        group = {name: value for name, value in self._groups[0].items() if name != "params"}
        return {
            "state": {i: self._named_state(table) for i, table in enumerate(self.tables)},
            "param_groups": [{**group, "params": list(range(len(self.tables)))}],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state_dict of an optimizer with the same states.

        A LazyAdam also takes one of torch.optim.SparseAdam.
        """
        self._owned_queues()
        groups, states = state_dict["param_groups"], state_dict["state"]
        count = sum(len(group["params"]) for group in groups)
        if len(groups) != 1 or count != len(self.tables):
            raise ValueError(
                f"state_dict: expected one group with {len(self.tables)} tables, "
                f"got {len(groups)} with {count}"
            )
        for i, table in enumerate(self.tables):  # everything is checked before anything is written
            for name, (width, _) in self.states(table.dim).items():
                shape = (table.weight.shape[0], width)
                if i in states and (name not in states[i] or states[i][name].shape != shape):
                    found = list(states[i][name].shape) if name in states[i] else sorted(states[i])
                    raise ValueError(
                        f"state_dict: state[{i}][{name!r}]: expected shape {list(shape)}, "
                        f"got {found}"
                    )
        group = self._groups[0]
        group.update(
            {name: value for name, value in groups[0].items() if name in group and name != "params"}
        )
        for i, table in enumerate(self.tables):
            self.state[table.weight]["step"] = int(states[i]["step"]) if i in states else 0
            for name, (_, initial) in self.states(table.dim).items():
                table.state(name).copy_(states[i][name] if i in states else torch.tensor(initial))

    def __getstate__(self) -> dict[str, Any]:
        return {"tables": self.tables, "defaults": self.defaults, "saved": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(nn.ModuleList(state["tables"]), **state["defaults"])  # type: ignore[misc]
        self.load_state_dict(state["saved"])


class SGD(TableOptimizer):
    """w -= lr g on the touched rows; no state. Equal to torch.optim.SGD on sparse gradients."""

    rule = "sgd"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        *,
        max_grad_norm: float | None = None,
        check_finite: bool = False,
    ) -> None:
        defaults = {"lr": lr, "max_grad_norm": max_grad_norm, "check_finite": check_finite}
        super().__init__(model, defaults)

    def states(self, dim: int) -> dict[str, tuple[int, float]]:
        return {}

    def arguments(self, group: dict[str, Any], step: int) -> dict[str, float]:
        return {"step_size": float(group["lr"])}


class Adagrad(TableOptimizer):
    """sum += g^2; w -= lr g / (sqrt(sum) + eps), element by element.

    Equal to torch.optim.Adagrad on sparse gradients.
    State: `sum` [R, D]. The rate is lr / (1 + (step - 1) lr_decay).
    """

    rule = "adagrad"
    _width: ClassVar[int | None] = None  # elements of the state per row; None: D

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        max_grad_norm: float | None = None,
        check_finite: bool = False,
    ) -> None:
        _check_at_least("lr_decay", lr_decay, 0)
        _check_at_least("initial_accumulator_value", initial_accumulator_value, 0)
        _check_at_least("eps", eps, 0)
        self._initial = initial_accumulator_value
        super().__init__(
            model,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "max_grad_norm": max_grad_norm,
                "check_finite": check_finite,
            },
        )

    def states(self, dim: int) -> dict[str, tuple[int, float]]:
        return {"sum": (self._width or dim, self._initial)}

    def arguments(self, group: dict[str, Any], step: int) -> dict[str, float]:
        rate = float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        return {"step_size": rate, "eps": group["eps"]}


class RowwiseAdagrad(Adagrad):
    """sum += mean of g^2 over the row; w -= lr g / (sqrt(sum) + eps).

    Adagrad with one accumulator per row: the exact row-wise Adagrad of FBGEMM and TorchRec.
    State: `sum` [R, 1], which lies in the padding of most rows.
    """

    rule = "rowwise_adagrad"
    _width = 1


class LazyAdam(TableOptimizer):
    """Adam on the touched rows only, step by step equal to torch.optim.SparseAdam.

    m += (1 - beta1) (g - m); v += (1 - beta2) (g^2 - v); w -= lr sqrt(1 - beta2^t) / (1 - beta1^t)
    m / (sqrt(v) + eps), where t counts the steps, not the touches of a row. It differs from Adam,
    which also moves rows without a gradient.

    State: `exp_avg` and `exp_avg_sq` [R, D].

    Args:
        model: Tables, or any module that contains some.
        lr: Learning rate.
        betas: Decay of the two averages, in [0, 1).
        eps: Added to the root, before the correction of the bias.
        max_grad_norm, check_finite: See TableOptimizer.

    >>> from esmm_fast import EmbeddingTables, Field, Schema
    >>> tables = EmbeddingTables(Schema((Field("item", rows=3),)), dim=2, init_std=0)
    >>> optimizer = LazyAdam(tables, lr=0.1)
    >>> tables
    EmbeddingTables(1 fields, 1 tables, 3 rows, dim=2, 96 bytes, fused)
    """

    rule = "lazy_adam"

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
        check_finite: bool = False,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {betas}")
        _check_at_least("eps", eps, 0)
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "max_grad_norm": max_grad_norm,
            "check_finite": check_finite,
        }
        super().__init__(model, defaults)

    def states(self, dim: int) -> dict[str, tuple[int, float]]:
        return {"exp_avg": (dim, 0.0), "exp_avg_sq": (dim, 0.0)}

    def arguments(self, group: dict[str, Any], step: int) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
        return {
            "step_size": float(group["lr"]) * correction,
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "decay": float(group["lr"]) * group.get("weight_decay", 0.0),
        }


class LazyAdamW(LazyAdam):
    """LazyAdam with decoupled weight decay: a touched row first shrinks by 1 - lr weight_decay."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        max_grad_norm: float | None = None,
        check_finite: bool = False,
    ) -> None:
        _check_at_least("weight_decay", weight_decay, 0)
        super().__init__(
            model, lr, betas, eps, max_grad_norm=max_grad_norm, check_finite=check_finite
        )
        self.defaults["weight_decay"] = self._groups[0]["weight_decay"] = weight_decay


def clip_grad_norm_(model: nn.Module, max_norm: float) -> Tensor:
    """Scales all gradients of `model` to a joint norm of at most `max_norm`; returns the old norm.

    Like torch.nn.utils.clip_grad_norm_, but fused tables count too, by the gradient of their
    touched rows. Call it after `GradScaler.unscale_` where a scaler is used.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    queues = [t.queue for t in tables_in(model) if t.fused and t.queue.entries]
    squares = sum(queue.squared_norm() for queue in queues)
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    squares += sum(float(torch.linalg.vector_norm(value)) ** 2 for value in values)
    norm = math.sqrt(squares)
    factor = min(1.0, max_norm / (norm + 1e-6))
    if factor < 1:
        for grad in grads:
            grad.mul_(factor)
        for queue in queues:
            queue.scale(factor)
    return torch.tensor(norm)


def _check_at_least(name: str, value: float, least: float) -> None:
    if not float(value) >= least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _refuse_idle_tables(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Raises where an optimizer of torch steps fused tables whose gradient nobody applies.

    Tables that a LazyAdam steps may be among another optimizer's parameters: it finds no `.grad`
    there and skips them. But where the gradient that waited at its last step still waits at this
    one, the tables do not train.
    """
    if not _fused or isinstance(optimizer, TableOptimizer):
        return
    waiting = {id(t.weight): t for t in _fused if t.fused and t.queue.entries}
    if not waiting:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (tables := waiting.get(id(parameter))) is None:
                continue
            if tables.queue.waited_for == id(optimizer):
                owner = type(tables.queue.owner).__name__
                raise RuntimeError(
                    f"{type(optimizer).__name__} steps, but the tables among its parameters belong "
                    f"to {owner}, which does not: their gradient waits for its step(). "
                    "Call it too, or tables.unfuse() to train them with "
                    f"{type(optimizer).__name__}."
                )
            tables.queue.waited_for = id(optimizer)


register_optimizer_step_pre_hook(_refuse_idle_tables)


def _refuse_several_processes(name: str) -> None:
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    if ready and (processes := distributed.get_world_size()) > 1:
        raise RuntimeError(
            f"{name} updates tables with the gradient of its own process alone, and there are "
            f"{processes}: under DistributedDataParallel train the tables with ordinary "
            "gradients and an optimizer of torch.optim"
        )
