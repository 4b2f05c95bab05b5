"""The whole train half, once: writes it with `synth`, prepares it in a process of its own, and
records time, memory, size, and whether every count is the generator's.

``python bench/full_half.py FOLDER [--share 0.05] [--threads N] [--json]``. FOLDER gets about 19.5
GB of text and 5 GB of dataset, which are removed at the end (``--keep`` leaves them). A log of 1 GB
goes first, for the CPU time per row, and the disk's own rates are measured beside them: what is
written stays in the page cache where that is large enough, so wall time can be shorter than the
disk's. Resident memory counts the pages of mapped files that are touched, as Linux does; `prepare`
reads its input with pread and writes with write, so none of the log is mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness

from esmm_fast.data.dataset import TOTALS, Dataset
from esmm_fast.data.synth import IMPRESSIONS, synth

_GIGABYTE_OF_TEXT = 2_170_000  # impressions whose two files together are 1 GB
_PIECE = 4 << 20

PREPARE = """
import json, os, re, sys, time
from pathlib import Path
from esmm_fast.data.prepare_log import prepare
begin, cpu = time.perf_counter(), sum(os.times()[:2])
prepare(skeleton=sys.argv[1], common=sys.argv[2], out=sys.argv[3], threads=int(sys.argv[4]))
print(json.dumps({
    "wall_seconds": time.perf_counter() - begin,
    "cpu_seconds": sum(os.times()[:2]) - cpu,
    "peak_rss_bytes": 1024 * int(
        re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]
    ),
}))
"""
# VmHWM belongs to the new program; ru_maxrss begins with that of the process that forked it.


def disk_rates(folder: Path, megabytes: int = 1024) -> dict[str, float]:
    """Returns MB/s of a sequential write with fsync, and of reading it back from the disk."""
    path = folder / "disk_rate"
    data = os.urandom(_PIECE)
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(megabytes * (1 << 20) // _PIECE):
            file.write(data)
        os.fsync(file.fileno())
    written = time.perf_counter() - begin
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        while file.read(_PIECE):
            pass
    read = time.perf_counter() - begin
    path.unlink()
    size = megabytes * (1 << 20) / 1e6
    return {"write_fsync": round(size / written), "read": round(size / read)}


def differences(made: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """Returns each count of `info` that is not the generator's."""
    found = []
    for name in TOTALS:
        if made[name] != info[name]:
            found.append(f"{name}: generated {made[name]}, prepared {info[name]}")
    for field, counts in made["fields"].items():
        for name, count in counts.items():
            if info["fields"][field][name] != count:
                found.append(f"{field}.{name}: {count}, prepared {info['fields'][field][name]}")
    anomalies = {name: seen["count"] for name, seen in info["anomalies"].items()}
    if anomalies != made["anomalies"]:
        found.append(f"anomalies: generated {made['anomalies']}, prepared {anomalies}")
    return found


def measured(folder: Path, impressions: int, threads: int, keep: bool) -> dict[str, Any]:
    """Returns the facts of one log, written to and prepared in `folder`."""
    log, out = folder / f"log{impressions}", folder / f"dataset{impressions}"
    begin = time.perf_counter()
    made = synth(log, impressions, 1, seed=0, progress=sys.stderr.isatty())["train"]
    synth_seconds = time.perf_counter() - begin
    files = [log / "sample_skeleton_train.csv", log / "common_features_train.csv"]
    text = sum(file.stat().st_size for file in files)
    command = [sys.executable, "-c", PREPARE, *map(str, files), str(out), str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    begin = time.perf_counter()
    info = Dataset(out).info(verify=True)
    verify_seconds = time.perf_counter() - begin
    size = sum(file.stat().st_size for file in out.iterdir())
    if not keep:
        shutil.rmtree(log)
        shutil.rmtree(out)
    rows = impressions + made["common_rows"]
    return {
        "impressions": impressions,
        "common_rows": made["common_rows"],
        "text_bytes": text,
        "dataset_bytes": size,
        **facts,
        "gigabytes_per_second": text / 1e9 / facts["wall_seconds"],
        "cpu_nanoseconds_per_row": facts["cpu_seconds"] / rows * 1e9,
        "cpu_nanoseconds_per_byte": facts["cpu_seconds"] / text * 1e9,
        "synth_seconds": synth_seconds,
        "verify_seconds": verify_seconds,
        "differences_from_the_generator": differences(made, info),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the log and the dataset go")
    parser.add_argument("--share", type=float, default=1.0, help="of the train half's impressions")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", action="store_true", help="leave log and dataset")
    parser.add_argument("--json", action="store_true", help="write bench/results/full_half.json")
    parser.add_argument("--note", help="about the machine, for the record")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "facts": {**harness.facts(), "threads": options.threads, "note": options.note},
        "disk_megabytes_per_second": disk_rates(options.folder),
    }
    small, full = _GIGABYTE_OF_TEXT, round(IMPRESSIONS["train"] * options.share)
    record["one_gigabyte"] = measured(options.folder, small, options.threads, options.keep)
    record["train_half"] = measured(options.folder, full, options.threads, options.keep)
    per_row = [record[name]["cpu_nanoseconds_per_row"] for name in ("one_gigabyte", "train_half")]
    record["cpu_per_row_over_one_gigabyte"] = per_row[1] / per_row[0]
    print(json.dumps(record, indent=1))
    if options.json:
        harness.store("full_half", record)
    if wrong := record["train_half"]["differences_from_the_generator"]:
        sys.exit("counts differ from the generator's: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
