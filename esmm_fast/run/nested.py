"""Nested state apart and together again: its tensors by name, and plain JSON for all the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_MARKS = ("tensor", "tuple", "dict", "float")


def split_tensors(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Returns a state as plain JSON values, and its tensors by the names that stand there.

    What JSON has no word for becomes a dict of one marked key: ``{"tensor": name}``,
    ``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}`` (keys that are no texts) and
    ``{"float": "nan"}``. `join_tensors` is the inverse, to the last bit.

    Raises:
        TypeError: Naming the place of a value that is none of those.

    >>> import torch
    >>> plain, tensors = split_tensors({"betas": (0.9, 0.5), "state": {0: torch.ones(2)}})
    >>> plain
    {'betas': {'tuple': [0.9, 0.5]}, 'state': {'dict': [[0, {'tensor': 'state.0'}]]}}
    >>> join_tensors(plain, tensors)
    {'betas': (0.9, 0.5), 'state': {0: tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}
    return _plain(value, "", tensors), tensors


def join_tensors(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns the state that `split_tensors` took apart."""
    if isinstance(plain, list):
        return [join_tensors(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) == 1:
        mark, inner = next(iter(plain.items()))
        if mark == "tensor":
            return tensors[inner]
        if mark == "tuple":
            return tuple(join_tensors(item, tensors) for item in inner)
        if mark == "dict":
            return {key: join_tensors(item, tensors) for key, item in inner}
        if mark == "float":
            return float(inner)
    return {key: join_tensors(item, tensors) for key, item in plain.items()}


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = place or "tensor"
        while name in tensors:  # {"a.b": ...} beside {"a": {"b": ...}}, or a key 0 beside "0"
            name += "'"
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    before = f"{place}." if place else ""
    if isinstance(value, Mapping):
        items = [(key, _plain(item, f"{before}{key}", tensors)) for key, item in value.items()]
        marked = len(items) == 1 and items[0][0] in _MARKS
        if all(isinstance(key, str) for key, _ in items) and not marked:
            return dict(items)
        return {"dict": [list(item) for item in items]}
    if isinstance(value, list | tuple):
        listed = [_plain(item, f"{before}{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": listed} if isinstance(value, tuple) else listed
    raise TypeError(
        f"{place or 'state'}: expected tensors, numbers, texts, None, and dicts, lists and tuples "
        f"of them, got {type(value).__name__}"
    )
