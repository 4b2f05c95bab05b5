"""README and docs/speed.md say what the records of bench/results say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_pages_say_what_the_records_say() -> None:
    command = [sys.executable, str(ROOT / "bench" / "summary.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
