"""One running pipeline a session and kind of stores."""

from collections.abc import Iterator

import pytest

from tests.integration import pipelines
from tests.integration.pipelines import Pipeline


@pytest.fixture(scope="session", params=["embedded", "containers"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    start = getattr(pipelines, request.param)
    with start(tmp_path_factory.mktemp(request.param)) as running:
        yield running
