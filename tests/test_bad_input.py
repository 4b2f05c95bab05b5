"""Bad input and bad surroundings: one clear error for any thread count, nothing half-finished."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from esmm_fast.data.logs import LogError, LogReader, read_log
from esmm_fast.data.prepare_log import prepare
from esmm_fast.data.synth import synth
from esmm_fast.schema import ALI_CCP

KEY = "bacff91692951881"
LINE = f"1,0,0,{KEY},1,205\x027\x031.0\n".encode()


def run(code: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# ---- Files that change


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("change", ["shrinks", "grows", "is written again"])
def test_a_file_that_changes_while_it_is_read(tmp_path, threads, change):
    path = tmp_path / "skeleton.csv"
    path.write_bytes(LINE * 2000)
    os.utime(path, (1, 1))
    reader = LogReader(path, None, ALI_CCP, threads=threads, chunk_bytes=64)
    batches = reader.read("impression")
    next(batches)
    if change == "shrinks":
        os.truncate(path, len(LINE) * 1000)
    elif change == "grows":
        with open(path, "ab") as file:
            file.write(LINE)
    else:
        with open(path, "r+b") as file:  # never shorter meanwhile
            file.write(LINE * 2000)
    expected = {
        "shrinks": r"became shorter while it was read; expected \d+ bytes, got \d+$",
        "grows": r":1 \(byte 0\): the file changed while it was read; expected the \d+ bytes of "
        r"the start, got \d+$",
        "is written again": r"changed while it was read; .* got as many that were written since$",
    }
    with pytest.raises(LogError, match=expected[change]) as caught:
        list(batches)
    assert (caught.value.file, caught.value.reason) == (str(path), "bad_file")
    assert "impression" not in reader.reports


def test_prepare_of_a_file_that_grows_leaves_nothing(tmp_path):
    path = tmp_path / "skeleton.csv"
    path.write_bytes(LINE * 200_000)
    os.utime(path, (1, 1))
    done = threading.Event()

    def grow() -> None:
        while not done.wait(0.001):
            with open(path, "ab") as file:
                file.write(LINE)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(LogError, match="changed while it was read"):
            prepare(skeleton=path, out=tmp_path / "out", threads=2, chunk_bytes=4096)
    finally:
        done.set()
        writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["skeleton.csv"]


# ---- Disks and permissions

LIMITED = """
import resource, sys
from esmm_fast.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
main(["prepare", "--skeleton", sys.argv[1], "--out", sys.argv[2]])
"""


@pytest.mark.parametrize("limit", [0, 500, 40_000])
def test_a_full_disk(tmp_path, limit):
    """A limit on the size of a file stands for the disk: the same error at the same calls."""
    path = tmp_path / "skeleton.csv"
    path.write_bytes(LINE * 5000)
    done = run(LIMITED, path, tmp_path / "out", limit)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "File too large" in done.stderr
    place = f"{tmp_path / 'out'}: cannot be written: File too large: impressions.arrow"
    assert done.stderr == f"Error: {place}\n"
    assert [p.name for p in tmp_path.iterdir()] == ["skeleton.csv"]
    assert len(prepare(skeleton=path, out=tmp_path / "out")) == 5000  # with room it goes


def test_a_full_tmpfs(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        path = tmp_path / "skeleton.csv"
        path.write_bytes(LINE * 5000)
        expected = rf"^{disk}/out: cannot be written: No space left on device: impressions\.arrow$"
        with pytest.raises(OSError, match=expected):
            prepare(skeleton=path, out=disk / "out", threads=2, chunk_bytes=5000)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


FORBIDDEN = """
import os, sys
import esmm_fast.data.dataset, esmm_fast.data.prepare_log  # while their files can be read
from esmm_fast.cli import main
if os.geteuid() == 0:
    os.seteuid(65534)  # root may read everything
main(["prepare", "--skeleton", sys.argv[1], "--out", sys.argv[2]])
"""


@pytest.mark.parametrize("what", ["log", "out"])
def test_no_permission(what):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        path = folder / "skeleton.csv"
        path.write_bytes(LINE)
        path.chmod(0 if what == "log" else 0o644)
        closed = folder / "closed"
        closed.mkdir(mode=0o555)
        out = closed / "out" if what == "out" else folder / "out"
        if what == "log":
            folder.chmod(0o777)
        done = run(FORBIDDEN, path, out)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "permission" in done.stderr.lower()
        assert str(path if what == "log" else closed) in done.stderr
        assert not out.exists()
        assert list(closed.iterdir()) == []


CLOSED = """
import os, sys
from esmm_fast.data.dataset import Dataset
Dataset(sys.argv[1])
os.chmod(sys.argv[1] + "/impressions.arrow", 0)
if os.geteuid() == 0:
    os.seteuid(65534)
Dataset(sys.argv[1])
"""


def test_a_data_file_without_permission_is_not_damaged():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        (folder / "skeleton.csv").write_bytes(LINE)
        prepare(skeleton=folder / "skeleton.csv", out=folder / "out")
        done = run(CLOSED, folder / "out")
        assert done.returncode == 1
        expected = f"PermissionError: {folder}/out/impressions.arrow cannot be read: Permission"
        assert expected in done.stderr and "damaged" not in done.stderr


# ---- Bytes

HUGE = 6_000_000  # features of a line: 102 MB


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_line_of_100_megabytes(tmp_path, threads):
    path = tmp_path / "skeleton.csv"
    huge = f"2,0,0,{KEY},{HUGE},".encode() + b"\x01".join([b"210\x021234567\x031.00"] * HUGE)
    assert len(huge) > 100_000_000
    with open(path, "wb") as file:
        file.write(LINE + huge + b"\n" + LINE)
    log = read_log(path, threads=threads)
    lengths = log.impressions["210"].combine_chunks().value_lengths().to_pylist()
    assert lengths == [0, HUGE, 0]
    with open(path, "r+b") as file:
        file.seek(len(LINE) + len(huge) - 1)
        file.write(b"x")
    with pytest.raises(LogError) as caught:
        read_log(path, threads=threads)
    assert (caught.value.line, caught.value.byte) == (2, len(LINE) + len(huge) - 1)
    assert len(str(caught.value)) < 1000
    assert "value is not a plain decimal" in str(caught.value)


@pytest.mark.parametrize("filler", [b"1", b"\x00", b"\xff", b"\x01"])
def test_a_file_without_a_line_end(tmp_path, filler):
    """What is no log at all is refused by its first bytes, and quoted in short."""
    path = tmp_path / "skeleton.csv"
    path.write_bytes(filler * 3_000_000)
    messages = set()
    for threads, chunk_bytes in [(1, 1 << 20), (2, 4096), (7, 100_000)]:
        with pytest.raises(LogError) as caught:
            read_log(path, threads=threads, chunk_bytes=chunk_bytes)
        messages.add(str(caught.value))
    assert len(messages) == 1
    message = messages.pop()
    assert ":1 (byte " in message
    assert len(message) < 500


@pytest.mark.parametrize("bad", [b"\x00", b"\xff", b"\x00" * 40, b"\xff" * 40])
@pytest.mark.parametrize("at", [0, 5, 10, 25, 30, 34])
def test_foreign_bytes_name_their_place(tmp_path, bad, at):
    """Around the eight bytes that numbers are read at a time."""
    path = tmp_path / "skeleton.csv"
    path.write_bytes(LINE * 300 + LINE[:at] + bad + LINE[at:] + LINE * 300)
    found = set()
    for threads, chunk_bytes in [(1, 1 << 20), (2, 1000), (7, 64)]:
        with pytest.raises(LogError) as caught:
            read_log(path, threads=threads, chunk_bytes=chunk_bytes)
        found.add((caught.value.line, caught.value.byte, str(caught.value)))
        log = read_log(path, threads=threads, chunk_bytes=chunk_bytes, on_error="skip")
        assert log.impressions.num_rows == 600
    assert len(found) == 1
    line, byte, message = found.pop()
    assert (line, byte) == (301, 300 * len(LINE) + at)
    assert f"\\x{bad[0]:02x}" in message


# ---- Bounds and counts


def test_memory_does_not_grow_with_the_log(tmp_path):
    """A log ten times as long takes no more memory than chunks, counters and keys do."""
    code = """
import re, sys
from pathlib import Path
from esmm_fast.data.prepare_log import prepare
prepare(sys.argv[1], out=sys.argv[2], threads=2, chunk_bytes=1 << 20)
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    peaks = []
    for impressions in (20_000, 200_000):
        log = tmp_path / str(impressions)
        synth(log, impressions, 1, seed=3)
        done = run(code, log, tmp_path / f"out{impressions}")
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 150_000, peaks


def test_counts_are_the_generators(tmp_path):
    made = synth(tmp_path / "log", 30_000, 2000, cvr=0.3, seed=5)
    assert json.loads((tmp_path / "log" / "synth.json").read_text())["train"] == made["train"]
    datasets = prepare(tmp_path / "log", out=tmp_path / "out", chunk_bytes=100_000)
    for half in ("train", "test"):
        info, expected = datasets[half].info(), made[half]
        anomalies = {name: found["count"] for name, found in info["anomalies"].items()}
        assert anomalies == expected["anomalies"]
        for name in ("impressions", "clicks", "conversions", "conversions_without_click"):
            assert info[name] == expected[name]
        assert info["common_rows"] == expected["common_rows"]
        assert info["common_rows_unused"] == expected["common_rows_unused"]
        assert info["fields"] == expected["fields"]


def test_open_files_are_bounded(tmp_path):
    """Many files of one log are not a reason to run out of descriptors silently."""
    parts = []
    for i in range(40):
        parts.append(tmp_path / f"part{i}")
        parts[-1].write_bytes(LINE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            read_log(parts)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_log(parts).impressions.num_rows == 40
