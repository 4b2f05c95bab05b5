"""Finds and loads the compiled libraries; explains a failure with its likely causes."""

import ctypes
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import torch


def _find(name: str) -> Path | None:
    import esmm_fast

    for folder in esmm_fast.__path__:  # an editable install has two: sources and built files
        path = Path(folder) / name
        if path.exists():
            return path
    return None


def _load(name: str) -> ctypes.CDLL:
    path = _find(name)
    torch_line = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
    if path is None:
        import esmm_fast

        raise ImportError(
            f"esmm_fast was imported from {list(esmm_fast.__path__)}, but {name} is not there. "
            "Likely causes:\n"
            "  1. Python started in the source folder, hiding the installed package: start it\n"
            "     elsewhere, or call `pytest` instead of `python -m pytest`.\n"
            "  2. The package was copied instead of installed: run `pip install .`"
        )
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path))  # the same library, for its C functions
    except OSError as error:
        raise ImportError(
            f"{path} could not be loaded with {torch_line}: {error.__cause__ or error}. "
            "Likely causes:\n"
            "  1. torch is older than 2.10, the first with the stable ABI esmm_fast is built on.\n"
            "  2. The library was built for another platform or C++ runtime:\n"
            "     `pip install --force-reinstall --no-deps .`\n"
            "  3. A conda environment brings an older libstdc++ than the compiler that built it."
        ) from error


_cpu = _load("libesmm_fast_cpu.so")
_cpu.esmm_fast_isa.restype = _cpu.esmm_fast_isas.restype = ctypes.c_char_p

cuda_unavailable: str | None = None
"""Why the CUDA operators cannot be used, or None where they are loaded."""

if torch.version.cuda is None:
    cuda_unavailable = f"torch {torch.__version__} has no CUDA"
elif _find("libesmm_fast_cuda.so") is None:
    cuda_unavailable = "esmm_fast was built without CUDA (ESMM_FAST_CUDA=ON needs nvcc)"
else:
    try:
        _load("libesmm_fast_cuda.so")
    except ImportError as error:
        cuda_unavailable = str(error)


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


if _wanted_isa := os.environ.get("ESMM_FAST_ISA"):
    try:
        set_isa(_wanted_isa)
    except ValueError as error:
        raise ImportError(f"environment variable ESMM_FAST_ISA: {error}") from error


def version() -> str:
    """Returns the installed version of the package."""
    return importlib.metadata.version("esmm_fast")
