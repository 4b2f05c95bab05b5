"""pooled_embedding: every bag of a batch, of both sides, pooled in one call."""

from typing import Any

import torch
from torch import Tensor

from .._library import operators, refuse_transforms
from ..gradient_queue import GradientQueue
from ..plan import Plan


@torch.library.register_fake("esmm_fast::pooled_embedding")
def _(
    weight: Tensor,
    rows: Tensor,
    offsets: Tensor,
    weights: Tensor | None,
    bag_of_occurrence: Tensor,
    touched_rows: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
    queue: Tensor | None,
    common_bags: int,
    mean: bool,
    sparse: bool,
) -> tuple[Tensor, Tensor]:
    dim = weight.shape[1]
    impression_bags = offsets.shape[0] - 1 - common_bags
    return weight.new_empty(common_bags, dim), weight.new_empty(impression_bags, dim)


@torch.library.register_fake("esmm_fast::pooled_embedding_row_gradients")
def _(
    grad_common: Tensor,
    grad_impression: Tensor,
    weights: Tensor | None,
    bag_of_occurrence: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
) -> Tensor:
    return grad_common.new_empty(segment_ptr.shape[0] - 1, grad_common.shape[1])


@torch.library.register_fake("esmm_fast::pooled_embedding_dense_gradient")
def _(
    grad_common: Tensor,
    grad_impression: Tensor,
    weights: Tensor | None,
    bag_of_occurrence: Tensor,
    touched_rows: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
    num_rows: int,
) -> Tensor:
    return grad_common.new_empty(num_rows, grad_common.shape[1])


@torch.library.impl("esmm_fast::pooled_embedding_dense_gradient", "CUDA")
def _dense_gradient_on_device(
    grad_common: Tensor,
    grad_impression: Tensor,
    weights: Tensor | None,
    bag_of_occurrence: Tensor,
    touched_rows: Tensor,
    segment_ptr: Tensor,
    occurrence_by_row: Tensor,
    num_rows: int,
) -> Tensor:
    values = operators.pooled_embedding_row_gradients(
        grad_common, grad_impression, weights, bag_of_occurrence, segment_ptr, occurrence_by_row
    )
    zeros = values.new_zeros(num_rows, values.shape[1])
    return zeros.index_copy_(0, touched_rows.long(), values)


@torch.library.register_fake("esmm_fast::pooled_embedding_squared_norm")
def _(grad_common: Tensor, *args: Any) -> Tensor:
    return grad_common.new_empty((), dtype=torch.float64)


@torch.library.register_fake("esmm_fast::pooled_embedding_by_occurrence")
def _(grad: Tensor, offsets: Tensor, weights: Tensor | None, occurrences: int) -> Tensor:
    return grad.new_empty(occurrences, grad.shape[1])


@torch.library.register_fake("esmm_fast::pooled_embedding_weights_gradient")
def _(
    grad_common: Tensor,
    grad_impression: Tensor,
    weight: Tensor,
    rows: Tensor,
    bag_of_occurrence: Tensor,
) -> Tensor:
    return grad_common.new_empty(rows.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    (
        weight,
        rows,
        offsets,
        weights,
        bags,
        touched,
        segments,
        by_row,
        queue,
        common_bags,
        mean,
        sparse,
    ) = inputs
    # weight only where it is read: tables that another step has changed since are no error
    # otherwise
    kept_weight = weight if ctx.needs_input_grad[3] else None
    kept_rows = rows if ctx.needs_input_grad[3] else None
    kept_offsets = offsets if mean else None
    ctx.save_for_backward(
        kept_weight, kept_rows, kept_offsets, weights, bags, touched, segments, by_row
    )
    ctx.queue, ctx.common_bags, ctx.sparse, ctx.shape = queue, common_bags, sparse, weight.shape


def _backward(ctx: Any, grad_common: Tensor, grad_impression: Tensor) -> tuple[Tensor | None, ...]:
    weight, rows, offsets, weights, bags, touched, segments, by_row = ctx.saved_tensors
    if offsets is not None:
        counts = offsets.diff().clamp(min=1).unsqueeze(1)
        grad_common = grad_common / counts[: ctx.common_bags]
        grad_impression = grad_impression / counts[ctx.common_bags :]
    grad_weight = grad_weights = None
    if ctx.needs_input_grad[3]:
        grads = grad_common.contiguous(), grad_impression.contiguous()
        grad_weights = operators.pooled_embedding_weights_gradient(*grads, weight, rows, bags)
    if ctx.needs_input_grad[0] and ctx.queue is not None:
        traced = torch.compiler.is_compiling() or type(grad_common) is not Tensor
        operators.pooled_embedding_keep_gradient(
            ctx.queue,
            grad_common,
            grad_impression,
            weights,
            bags,
            touched,
            segments,
            by_row,
            traced,
        )
    elif ctx.needs_input_grad[0]:
        grads = grad_common.contiguous(), grad_impression.contiguous()
        if ctx.sparse:
            values = operators.pooled_embedding_row_gradients(
                *grads, weights, bags, segments, by_row
            )
            grad_weight = torch.sparse_coo_tensor(
                touched.long().unsqueeze(0),
                values,
                ctx.shape,
                is_coalesced=True,
                check_invariants=False,
            )
        else:
            grad_weight = operators.pooled_embedding_dense_gradient(
                *grads, weights, bags, touched, segments, by_row, ctx.shape[0]
            )
    return grad_weight, None, None, grad_weights, *([None] * 8)


torch.library.register_autograd("esmm_fast::pooled_embedding", _backward, setup_context=_setup)


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError("pooled_embedding: second derivatives are not implemented")


for _gradient in ("row_gradients", "dense_gradient", "weights_gradient", "by_occurrence"):
    torch.library.register_autograd(
        f"esmm_fast::pooled_embedding_{_gradient}", _no_second_derivative
    )


def pooled_embedding(
    weight: Tensor,  # [R, D], rows at any stride
    plan: Plan,
    common_bags: int,
    mean: bool = False,
    *,
    sparse: bool = False,
    queue: GradientQueue | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns each bag's value-weighted sum of rows, [common_bags, D] and [bags - common_bags, D].

    Letters: R rows of the table, D dimension, N occurrences. An empty bag gives 0. Equivalent to
    ``index_add(zeros, bag_of_occurrence, weight[rows] * weights[:, None])``, cut at `common_bags`.

    The gradient of a touched row is summed by one thread in the order of its occurrences (in blocks
    of 512 where it has more), so it has the same bits for any number of threads. On CUDA it has the
    same bits from run to run; there a row outside the table counts as zeros, and the next call on
    CUDA raises the IndexError (this call, where the environment has ESMM_FAST_CUDA_CHECK=1).

    Args:
        weight: [R, D] float32 or float64, 1 <= D <= 256. Rows may lie at any stride; their elements
            are contiguous.
        plan: Bags and transpose of the batch. `plan.weights` may require a gradient.
        common_bags: How many of the first bags go into the first output.
        mean: Divide each sum by the number of the bag's occurrences.
        sparse: Give the gradient of `weight` as a coalesced sparse tensor over the touched rows.
        queue: Where the backward pass leaves the gradient by bag for a fused optimizer, instead of
            giving `weight` one.

    Raises:
        IndexError: ``rows[17] = 400012 is outside the table of 400000 rows``.
        ValueError: An argument has the wrong shape, dtype or device, or offsets that descend or do
            not end at N.
        NotImplementedError: Inside torch.func.grad, vjp or jvp.

    >>> from esmm_fast.reference import batch_plan
    >>> weight = torch.tensor([[0., 0.], [1., 2.], [10., 20.]])
    >>> rows, weights = torch.tensor([1, 2, 2]), torch.tensor([1., 0.5, 2.])
    >>> plan = batch_plan(rows, torch.tensor([0, 2, 2, 3]), weights)
    >>> pooled_embedding(weight, plan, common_bags=2)  # bags {1, 2 x 0.5}, {} | {2 x 2}
    (tensor([[ 6., 12.],
            [ 0.,  0.]]), tensor([[20., 40.]]))
    """
    refuse_transforms("pooled_embedding", vmap=False)
    weights = plan.weights
    if weights is not None and weights.dtype != weight.dtype:
        weights = weights.to(weight.dtype)
    return operators.pooled_embedding(
        weight,
        plan.rows,
        plan.offsets,
        weights,
        plan.bag_of_occurrence,
        plan.touched_rows,
        plan.segment_ptr,
        plan.occurrence_by_row,
        None if queue is None else queue.tensor,
        common_bags,
        mean,
        sparse,
    )


class _EmbeddingBag(torch.autograd.Function):
    """Bags without a plan: what the backward pass needs of one, it makes."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        rows: Tensor,
        offsets: Tensor,
        weights: Tensor | None,
        mean: bool,
        sparse: bool,
    ) -> Tensor:
        # weight only where it is read, as above
        ctx.save_for_backward(weight if ctx.needs_input_grad[3] else None, rows, offsets, weights)
        ctx.mean, ctx.sparse, ctx.shape = mean, sparse, weight.shape
        none = rows.new_empty(0, dtype=torch.int32)  # of the plan: the forward pass reads none
        _, out = operators.pooled_embedding(
            weight, rows, offsets, weights, none, none, none, none, None, 0, mean, sparse
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, rows, offsets, weights = ctx.saved_tensors
        if ctx.mean:
            grad = grad / offsets.diff().clamp(min=1).unsqueeze(1)
        grad = grad.contiguous()
        grad_weight = grad_weights = None
        if ctx.needs_input_grad[0] and ctx.sparse:
            values = operators.pooled_embedding_by_occurrence(grad, offsets, weights, len(rows))
            grad_weight = torch.sparse_coo_tensor(
                rows.unsqueeze(0).long(), values, ctx.shape, check_invariants=False
            )
        if (ctx.needs_input_grad[0] and not ctx.sparse) or ctx.needs_input_grad[3]:
            bags, touched, segments, by_row = operators.batch_plan(rows, offsets, ctx.shape[0])
            if ctx.needs_input_grad[0] and not ctx.sparse:
                grad_weight = operators.pooled_embedding_dense_gradient(
                    grad[:0], grad, weights, bags, touched, segments, by_row, ctx.shape[0]
                )
            if ctx.needs_input_grad[3]:
                grad_weights = operators.pooled_embedding_weights_gradient(
                    grad[:0], grad, weight, rows.int(), bags
                )
        return grad_weight, None, None, grad_weights, None, None


def embedding_bag(
    weight: Tensor,  # [R, D]
    rows: Tensor,  # [N] int32 or int64
    offsets: Tensor,  # [bags + 1] int32 or int64
    weights: Tensor | None = None,  # [N]
    *,
    mean: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Returns each bag's value-weighted sum (or mean) of rows, [bags, D], without a plan.

    Equivalent to ``torch.nn.functional.embedding_bag`` with ``include_last_offset=True``; so is the
    gradient of `weight`: dense, or with `sparse` one row per occurrence, not coalesced.

    Raises:
        IndexError: ``rows[17] = 400012 is outside the table of 400000 rows``.
        ValueError: As in `pooled_embedding`.

    >>> weight = torch.tensor([[0., 0.], [1., 2.], [10., 20.]])
    >>> embedding_bag(weight, torch.tensor([1, 2, 2]), torch.tensor([0, 2, 2, 3]))
    tensor([[11., 22.],
            [ 0.,  0.],
            [10., 20.]])
    """
    return _EmbeddingBag.apply(weight, rows, offsets, weights, mean, sparse)
