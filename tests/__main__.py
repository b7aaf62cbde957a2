"""`make test`: tests/chaos, which mostly waits, in a pytest of its own beside the one for all others.

What it prints comes behind what the others print. Ctrl-C ends both, and neither outlives us. Exits with 0 only if both
have passed.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import pytest

from deploy.local.process import Process

BESIDE = "tests/chaos"
POLL_S = 0.1


def run(arguments: Sequence[str], arguments_beside: Sequence[str]) -> int:
    """Of the two pytests; the exit status of the first that did not pass."""
    with tempfile.TemporaryDirectory(prefix="sluice-tests-") as directory:
        # It remembers no failures for `--lf`: it would overwrite those of the others.
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments_beside]
        beside = Process("pytest", command, log_path=Path(directory) / "log")
        beside.spawn()
        try:
            with beside.log_path.open(encoding="utf-8", errors="replace") as log:
                status = _run(arguments, beside, log)
        finally:
            beside.kill()
    return status or beside.exit_code or 0


def _run(arguments: Sequence[str], beside: Process, log: TextIO) -> int:
    try:
        status = int(pytest.main([*arguments]))
        if status != pytest.ExitCode.INTERRUPTED:
            _show(beside, log)
            return status
    except KeyboardInterrupt:
        pass
    # So that its fixtures stop and unmount what they have started. Another Ctrl-C ends it at once.
    if beside.is_running:
        os.kill(beside.pid, signal.SIGINT)
    _show(beside, log)
    return int(pytest.ExitCode.INTERRUPTED)


def _show(beside: Process, log: TextIO) -> None:
    """What it has printed, and prints until it ends."""
    is_running = True
    while is_running:
        is_running = beside.is_running
        shutil.copyfileobj(log, sys.stdout)
        sys.stdout.flush()
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(run([f"--ignore={BESIDE}"], [BESIDE]))
