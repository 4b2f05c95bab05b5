"""Tests marked `cuda` are skipped without a GPU, and fail where ESMM_FAST_REQUIRE_CUDA=1."""

import os
from pathlib import Path

import pytest
import torch

import esmm_fast
from esmm_fast import _library

# A test's subprocess imports the package under test, not the folder it happens to start in.
os.environ["PYTHONSAFEPATH"] = "1"
os.environ["PYTHONPATH"] = str(Path(esmm_fast.__file__).parent.parent)


def _missing() -> str | None:
    if _library.cuda_unavailable:
        return _library.cuda_unavailable
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def pytest_report_header() -> str:
    reason = _missing()
    return f"cuda: not tested, {reason}" if reason else f"cuda: {torch.cuda.get_device_name()}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and (reason := _missing()):
        if os.environ.get("ESMM_FAST_REQUIRE_CUDA") == "1":
            pytest.fail(f"ESMM_FAST_REQUIRE_CUDA=1, but {reason}", pytrace=False)
        pytest.skip(reason)
