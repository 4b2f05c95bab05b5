"""Reads mutated logs with the parser and with the slow Python parser of the tests, for a time.

``python tests/fuzz/against_python.py [SECONDS [SEED]]`` prints how many logs were read and how many
of them accepted. What the parser accepts, the slow one must read the same way (it is more lenient:
it is no judge of what to refuse); what it refuses must have been mutated, and the error is the same
for other threads.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import slow_log

from esmm_fast.data.logs import LogError, read_log

BYTES = b"\x00\x01\x02\x03\n\r,.-+_e0123456789x\xff"


def mutated(rng: random.Random, text: str) -> bytes:
    """Returns the text with some bytes replaced, inserted or deleted, or a piece repeated."""
    data = bytearray(text.encode("latin-1"))
    for _ in range(rng.choice([0, 0, 0, 1, 2, 3])):
        at = rng.randrange(len(data) + 1)
        way = rng.randrange(4)
        if way == 0:
            data[at : at + 1] = bytes([rng.choice(BYTES)])
        elif way == 1:
            data[at:at] = bytes([rng.choice(BYTES)])
        elif way == 2:
            del data[at : at + rng.choice([1, 1, 8])]
        else:
            data[at:at] = data[at : at + rng.randrange(60)]
    return bytes(data)


def outcome(files: tuple[Path, Path], threads: int, chunk_bytes: int) -> object:
    """Returns the rows of a log, or the error as text."""
    try:
        log = read_log(*files, threads=threads, chunk_bytes=chunk_bytes)
    except LogError as error:
        return str(error)
    read = slow_log.stored(log.impressions, log.common_rows, log.schema)
    return read.impressions, list(read.common.items())


def one(folder: Path, rng: random.Random) -> bool:
    """Compares one log; returns whether it was accepted."""
    texts = slow_log.generate(rng, rng.randrange(1, 8), rng.randrange(1, 4), strange=True)
    skeleton, common = (mutated(rng, text) for text in texts)
    files = folder / "skeleton.csv", folder / "common.csv"
    files[0].write_bytes(skeleton)
    files[1].write_bytes(common)
    first = outcome(files, 1, 1 << 20)
    assert outcome(files, 2, rng.choice([1, 17, 100, 1000])) == first
    if isinstance(first, str):
        assert (skeleton, common) != tuple(text.encode("latin-1") for text in texts), first
        return False
    slow = slow_log.parse(skeleton.decode("latin-1"), common.decode("latin-1"))
    assert first == (slow.impressions, list(slow.common.items()))
    return True


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    end, read, accepted = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            rng = random.Random(seed + read)
            try:
                accepted += one(Path(folder), rng)
            except Exception:
                print(f"seed {seed + read}: the parsers differ", flush=True)
                raise
            read += 1
    print(f"{read} logs, {accepted} of them accepted, from seed {seed}")


if __name__ == "__main__":
    main()
