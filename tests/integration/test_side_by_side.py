"""`make test` is two pytests: both count, both are heard, and Ctrl-C ends both."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What was started in the background ignores Ctrl-C, as does all that it starts.
RUN = """
import signal, sys
from tests.__main__ import run
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run([sys.argv[1]], [sys.argv[2]]))
"""
TESTS = {
    "passes": "def test_it(): pass",
    "fails": "def test_it(): assert False",
    # Says that it has begun, and that it was let end.
    "waits": """
import pathlib, time, pytest
directory = pathlib.Path(__file__).parent
@pytest.fixture
def held():
    yield
    (directory / "ended").touch()
def test_it(held):
    (directory / "begun").touch()
    time.sleep(600)
""",
}


@contextmanager
def side_by_side(directory: Path, first: str, second: str) -> Iterator["subprocess.Popen[str]"]:
    for name, kind in (("first", first), ("second", second)):
        (directory / name).mkdir()
        (directory / name / "pytest.ini").write_text("[pytest]\n")
        (directory / name / f"test_{name}.py").write_text(TESTS[kind])
    command = [sys.executable, "-c", RUN, directory / "first", directory / "second"]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts in a third of the time
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as both:
        try:
            yield both
        finally:
            both.kill()


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [("passes", "passes", 0), ("fails", "passes", 1), ("passes", "fails", 1), ("fails", "fails", 1)],
)
def test_both_are_heard_and_count(tmp_path: Path, first: str, second: str, status: int) -> None:
    with side_by_side(tmp_path, first, second) as both:
        printed, _ = both.communicate(timeout=60)
    assert both.returncode == status
    at = [printed.index("test_first.py"), printed.index("test_second.py")]
    assert at == sorted(at)
    assert printed.count("1 passed") == [first, second].count("passes")
    assert printed.count("1 failed") == [first, second].count("fails")


@pytest.mark.parametrize("first", ["waits", "passes", "fails"])
def test_ctrl_c_ends_both(tmp_path: Path, first: str) -> None:
    with side_by_side(tmp_path, first, "waits") as both:
        waiting = [tmp_path / name for name, kind in (("first", first), ("second", "waits")) if kind == "waits"]
        while not all((directory / "begun").exists() for directory in waiting):
            assert both.poll() is None
            time.sleep(0.02)
        assert both.stdout
        if first != "waits":
            while "1 passed" not in (line := both.stdout.readline()) and "1 failed" not in line:
                assert line
        both.send_signal(signal.SIGINT)
        printed, _ = both.communicate(timeout=60)
    assert both.returncode != 0
    assert printed.count("KeyboardInterrupt") >= len(waiting)
    assert all((directory / "ended").exists() for directory in waiting)
