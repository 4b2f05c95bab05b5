"""What users hold bags in (tensors, arrays, lists of lists, Arrow columns), as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Values:
    """Numbers of a field's occurrences, and how many of them each bag holds where that is known."""

    flat: np.ndarray  # [N]
    lengths: np.ndarray | None  # [bags] int64; None where `flat` alone was given

    def __len__(self) -> int:
        return len(self.flat)


def values(what: str, given: Any) -> Values:
    """Returns the numbers of [N] or [bags, L] arrays, of a list per bag, or of an Arrow column.

    In an Arrow column a null is an empty bag.

    Raises:
        ValueError: Names the place inside `given`.

    >>> both = values("rows", [[3, 1], [], [2]])
    >>> both.flat.tolist(), both.lengths.tolist()
    ([3, 1, 2], [2, 0, 1])
    """
    if hasattr(given, "__arrow_c_array__") or hasattr(given, "__arrow_c_stream__"):
        return _of_arrow(what, given)
    if isinstance(given, Tensor):
        given = list(given.unbind()) if given.is_nested else given
    elif not isinstance(given, list | tuple):
        given = np.asarray(given)
        given = list(given) if given.dtype == object and given.ndim else given
    if isinstance(given, list | tuple) and any(map(_is_bag, given)):
        return _of_lists(what, given)
    numbers = array(what, given)
    if numbers.ndim == 2:
        bags, length = numbers.shape
        return Values(numbers.reshape(-1), np.full(bags, length))
    if numbers.ndim != 1:
        raise ValueError(
            f"{what}: expected shape [N] or [bags, L], or a list for each bag, got "
            f"{list(numbers.shape)}"
        )
    return Values(numbers, None)


def array(what: str, given: Any) -> np.ndarray:
    """Returns an array, tensor, number or list of numbers as a NumPy array (bfloat16 as float32).

    Raises:
        ValueError: It is not on the CPU, or no regular array of numbers.
    """
    if isinstance(given, Tensor):
        dense = tensor(what, given)
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    if isinstance(given, list | tuple):
        _check_numbers(what, given)
    try:
        found = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: expected an array of numbers: {error}") from error
    if found.dtype.kind == "f" and isinstance(given, list | tuple) and (found >= 2**63).any():
        exact = np.asarray(given, object)  # NumPy makes [1, 2**63] floats
        if all(isinstance(number, int) and number >= 0 for number in exact.flat):
            found = exact.astype(np.uint64)
    if found.dtype.kind not in "biuf":
        got = type(given).__name__ + f" of {found.dtype}" * bool(found.ndim)
        raise ValueError(f"{what}: expected numbers, got {got}")
    return found


def integers(what: str, given: Any) -> np.ndarray:
    """Returns `array(...)`, checked to hold integers of any width, signed or not."""
    return check_integers(what, array(what, given))


def check_integers(what: str, found: np.ndarray) -> np.ndarray:
    """Returns `found` if it holds integers; an empty list has no integer dtype, and becomes one."""
    if found.size == 0:
        return found.astype(np.int64)
    if found.dtype.kind not in "iu":
        raise ValueError(f"{what}: expected integers, got {found.dtype}")
    return found


def tensor(what: str, given: Any) -> Tensor:
    """Returns an array, tensor, number or list of numbers as a tensor without gradient.

    Raises:
        ValueError: It is not on the CPU, or no regular array of numbers.
    """
    if not isinstance(given, Tensor):
        found = array(what, given)
        return torch.from_numpy(np.require(found, found.dtype.newbyteorder("="), ["C", "W"]))
    if given.device.type != "cpu":
        raise ValueError(
            f"{what}: expected a tensor on cpu, got one on {given.device}; build the batch on the "
            "CPU and call .to(device)"
        )
    if given.is_nested or given.layout is not torch.strided:
        raise ValueError(f"{what}: expected a dense tensor, got {given.layout}")
    return given.detach()


def _is_bag(entry: Any) -> bool:
    if isinstance(entry, np.ndarray | Tensor):
        return entry.ndim > 0
    return isinstance(entry, list | tuple)


def _of_lists(what: str, bags: list[Any] | tuple[Any, ...]) -> Values:
    arrays = []
    for at, bag in enumerate(bags):
        here = f"{what}[{at}]"
        if not _is_bag(bag):
            hint = " (an empty bag is [])" if bag is None else ""
            raise ValueError(f"{here}: expected a list, as for other bags, got {bag!r}{hint}")
        numbers = array(here, bag)
        if numbers.ndim != 1:
            raise ValueError(
                f"{here}: expected the numbers of one bag, got shape {list(numbers.shape)}"
            )
        arrays.append(numbers)
    filled = [numbers for numbers in arrays if len(numbers)]  # an empty list has no dtype to join
    if {numbers.dtype.kind for numbers in filled} == {"i", "u"}:  # together they would be floats
        filled = [n.astype(np.uint64) if n.min() >= 0 else n for n in filled]
    flat = np.concatenate(filled or arrays)
    return Values(flat, np.array([len(numbers) for numbers in arrays]))


def _check_numbers(what: str, given: list[Any] | tuple[Any, ...]) -> None:
    """Raises where an entry is no number, or lists differ in length: NumPy names no place."""
    lists = bool(given) and isinstance(given[0], list | tuple)
    for at, entry in enumerate(given):
        here = f"{what}[{at}]"
        if isinstance(entry, list | tuple) != lists:
            raise ValueError(f"{here}: expected a {'list' if lists else 'number'}, got {entry!r}")
        if lists:
            _check_numbers(here, entry)
            if len(entry) != len(given[0]):
                raise ValueError(
                    f"{here}: expected {len(given[0])} numbers, as in {what}[0], got {len(entry)}"
                )
        elif not isinstance(entry, int | float | np.generic | np.ndarray | Tensor):
            raise ValueError(f"{here}: expected a number, got {entry!r}")
        elif isinstance(entry, int) and not -(2**63) <= entry < 2**64:
            raise ValueError(f"{here} = {entry}: expected a number of 64 bits")


def _of_arrow(what: str, given: Any) -> Values:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.chunked_array(given) if hasattr(given, "__arrow_c_stream__") else pa.array(given)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunks, in older releases
        column = pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    kind = column.type
    lengths = None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
        column = column.drop_null().flatten()
        if column.null_count:
            raise ValueError(f"{what}: expected lists without nulls inside, got {kind}")
    elif column.null_count:
        lengths = column.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
        column = column.drop_null()
    if pa.types.is_null(column.type):  # nothing but nulls, or empty lists
        column = column.cast(pa.int64())
    numbers = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
    if not any(of(column.type) for of in numbers):
        raise ValueError(f"{what}: expected a column of numbers or of lists of them, got {kind}")
    return Values(column.to_numpy(zero_copy_only=False), lengths)
