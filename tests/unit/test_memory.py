"""schemas.memory: buffers that come and go cost no new pages, and the collector is not in the way. In processes of
their own, which it changes for good."""

import ctypes
import json
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
from schemas import memory
if sys.argv[1] == "settled":
    memory.settle()

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def buffers():
    for size in (30_000, 900_000, 4_000_000) * 10:
        kept = [b"x" * size for _ in range(3)]

buffers()
before = pages()
buffers()
print(pages() - before)
"""
COLLECTOR = """
import gc, json
from schemas import memory
memory.settle()
print(json.dumps([gc.get_freeze_count() > 1_000, gc.get_threshold(), gc.isenabled()]))
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc: its allocator is left as it is")
def test_freed_buffers_are_used_again() -> None:
    assert int(run(PAGES, "settled")) < 100 < 1_000 < int(run(PAGES, "as it is"))


def test_the_collector_looks_seldom_and_not_at_what_was_there() -> None:
    assert json.loads(run(COLLECTOR)) == [True, [50_000, 20, 100], True]
