"""`python appending_process.py <directory>`: a worker that appends to its spool until it is killed.

Prints the number of a record once `append` has returned for it. Several callers, so that transactions are shared.
With a third argument, no file of it may become larger than that many bytes.
"""

import asyncio
import itertools
import resource
import sys
from pathlib import Path

import structlog

from gateway.record import Record
from gateway.spool import Spool, SpoolRefusal

CALLERS = 8


async def main(directory: Path) -> None:
    spool = Spool(directory, bytes_max=1_000_000_000, age_max_s=1e12)
    await spool.open()
    numbers = itertools.count()

    async def call() -> None:
        for number in numbers:
            try:
                await spool.append([Record("t", number % 5, b"%d" % number, b"v%d" % number * 50, 1_000 + number)])
            except SpoolRefusal as refusal:
                print(refusal.reason, flush=True)
                break
            print(number, flush=True)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    await spool.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    asyncio.run(main(Path(sys.argv[1])))
