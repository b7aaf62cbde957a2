"""One pair of stores for all scenarios. CHAOS_SEEDS says how many seeds each seeded scenario runs with.

CHAOS_OUTAGE_S is how long the gateway's outages last. With CHAOS_WRITE_TABLE=1 what they cost is written into
gateway/DESIGN.md.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import STORES, Ports, Stack
from tests.chaos.load import Figures, table

SEEDS = int(os.environ.get("CHAOS_SEEDS", "1"))
FIRST_SEED = int(os.environ.get("CHAOS_FIRST_SEED", "1"))
OUTAGE_S = float(os.environ.get("CHAOS_OUTAGE_S", "5"))
DESIGN_PATH = Path(__file__).parents[2] / "gateway" / "DESIGN.md"
TABLE_MARKERS = ("<!-- chaos: written by make chaos -->\n", "<!-- /chaos -->")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))


@pytest.fixture
def chaos_events() -> int:
    """In the long scenarios; `make chaos` runs them with 200,000."""
    return int(os.environ.get("CHAOS_EVENTS", "20000"))


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("chaos"), Ports.free(), parts=STORES) as stack:
        yield stack


@pytest.fixture(scope="session")
def figures() -> Iterator[list[Figures]]:
    """What each scenario with the gateway has measured."""
    measured: list[Figures] = []
    yield measured
    if measured:
        print(f"\n{table(measured)}")
    if measured and os.environ.get("CHAOS_WRITE_TABLE") == "1":
        begin, end = TABLE_MARKERS
        before, _, rest = DESIGN_PATH.read_text(encoding="utf-8").partition(begin)
        _, _, after = rest.partition(end)
        DESIGN_PATH.write_text(f"{before}{begin}{table(measured)}{end}{after}", encoding="utf-8")
