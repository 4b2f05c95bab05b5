"""Starts the esmm-fast command many times quickly: a process that has imported all of it forks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

_PARENT = """
import json, os, sys
import torch._dynamo, safetensors.torch, matplotlib.pyplot  # no operator runs before a fork
import esmm_fast.data.batches, esmm_fast.comparison.report, esmm_fast.run.run
from esmm_fast.cli import main

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        main(request["arguments"])
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forking:
    """A process that forks the command; one call at a time."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: object) -> int:
        """Starts the command and returns its process id."""
        request = {"arguments": [str(a) for a in arguments], "output": str(self.output)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def status(self) -> int:
        """Waits for the command's end; the exit status, or minus the signal that killed it."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, *arguments: object) -> tuple[int, str]:
        """Runs the command to its end; returns exit status and output."""
        self.start(*arguments)
        return self.status(), self.output.read_text()

    def send(self, process: int, number: signal.Signals) -> None:
        """Sends a signal; it may come too late."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    def close(self) -> None:
        """Ends the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
