"""One pair of stores for all scenarios. CHAOS_SEEDS says how many seeds each seeded scenario runs with."""

import os
from collections.abc import Iterator

import pytest

from deploy.local.stack import STORES, Ports, Stack

SEEDS = int(os.environ.get("CHAOS_SEEDS", "1"))
FIRST_SEED = int(os.environ.get("CHAOS_FIRST_SEED", "1"))


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
