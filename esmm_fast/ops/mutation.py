"""Bumps the version counter of a tensor that an operator writes: autograd then sees in-place changes."""

from typing import Any

import torch

_implementations = torch.library.Library("esmm_fast", "IMPL")


def bumps_version(name: str) -> None:
    """Makes `esmm_fast::name` bump the version of its first argument, which it must declare as mutated.

    A C++ operator with `Tensor(a!)` does not do so itself.
    """
    op = getattr(torch.ops.esmm_fast, name).default
    below = torch._C._after_ADInplaceOrView_keyset

    def bump(keyset: Any, mutated: torch.Tensor, *args: Any) -> Any:
        result = op.redispatch(keyset & below, mutated, *args)
        torch.autograd.graph.increment_version(mutated)
        return result

    _implementations.impl(name, bump, "ADInplaceOrView", with_keyset=True)
