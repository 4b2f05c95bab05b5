"""Libraries that are missing or do not load: the error gives the likely causes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import esmm_fast
from esmm_fast import _compiled, _library


def test_find() -> None:
    path = _compiled.find("libesmm_fast_cpu.so")
    assert path is not None and path.is_file()
    assert _compiled.find("libnothing.so") is None


def test_a_missing_library_gives_causes() -> None:
    with pytest.raises(ImportError, match=r"libnothing\.so is not there") as caught:
        _library._load("libnothing.so")
    assert "pip install ." in str(caught.value) and "source folder" in str(caught.value)


def test_an_unloadable_library_gives_causes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libbroken.so").write_bytes(b"not a library")
    monkeypatch.setattr(esmm_fast, "__path__", [*esmm_fast.__path__, str(tmp_path)])
    with pytest.raises(
        ImportError, match=r"libbroken\.so could not be loaded with torch"
    ) as caught:
        _library._load("libbroken.so")
    assert "2.10" in str(caught.value) and "libstdc++" in str(caught.value)


@pytest.mark.parametrize("broken", [False, True])
def test_the_parser_and_batches_give_causes(tmp_path: Path, broken: bool) -> None:
    copy = tmp_path / "esmm_fast"
    shutil.copytree(
        Path(_compiled.__file__).parent, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    native = _compiled._native.__file__
    if broken:
        (copy / Path(native).name).write_bytes(b"not a library")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import esmm_fast._compiled"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Likely causes" in done.stderr
    expected = "could not be loaded" if broken else "is not there"
    assert expected in done.stderr
