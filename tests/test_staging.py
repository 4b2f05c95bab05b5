"""staging: what is written is whole or not there, and errors name it; one process at a time."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from esmm_fast.staging import lock, staged_directory, staged_file


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        with staged_file(path) as staged:
            staged.write_text(content)
            assert path.exists() == (content == "second")
        assert path.read_text() == content
    for error in (KeyboardInterrupt(), ValueError("not about the file")):
        with pytest.raises(type(error)), staged_file(path) as staged:
            staged.write_text("third")
            raise error
    assert path.read_text() == "second" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_reported_with_the_file_that_was_to_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # stands for a full disk
    try:
        with pytest.raises(OSError) as error, staged_file(path) as staged:
            staged.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == f"{path}: cannot be made in {tmp_path}: File too large"
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_places_where_nothing_can_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    missing, below = tmp_path / "missing" / "out", tmp_path / "file" / "deep" / "out"
    with pytest.raises(FileNotFoundError, match=r"cannot be made in .*: No such file"):
        staged_file(missing).__enter__()
    for staged in (staged_file, staged_directory):
        with pytest.raises(OSError) as error, staged(below):
            raise AssertionError
        assert str(error.value) == (
            f"{below}: cannot be made in {below.parent}: "
            f"{tmp_path / 'file'} is a file; expected a directory"
        )
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    held = lock(tmp_path, "in use")
    with pytest.raises(FileExistsError, match="in use"):
        lock(tmp_path, "in use")
    os.close(held)
    os.close(lock(tmp_path, "in use"))
