"""The embedded ClickHouse, killed between an INSERT's token and its part, takes the block again.

The state that such a kill leaves is made by hand: the newest token's part is taken away while the server is dead.
"""

import shutil
from pathlib import Path

import pytest

from deploy.local.clickhouse_tokens import forget_lost_tokens
from tests.integration.test_local_clickhouse import Server, count, rows, running

TABLES = [
    "CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree PARTITION BY a >= 1000 ORDER BY a "
    "SETTINGS non_replicated_deduplication_window = 100",
    "CREATE TABLE rollup (b String, n UInt64) ENGINE = SummingMergeTree ORDER BY b "
    "SETTINGS non_replicated_deduplication_window = 100",
    "CREATE MATERIALIZED VIEW rollup_view TO rollup AS SELECT substring(b, 1, 3) AS b, count() AS n FROM t GROUP BY b",
]
FORGOT = "forgot 1 tokens of parts that are not there"


def insert(server: Server, token: str, first: int, last: int) -> None:
    query = "INSERT INTO t FORMAT JSONEachRow"
    settings = {"async_insert": 0, "deduplicate_blocks_in_dependent_materialized_views": 1}
    answer = server.post(rows(first, last), query=query, insert_deduplication_token=token, **settings)
    assert answer.status_code == 200


def counts(server: Server) -> tuple[int, int, int]:
    """Rows, different rows, and what the view has counted."""
    return (
        count(server, "t"),
        int(server.ask("SELECT uniqExact(a) FROM t")),
        int(server.ask("SELECT sum(n) FROM rollup")),
    )


def killed(server: Server) -> str:
    """Its standard error."""
    server.process.kill()
    _, stderr = server.end()
    return stderr


class Table:
    """Its files, while no server has them open."""

    def __init__(self, data_dir: Path, name: str) -> None:
        self.directory = (data_dir / "data" / "default" / name).resolve()
        [self.log] = (self.directory / "deduplication_logs").iterdir()

    def records(self) -> list[str]:
        return self.log.read_text().splitlines(keepends=True)

    def undo(self, *, keep_token: bool = False) -> None:
        """The newest insert, as if the server had been killed before it, or just behind its token."""
        *older, newest = self.records()
        shutil.rmtree(self.directory / newest.split("\t")[1])
        if not keep_token:
            self.log.write_text("".join(older))


@pytest.mark.parametrize("hole", ["t", "rollup"])
def test_a_token_without_its_part_is_forgotten(tmp_path: Path, hole: str) -> None:
    with running(tmp_path) as server:
        for statement in TABLES:
            server.ask(statement)
        for token in range(4):
            insert(server, f"before {token}", token * 10, token * 10 + 10)
        server.ask("OPTIMIZE TABLE t FINAL")
        server.ask("SYSTEM STOP MERGES")  # there would have been no time for them
        insert(server, "newest", 40, 50)
        assert killed(server) == ""
    if hole == "t":
        Table(tmp_path, "rollup").undo()  # it has not got that far
    Table(tmp_path, hole).undo(keep_token=True)
    with running(tmp_path) as server:
        assert counts(server) == ((40, 40, 40) if hole == "t" else (50, 50, 40))
        for _ in range(2):
            insert(server, "newest", 40, 50)
            for token in range(4):
                insert(server, f"before {token}", token * 10, token * 10 + 10)
            assert counts(server) == (50, 50, 50)
        assert FORGOT in killed(server)
    with running(tmp_path) as server:
        insert(server, "newest", 40, 50)
        assert counts(server) == (50, 50, 50)
        assert killed(server) == ""


def test_a_block_of_two_parts_of_which_one_is_there(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for statement in TABLES:
            server.ask(statement)
        insert(server, "newest", 990, 1010)
        killed(server)
    Table(tmp_path, "rollup").undo()
    Table(tmp_path, "t").undo(keep_token=True)
    with running(tmp_path) as server:
        for _ in range(2):
            insert(server, "newest", 990, 1010)
            assert counts(server) == (20, 20, 20)
        assert FORGOT in killed(server)


def test_a_torn_record_hides_no_later_one(tmp_path: Path) -> None:
    """The engine itself would append to the torn line, and read neither it nor what follows."""
    with running(tmp_path) as server:
        for statement in TABLES:
            server.ask(statement)
        insert(server, "first", 0, 10)
        killed(server)
    with Table(tmp_path, "t").log.open("a") as log:
        log.write("1\tall_9_9_0\tall_12")
    for _ in range(2):
        with running(tmp_path) as server:
            insert(server, "first", 0, 10)
            insert(server, "second", 10, 20)
            assert counts(server) == (20, 20, 20)
            killed(server)


def test_the_log_of_a_running_server_is_left_alone(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        for statement in TABLES:
            server.ask(statement)
        insert(server, "first", 0, 10)
        table = Table(tmp_path, "t")
        with table.log.open("a") as log:
            log.write("1\tall_9_9_0\tall_12_3\n")
        before = table.records()
        assert forget_lost_tokens(tmp_path) == 0
        assert table.records() == before
