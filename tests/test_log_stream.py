"""The parser's threads: fewer than asked for do the same work; texts do not outlive their block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LINE = "1,0,0,bacff91692951881,1,205\x027\x031.0\n"

LIMITED = """
import re, resource, sys
from pathlib import Path
from esmm_fast._compiled import _native
from esmm_fast.data.logs import read_log
if len(sys.argv) > 3:
    read_log(sys.argv[1], threads=1)  # all is loaded, and one stack is there to be used again
size = int(re.search(r"VmSize:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
limit = size + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
print(read_log(sys.argv[1], threads=400, chunk_bytes=1 << 12).impressions.num_rows)
print(_native.count_newlines(sys.argv[1], 400))
"""


def limited(path: Path, *arguments: object) -> subprocess.CompletedProcess:
    path.write_text(LINE * 3000)
    command = [sys.executable, "-c", LIMITED, str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("room", [200 << 20, 5 << 20])
def test_with_fewer_threads_than_asked_for(tmp_path, room):
    """Memory for some stacks, or for none but that of a thread that ended."""
    done = limited(tmp_path / "skeleton.csv", room, "warm")
    assert (done.returncode, done.stdout) == (0, "3000\n3000\n"), done.stderr


def test_without_any_thread(tmp_path):
    """An error, no abort."""
    done = limited(tmp_path / "skeleton.csv", 5 << 20)
    assert done.returncode == 1, done.stderr
    assert "no thread can be started: Resource temporarily unavailable" in done.stderr


MEMORY = """
import dataclasses, re, sys
from pathlib import Path
from esmm_fast.data.log_format import LogFormat
from esmm_fast.data.logs import LogReader
from esmm_fast.schema import ALI_CCP
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
schema = LogFormat.of(ALI_CCP)
if sys.argv[2]:
    schema = dataclasses.replace(schema, separators=tuple(sys.argv[2]))
reader = LogReader(sys.argv[1], None, schema, threads=2, chunk_bytes=1 << 16, count_ids=False)
batches = reader.read("impression")
kept = [next(batches)]
before = resident()
kept += batches
print(resident() - before)
"""


def test_texts_of_own_separators_do_not_live_as_long_as_the_batches(tmp_path):
    """Long ids, few of them: a batch that is kept takes a part of what its text takes."""
    ids = "\x01".join(["210\x0200000000000000000007\x031.0000000000000000000"] * 20)
    line = f"1,0,0,bacff91692951881,20,{ids}\n"
    taken = []
    for separators in ("", "\t;=:"):
        spelled = line.translate(
            {ord(u): o for u, o in zip(",\x01\x02\x03", separators, strict=False)}
        )
        path = tmp_path / f"skeleton{len(taken)}.csv"
        path.write_text(spelled * 40_000)
        command = [sys.executable, "-c", MEMORY, path, separators]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        taken.append(int(done.stdout))
    text = path.stat().st_size >> 10
    assert taken[1] - taken[0] < text // 4, (taken, text)
