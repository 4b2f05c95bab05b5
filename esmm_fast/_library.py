"""Loads the operator libraries, and chooses their instruction set."""

import ctypes
import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ._compiled import find, missing, unloadable


def _load(name: str) -> ctypes.CDLL:
    path = find(name)
    if path is None:
        raise ImportError(missing(name))
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path))  # the same library, for its C functions
    except OSError as error:
        torch_line = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
        raise ImportError(unloadable(path, error.__cause__ or error, torch_line)) from error


_torch = tuple(int(part) for part in torch.__version__.split(".")[:2])
if not (2, 10) <= _torch < (2, 16):
    warnings.warn(f"esmm_fast was tested with torch 2.10 to 2.15; this is {torch.__version__}")

_cpu = _load("libesmm_fast_cpu.so")
_libraries = [_cpu]
_cpu.esmm_fast_isa.restype = _cpu.esmm_fast_isas.restype = ctypes.c_char_p

cuda_unavailable: str | None = None
"""Why the CUDA operators cannot be used, or None where they are loaded."""

if torch.version.cuda is None:
    cuda_unavailable = f"torch {torch.__version__} has no CUDA"
elif find("libesmm_fast_cuda.so") is None:
    cuda_unavailable = "esmm_fast was built without CUDA (ESMM_FAST_CUDA=ON needs nvcc)"
else:
    try:
        _libraries.append(_load("libesmm_fast_cuda.so"))
    except ImportError as error:
        cuda_unavailable = str(error)
for _library in _libraries:
    _library.esmm_fast_refused.restype = ctypes.c_char_p


_OWN = "esmm_fast::"


def _names() -> list[str]:
    return sorted(n for n in torch._C._dispatch_get_all_op_names() if n.startswith(_OWN))


def _raises_value_errors(op: Any) -> Any:
    """Returns `op`, whose ValueErrors torch >= 2.14 hands to Python as RuntimeErrors."""

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        try:
            return op(*args)
        except RuntimeError as error:
            if any(library.esmm_fast_refused() == str(error).encode() for library in _libraries):
                raise ValueError(str(error)) from None
            raise

    return call if _torch >= (2, 14) else op


operators: Any = SimpleNamespace()
"""The operators of ``torch.ops.esmm_fast``, by name."""
for _name in _names():
    _op = getattr(torch.ops.esmm_fast, _name.removeprefix(_OWN)).default
    setattr(operators, _name.removeprefix(_OWN), _raises_value_errors(_op))

_implementations = torch.library.Library("esmm_fast", "IMPL")


def bumps_version(name: str) -> None:
    """Makes `esmm_fast::name` bump the version of its first argument, the one it mutates.

    A C++ operator with `Tensor(a!)` does not do so itself, and autograd would miss the change.
    """
    op = getattr(torch.ops.esmm_fast, name).default
    below = torch._C._after_ADInplaceOrView_keyset

    def bump(keyset: Any, mutated: torch.Tensor, *args: Any) -> Any:
        result = op.redispatch(keyset & below, mutated, *args)
        torch.autograd.graph.increment_version(mutated)
        return result

    _implementations.impl(name, bump, "ADInplaceOrView", with_keyset=True)


def refuse_transforms(op: str, vmap: bool = True) -> None:
    """Raises inside a transform of torch.func, for torch's own error there names no operator.

    Args:
        op: The operator.
        vmap: Whether it cannot be inside torch.func.vmap either.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    kinds = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    refused = [k for k in kinds if vmap or k != torch._C._functorch.TransformType.Vmap]
    if refused:
        raise NotImplementedError(
            f"{op}: expected no transform of torch.func, got {refused[0].name.lower()}; "
            "take loss.backward() or torch.autograd.grad"
        )


def operators_fingerprint(sources: Iterable[Path]) -> str:
    """Returns a hash of the operators: their schemas, and the Python files of their autograd."""
    digest = hashlib.blake2b(digest_size=8)
    for name in _names():
        schema = torch._C._get_schema(*(name.split(".") if "." in name else (name, "")))
        digest.update(str(schema).encode())
    for path in sorted(sources):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def key_compile_caches(fingerprint: str) -> None:
    """Adds the operators' fingerprint to the key of torch.compile's caches on disk.

    What torch keeps of a compiled graph holds the operators' fake kernels and backward passes as
    they were traced, under a key that knows the operators' names alone: without this, a graph from
    before an upgrade of esmm_fast would run after it.
    """
    tag = torch.compiler.config.cache_key_tag
    torch.compiler.config.cache_key_tag = f"{tag} esmm_fast-{fingerprint}".strip()


def set_isa(name: str) -> None:
    """Makes the CPU kernels run their copy for one instruction set.

    The environment variable ESMM_FAST_ISA does the same when esmm_fast is imported. Results have
    the same bits for any number of threads within one instruction set.

    Args:
        name: ``"baseline"``, ``"avx2"``, ``"avx512"``, or ``"best"``, the best one of this machine
            (the default).

    Raises:
        ValueError: This machine lacks it, or there is no such one: ``instruction set: expected one
            of baseline, avx2, best on this machine, got 'avx512'``.

    >>> before = isa()
    >>> set_isa("baseline")
    >>> isa()
    'baseline'
    >>> set_isa(before)
    """
    if not _cpu.esmm_fast_set_isa(name.encode()):
        known = _cpu.esmm_fast_isas().decode()
        raise ValueError(
            f"instruction set: expected one of {known}, best on this machine, got {name!r}"
        )


def isa() -> str:
    """Returns the name of the instruction set whose kernels run."""
    return _cpu.esmm_fast_isa().decode()


def has_tiles() -> bool:
    """Returns whether the operators on matrix tiles run; see `ops.has_tiles`."""
    return bool(_cpu.esmm_fast_has_tiles())


if _wanted_isa := os.environ.get("ESMM_FAST_ISA"):
    try:
        set_isa(_wanted_isa)
    except ValueError as error:
        raise ImportError(f"environment variable ESMM_FAST_ISA: {error}") from error
