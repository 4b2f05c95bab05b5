"""Tests marked `cuda` are skipped without a GPU, and fail where ESMM_FAST_REQUIRE_CUDA=1."""

import os

import pytest
import torch

from esmm_fast import _library


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
