"""Logs as users have them: archives in any order of members, gzip, standard input, and damage."""

from __future__ import annotations

import gzip
import io
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import slow_log

from esmm_fast.data import inputs
from esmm_fast.data.inputs import Inputs, LogFile
from esmm_fast.data.logs import LogError, LogReader, read_log
from esmm_fast.data.prepare_log import prepare
from esmm_fast.progress import Progress
from esmm_fast.schema import ALI_CCP

NAMES = ("sample_skeleton_{}.csv", "common_features_{}.csv")


def texts_of(seed: int, impressions: int = 40) -> tuple[str, str]:
    return slow_log.generate(random.Random(seed), impressions, 5)


def archive(path: Path, members: dict[str, str | bytes], *, folder: str = "") -> Path:
    """Writes a tar archive, compressed where its name says so."""
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as tar:
        for name, text in members.items():
            data = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def half(path: Path, seed: int, order: int = 1, name: str = "train", **options) -> Path:
    """Writes an archive of one half; order -1: the common rows stand first."""
    members = dict(zip((n.format(name) for n in NAMES), texts_of(seed), strict=True))
    return archive(path, dict(list(members.items())[::order]), **options)


def rows(dataset) -> slow_log.SlowLog:
    return slow_log.stored(dataset.impressions, dataset.common_rows, dataset.schema)


@pytest.fixture(params=["isal", "zlib"])
def either_gzip(request, monkeypatch):
    """Runs a test with both decompressors."""
    if request.param == "zlib":
        monkeypatch.setattr(inputs, "GzipFile", gzip.GzipFile)
    else:
        pytest.importorskip("isal")
    return request.param


# ---- Archives


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_halves_in_archives(tmp_path, either_gzip, order, suffix):
    """Members are found by name in any order, in a directory and given one by one."""
    log = tmp_path / "log"
    log.mkdir()
    archives = [
        half(log / f"sample_{name}{suffix}", seed, order, name, folder="./some/folder/")
        for seed, name in enumerate(("train", "test"))
    ]
    for i, given in enumerate((log, archives, archives[::-1])):
        datasets = prepare(given, out=tmp_path / f"out{i}", threads=2, chunk_bytes=1000)
        assert sorted(datasets) == ["test", "train"]
        for seed, name in enumerate(("train", "test")):
            slow = slow_log.parse(*texts_of(seed))
            assert rows(datasets[name]).impressions == slow.impressions
            assert rows(datasets[name]).common == slow.common
            source = datasets[name].manifest["source"]
            assert source["skeleton"] == [f"sample_skeleton_{name}.csv"]
            assert datasets[name].info()["published"]["half"] == name


@pytest.mark.parametrize(("order", "passes"), [(-1, 1), (1, 2)])
def test_an_archive_is_read_once_where_its_order_allows(tmp_path, order, passes):
    path = half(tmp_path / "sample_train.tar.gz", 0, order)
    told = []
    reader = LogReader(
        path, path, ALI_CCP, threads=1, chunk_bytes=500, advance=lambda *at: told.append(at)
    )
    for side in reader.sides:
        assert sum(batch.num_rows for batch, _ in reader.read(side))
    assert reader._inputs._archives[path]._passes == passes
    size = path.stat().st_size
    assert told[-1] == (passes * size, passes * size)
    assert sorted(told) == told  # never backwards


def test_one_archive_of_another_name(tmp_path):
    """Its members can be packed themselves, among others; a member of a member is no archive."""
    skeleton, common = texts_of(3)
    path = archive(
        tmp_path / "mine.tar",
        {
            "README": "x" * 5000,
            "._sample_skeleton.csv": "junk",
            "sample_skeleton.csv.gz": gzip.compress(skeleton.encode()),
            "common_features.csv.gz": gzip.compress(common.encode()),
        },
    )
    renamed = path.rename(tmp_path / "download")  # found by content
    dataset = prepare(renamed, out=tmp_path / "out")
    assert rows(dataset).impressions == slow_log.parse(skeleton, common).impressions
    log = read_log(renamed)  # the skeleton alone
    assert log.impressions.num_rows == 40
    with pytest.raises(ValueError, match=r"common: .*download once expected, got it twice"):
        read_log(renamed, [renamed, renamed])


def test_plain_files_stand_before_an_archive(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    half(log / "sample_train.tar.gz", 0)
    slow_log.write(log, *texts_of(1))
    assert rows(prepare(log, out=tmp_path / "out")["train"]).common == (
        slow_log.parse(*texts_of(1)).common
    )


def test_errors_in_a_member_have_their_place(tmp_path):
    skeleton, common = texts_of(0)
    bad = skeleton.replace("\n", "\nx,", 3)
    path = archive(
        tmp_path / "a.tar.gz", {"sample_skeleton.csv": bad, "common_features.csv": common}
    )
    at = bad.index("x,")
    with pytest.raises(LogError, match=rf"a\.tar\.gz/sample_skeleton\.csv:2 \(byte {at}\): sample"):
        prepare(path, out=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz"]


# ---- Damage


@pytest.mark.parametrize("order", [1, -1])
def test_a_truncated_archive(tmp_path, either_gzip, order):
    """Wherever it is cut: an error that names it, and nothing left behind."""
    whole = half(tmp_path / "w.tar.gz", 0, order).read_bytes()
    path = tmp_path / "sample_train.tar.gz"
    (tmp_path / "w.tar.gz").unlink()
    for cut in [0, 1, 2, 15, *range(200, len(whole) - 1, len(whole) // 9), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"sample_train\.tar\.gz.*(cannot be read|has no)"):
            prepare(path, out=tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("order", [1, -1])
def test_a_corrupt_archive(tmp_path, either_gzip, order):
    whole = half(tmp_path / "sample_train.tar.gz", 0, order).read_bytes()
    path = tmp_path / "sample_train.tar.gz"
    rng = random.Random(order)
    for at in [*(rng.randrange(30, len(whole)) for _ in range(12)), len(whole) - 6]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sample_train\.tar\.gz"):
            prepare(path, out=tmp_path / "out", threads=2, chunk_bytes=700)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_plain_archive_that_is_cut_or_damaged(tmp_path):
    path = half(tmp_path / "a.tar", 0, -1)
    whole = path.read_bytes()
    second = whole.index(b"sample_skeleton")
    for data, message in [
        (
            whole[: second + 2000],
            r"skeleton_train\.csv:\d+ \(byte \d+\): .*the archive ends inside",
        ),
        (whole[:second], r"has no sample_skeleton\.csv; it holds common_features_train\.csv"),
        (whole[:second] + b"X" + whole[second + 1 :], r"\(byte \d+ of .*header of a member is dam"),
        (whole[: second + 30], r"\(byte \d+ of the unpacked archive\): the header of a member is"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            prepare(path, out=tmp_path / "out")
        assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_archives_that_do_not_fit(tmp_path):
    skeleton, common = texts_of(0)
    both = {
        n.format(h): t
        for h in ("train", "test")
        for n, t in zip(NAMES, (skeleton, common), strict=True)
    }
    path = archive(tmp_path / "all.tar.gz", both)
    with pytest.raises(
        ValueError, match=r"one common_features\.csv expected in the archive, got c"
    ):
        prepare(path, out=tmp_path / "out")
    named = path.rename(tmp_path / "sample_test.tar.gz")
    assert len(prepare(named, out=tmp_path / "out")["test"]) == 40  # its half alone is meant
    other = archive(tmp_path / "other.tar.gz", {"a": "", "b": ""})
    with pytest.raises(ValueError, match=r"has no common_features\.csv; it holds a, b"):
        prepare(other, out=tmp_path / "new")
    with pytest.raises(
        ValueError, match=r"or one archive expected, got sample_test\.tar\.gz and o"
    ):
        prepare([named, other], out=tmp_path / "new")
    (tmp_path / "text").write_text(skeleton)
    with pytest.raises(ValueError, match=r"text: a directory .* or a tar archive of them expected"):
        prepare(tmp_path / "text", out=tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="none: no such file or directory"):
        prepare(tmp_path / "none", out=tmp_path / "new")
    with pytest.raises(ValueError, match="one directory or archives expected"):
        prepare([named, tmp_path], out=tmp_path / "new")


# ---- Standard input


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input(tmp_path, packed):
    texts = texts_of(2)
    files = slow_log.write(tmp_path, *texts)
    data = gzip.compress(texts[0].encode()) if packed else texts[0].encode()
    command = [sys.executable, "-m", "esmm_fast", "prepare", "--skeleton", "-"]
    command += ["--common", files[1], "--out", tmp_path / "out"]
    done = subprocess.run(command, input=data, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    from esmm_fast.data.dataset import Dataset

    dataset = Dataset(tmp_path / "out")
    assert rows(dataset).impressions == slow_log.parse(*texts).impressions
    assert dataset.manifest["source"]["skeleton"] == ["<stdin>"]
    bad = data[:-20] if packed else data + b"x\n"
    done = subprocess.run([*command[:-1], tmp_path / "new"], input=bad, capture_output=True)
    assert done.returncode == 1
    place = r"1 \(byte 0\): the stream cannot be read" if packed else r"41 \(byte \d+\): sample_id"
    assert re.match(rf"Error: <stdin>:{place}", done.stderr.decode()), done.stderr
    assert not (tmp_path / "new").exists()


def test_standard_input_lies_in_no_folder(tmp_path, monkeypatch):
    """A synth.json where the process stands says nothing about it."""
    monkeypatch.chdir(tmp_path)
    Path("synth.json").write_text("{}")
    assert not LogReader("-", None, ALI_CCP).synthetic
    Path("skeleton.csv").write_text("")
    assert LogReader("skeleton.csv", None, ALI_CCP).synthetic


def test_standard_input_is_there_once():
    with pytest.raises(ValueError, match=r"skeleton: standard input .* once expected"):
        read_log(["-", "-"])
    with pytest.raises(ValueError, match="is given for skeleton and for common"):
        read_log("-", "-")
    unknown = Inputs([LogFile(Path("-"), "skeleton")])
    assert (unknown.done, unknown.total) == (0, None)


# ---- Progress


def test_progress_of_a_packed_file_beside_a_plain_one(tmp_path):
    plain, packed = tmp_path / "a.csv", tmp_path / "b.csv.gz"
    plain.write_text(texts_of(0)[0])
    packed.write_bytes(gzip.compress(texts_of(1)[0].encode()))
    told = []
    reader = LogReader(
        [plain, packed], None, ALI_CCP, chunk_bytes=500, advance=lambda *at: told.append(at)
    )
    assert sum(batch.num_rows for batch, _ in reader.read("impression")) == 80
    size = plain.stat().st_size + packed.stat().st_size
    assert told[-1] == (size, size)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_without_one(tmp_path, monkeypatch):
    terminal = Terminal()
    with Progress("prepare", terminal) as progress:
        progress.update(5_000_000, 10_000_000)
        progress.update(10_000_000, 10_000_000)
    assert "10.0M/10.0M" in terminal.getvalue() and "B/s" in terminal.getvalue()
    log = tmp_path / "log"
    log.mkdir()
    half(log / "sample_train.tar.gz", 0)
    half(log / "sample_test.tar.gz", 1, name="test")
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {"every": 0, "clock": clock()})
    prepare(log, out=tmp_path / "out", chunk_bytes=2000, threads=1, progress=True)
    shown = lines.getvalue().splitlines()
    assert len(shown) > 8
    assert all(line.startswith("prepare: 0.0 MB of 0.0 MB (") for line in shown)
    assert "(100 %)" in shown[-1] and shown[-1].endswith(", 0:00 left")


def clock():
    seconds = iter(range(10**6))
    return lambda: float(next(seconds))
