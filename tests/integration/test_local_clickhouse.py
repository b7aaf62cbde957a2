"""The embedded ClickHouse behind HTTP, as its clients see it: a real process, real clients, broken on purpose.

One server for most of the tests, each in a database of its own; those that stop or kill one start their own.
"""

import gzip
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import clickhouse_connect
import httpx
import lz4.frame  # type: ignore[import-untyped]
import psutil  # type: ignore[import-untyped]
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, StreamFailureError

from deploy.local.clickhouse_codecs import DECODERS
from deploy.local.clickhouse_engine import QUERIES_MAX
from deploy.local.clickhouse_sql import insert_in, query_in

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READY_S_MAX = 60
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.decompress,
    "zstd": zstd.decompress,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}
ENDLESS = "SELECT number, sipHash64(number) FROM numbers(1000000000000)"
# Computes for ever and gives out nothing.
SILENT = "SELECT number FROM numbers(1000000000000) WHERE sipHash64(number) = 1"


class Server:
    """One server process."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        command = [sys.executable, "-m", "deploy.local.clickhouse", "--data-dir", str(data_dir), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_until_ready(self) -> "Server":
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        assert self.line, self.end()
        self.url = self.line.partition(" listening on ")[2].partition(",")[0]
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.port = urlsplit(self.url).port or 0
        eventually(lambda: self.get("/ping").status_code == 200, READY_S_MAX)
        return self

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(
        self, body: bytes | str = b"", *, headers: dict[str, str] | None = None, **parameters: Any
    ) -> httpx.Response:
        return self.http.post(f"/?{urlencode(parameters)}", content=body, headers=headers)

    def ask(self, query: str, **parameters: Any) -> str:
        """The result as text, of a query that is well."""
        answer = self.post(query, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.text.rstrip("\n")

    def running(self) -> int:
        """Queries in the engine, this one not counted."""
        return int(self.ask("SELECT count() - 1 FROM system.processes"))

    def end(self, signum: int | None = None) -> tuple[int, str]:
        """Exit code and what it printed as an error."""
        if signum is not None:
            self.process.send_signal(signum)
        try:
            _, stderr = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, stderr


@contextmanager
def running(data_dir: Path, *options: str) -> Iterator[Server]:
    server = Server(data_dir, *(options or ("--port", "0")))
    try:
        yield server.wait_until_ready()
    finally:
        server.http.close()
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def eventually(is_so: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            if is_so():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "it did not come to be so in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server
        # After all that it has been through, it ends well and has had nothing to say.
        assert server.end(signal.SIGTERM) == (0, "")


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"db_{abs(hash(request.node.nodeid))}"
    server.ask(f"CREATE DATABASE {name}")
    yield name
    server.ask(f"DROP DATABASE {name} SYNC")


@pytest.fixture
def table(server: Server, database: str) -> str:
    """A table of numbers and texts, with a window for deduplication."""
    server.ask(
        f"CREATE TABLE {database}.t (a UInt64, b String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    return f"{database}.t"


@pytest.fixture
def client(server: Server, database: str) -> Iterator[Client]:
    client = clickhouse_connect.get_client(host="127.0.0.1", port=server.port, database=database)
    yield client
    client.close()


def count(server: Server, table: str) -> int:
    return int(server.ask(f"SELECT count() FROM {table}"))


def rows(first: int, last: int) -> bytes:
    return b"".join(b'{"a":%d,"b":"row %d"}\n' % (n, n) for n in range(first, last))


# -- Endpoints and where a query comes from


@pytest.mark.parametrize("path", ["/ping", "/replicas_status", "/"])
def test_health_checks(server: Server, path: str) -> None:
    assert server.get(path).text == "Ok.\n"
    assert server.http.head(path).status_code == 200


def test_another_path_is_404(server: Server) -> None:
    assert server.get("/nothing").status_code == 404


def test_a_query_comes_in_the_url_or_the_body_or_both(server: Server) -> None:
    assert server.get("/", params={"query": "SELECT 1"}).text == "1\n"
    assert server.post("SELECT 2").text == "2\n"
    assert server.post("+ 1", query="SELECT 2").text == "3\n"
    # The two parts are apart by a line break: a comment in the first does not swallow the second.
    assert server.post("+ 1", query="SELECT 2 -- two").text == "3\n"
    assert server.post(b"SELECT hex('\xff')").text == "FF\n"
    assert server.get("/?query=SELECT%20hex('%FF')").text == "FF\n"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_only_post_writes(server: Server, table: str, method: str) -> None:
    refused = server.http.request(method, "/", params={"query": f"INSERT INTO {table} VALUES (1, 'x')"})
    assert (refused.status_code, refused.headers["X-ClickHouse-Exception-Code"]) == (500, "164")
    allowed = server.http.request(method, "/", params={"query": "SELECT 1", "max_threads": "1"})
    assert allowed.status_code == 200
    assert count(server, table) == 0


def test_headers_of_an_answer(server: Server, table: str) -> None:
    headers = server.post("SELECT number FROM numbers(10)", query_id="my-id").headers
    assert headers["X-ClickHouse-Query-Id"] == "my-id"
    assert headers["X-ClickHouse-Format"] == "TabSeparated"
    assert headers["X-ClickHouse-Timezone"] == server.ask("SELECT timezone()")
    assert headers["X-ClickHouse-Server-Display-Name"]
    assert headers["Content-Type"].startswith("text/tab-separated-values")
    assert json.loads(headers["X-ClickHouse-Summary"])["read_rows"] == "10"
    insert = server.post(rows(0, 7), query=f"INSERT INTO {table} FORMAT JSONEachRow")
    assert json.loads(insert.headers["X-ClickHouse-Summary"])["written_rows"] == "7"
    assert "X-ClickHouse-Format" not in insert.headers
    assert insert.text == ""


def test_the_format_of_an_answer(server: Server) -> None:
    assert server.ask("SELECT 1 AS x", default_format="JSONEachRow") == '{"x":1}'
    assert server.post("SELECT 1 AS x", headers={"X-ClickHouse-Format": "JSONEachRow"}).text == '{"x":1}\n'
    own = server.post("SELECT 1 AS format FORMAT CSVWithNames", default_format="JSON")
    assert (own.text, own.headers["X-ClickHouse-Format"]) == ('"format"\n1\n', "CSVWithNames")
    assert server.post("SELECT 1 FORMAT JSON").json()["data"] == [{"1": 1}]
    # With a foot, which the engine leaves out of what it streams.
    totals = "SELECT number % 2 AS k, count() FROM numbers(10) GROUP BY k WITH TOTALS ORDER BY k"
    assert server.ask(totals) == "0\t5\n1\t5\n\n0\t10"
    assert server.ask("SELECT 1", default_format="JSONEachRow", output_format_json_array_of_rows=1) == '[\n{"1":1}\n]'
    assert server.ask("SELECT 1", extremes=1) == "1\n\n1\n1"
    assert server.post("SELECT 1", default_format="DataFrame").headers["X-ClickHouse-Exception-Code"] == "73"


def test_statements_of_all_kinds(server: Server, database: str) -> None:
    ask = server.ask
    ask(f"CREATE TABLE {database}.s (a UInt64) ENGINE = MergeTree ORDER BY a")
    assert ask(f"SHOW TABLES FROM {database}") == "s"
    assert ask(f"EXISTS TABLE {database}.s") == "1"
    assert ask(f"EXISTS TABLE {database}.nothing") == "0"
    assert ask(f"DESCRIBE TABLE {database}.s").startswith("a\tUInt64")
    ask(f"INSERT INTO {database}.s SELECT number FROM numbers(10)")
    ask(f"ALTER TABLE {database}.s ADD COLUMN b String DEFAULT 'x'")
    ask(f"ALTER TABLE {database}.s DELETE WHERE a >= 5", mutations_sync=1)
    ask(f"OPTIMIZE TABLE {database}.s FINAL")
    assert ask(f"SELECT count(), any(b) FROM {database}.s") == "5\tx"
    assert ask(f"SELECT name FROM system.tables WHERE database = '{database}'") == "s"
    assert ask("WITH 2 AS x SELECT x") == "2"
    assert ask("EXPLAIN SYNTAX SELECT 1").startswith("SELECT 1")
    assert ask("KILL QUERY WHERE 0") == ""
    assert ask("SELECT currentDatabase()") == "default"
    ask(f"TRUNCATE TABLE {database}.s")
    ask(f"DROP TABLE {database}.s SYNC")


def test_database_by_parameter_or_header(server: Server, database: str) -> None:
    assert server.ask("SELECT currentDatabase()", database=database) == database
    by_header = server.post("SELECT currentDatabase()", headers={"X-ClickHouse-Database": database})
    assert by_header.text.strip() == database
    assert server.ask("SELECT currentDatabase()") == "default"
    unknown = server.post("SELECT 1", database="nothing")
    assert (unknown.status_code, unknown.headers["X-ClickHouse-Exception-Code"]) == (404, "81")


# -- Settings and parameters


def test_settings_are_for_one_query(server: Server) -> None:
    refused = server.post("SELECT number FROM numbers(5)", max_result_rows=1)
    assert refused.headers["X-ClickHouse-Exception-Code"] == "396"
    assert server.ask("SELECT count() FROM (SELECT number FROM numbers(5))") == "5"
    assert server.ask("SELECT getSetting('max_result_rows')") == "0"
    server.ask("SET max_result_rows = 1")
    assert server.ask("SELECT getSetting('max_result_rows')") == "0"
    quoted = "it's \\ 100%\n"
    assert (
        server.ask("SELECT getSetting('log_comment') = 'it\\'s \\\\ 100%\\n id'", log_comment=quoted, query_id="id")
        == "1"
    )
    # Beside those in the query itself.
    assert server.ask("SELECT getSetting('max_threads') SETTINGS max_threads = 3", max_threads=2) == "3"


def test_settings_of_concurrent_queries_do_not_mix(server: Server) -> None:
    query = "SELECT getSetting('max_threads'), getSetting('max_block_size'), sleep(0.01)"

    def is_own(n: int) -> bool:
        parameters = {"max_threads": n % 7 + 1} if n % 2 else {"max_block_size": n + 1000}
        expected = f"{n % 7 + 1}\t65409\t0" if n % 2 else f"{threads}\t{n + 1000}\t0"
        return server.ask(query, **parameters) == expected

    threads, blocks, _ = server.ask(query).split("\t")
    assert blocks == "65409"
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(is_own, range(160)))


@pytest.mark.parametrize("name", ["nosuch_setting", "a b", "a;b", "a'", "é"])
def test_unknown_settings_are_refused(server: Server, name: str) -> None:
    given: dict[str, Any] = {name: "1"}
    assert server.post("SELECT 1", **given).status_code in (400, 404)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("String", "it's", '"it\'s"'),
        ("String", "a\\tb\\\\c", '"a\\tb\\\\c"'),
        ("String", "'; DROP TABLE x", '"\'; DROP TABLE x"'),
        ("Nullable(String)", "\\N", "null"),
        ("UInt64", "5", "5"),
        ("Array(String)", "['a','b']", '["a","b"]'),
        ("DateTime64(3)", "2025-01-02 03:04:05.678", '"2025-01-02 03:04:05.678"'),
        ("String", "x" * 60_000, f'"{"x" * 60_000}"'),
    ],
)
def test_query_parameters(server: Server, kind: str, value: str, expected: str) -> None:
    assert server.ask(f"SELECT {{p:{kind}}} AS p FORMAT JSONCompactEachRow", param_p=value) == f"[{expected}]"


def test_a_query_parameter_of_a_wrong_type(server: Server) -> None:
    assert server.post("SELECT {p:UInt64}", param_p="x").headers["X-ClickHouse-Exception-Code"] == "457"


# -- Errors


@pytest.mark.parametrize(
    ("query", "status", "code", "name"),
    [
        ("SELEC 1", 400, 62, "SYNTAX_ERROR"),
        ("", 400, 62, "SYNTAX_ERROR"),
        ("-- nothing", 400, 62, "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 400, 62, "SYNTAX_ERROR"),
        ("CREATE TABLE x (a UInt8) ENGINE = Memory; DROP TABLE x", 400, 62, "SYNTAX_ERROR"),
        ("SELECT toUInt8('x')", 400, 6, "CANNOT_PARSE_TEXT"),
        ("SELECT * FROM nothing", 404, 60, "UNKNOWN_TABLE"),
        ("SELECT * FROM nothing.at_all", 404, 81, "UNKNOWN_DATABASE"),
        ("SELECT no_such()", 404, 46, "UNKNOWN_FUNCTION"),
        ("SELECT nothing", 404, 47, "UNKNOWN_IDENTIFIER"),
        ("SELECT 1 FORMAT Nothing", 404, 73, "UNKNOWN_FORMAT"),
        ("INSERT INTO nothing VALUES (1)", 404, 60, "UNKNOWN_TABLE"),
        ("SELECT count() FROM numbers(1000000000000) SETTINGS max_execution_time = 0.1", 408, 159, "TIMEOUT_EXCEEDED"),
        ("SELECT throwIf(1)", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("BEGIN TRANSACTION", 501, 48, "NOT_IMPLEMENTED"),
        (
            "SELECT groupArray(number) FROM numbers(9999999) SETTINGS max_memory_usage = 999999",
            500,
            241,
            "MEMORY_LIMIT_EXCEEDED",
        ),
    ],
)
def test_errors_are_the_servers(server: Server, query: str, status: int, code: int, name: str) -> None:
    answer = server.post(query)
    assert (answer.status_code, answer.headers.get("X-ClickHouse-Exception-Code")) == (status, str(code))
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert answer.text.endswith(f" ({name}) (version {server.ask('SELECT version()')})\n")


def test_an_error_behind_the_first_rows_breaks_the_answer(server: Server, client: Client) -> None:
    query = "SELECT throwIf(number = 3000000, 'too many') FROM numbers(10000000)"
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/", query)
    answer = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as broken:
        answer.read()
    tag = answer.headers["X-ClickHouse-Exception-Tag"]
    tail = broken.value.partial.decode()[-1000:]
    assert answer.status == 200
    assert f"\r\n__exception__\r\n{tag}\r\nCode: 395. DB::Exception: too many" in tail
    assert tail.endswith(f" {tag}\r\n__exception__\r\n")
    for compression in ("", "lz4", "zstd", "gzip"):
        settings, accept = {"enable_http_compression": int(bool(compression))}, {"Accept-Encoding": compression}
        with (
            pytest.raises(StreamFailureError, match="too many"),
            client.query_row_block_stream(query, settings=settings, transport_settings=accept) as blocks,
        ):
            for _ in blocks:
                pass
    # Unless it is asked to wait for the end.
    waited = server.post(query, wait_end_of_query=1)
    assert (waited.status_code, waited.headers["X-ClickHouse-Exception-Code"]) == (500, "395")


# -- Inserts


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ("INSERT INTO {} FORMAT JSONEachRow", b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'),
        ("", b'INSERT INTO {} FORMAT JSONEachRow\n{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'),
        ("", b'INSERT INTO {} FORMAT JSONEachRow {"a":1,"b":"x"} {"a":2,"b":"y"}'),
        ("INSERT INTO {} (b, a) FORMAT CSV", b"x,1\ny,2\n"),
        ("INSERT INTO {} VALUES", b"(1,'x'),(toUInt64('2'),'y')"),
        ("", b"INSERT INTO {} (a, b) VALUES (1, 'x'), (2, 'y');"),
        ("INSERT INTO {} SETTINGS async_insert = 0 FORMAT TSV", b"1\tx\n2\ty\n"),
        ("INSERT INTO {} FORMAT TSV\n1\tx", b"2\ty\n"),
        ("/* into */ insert into {} -- a comment\n format tsv", b"1\tx\n2\ty\n"),
        ("INSERT INTO {} SELECT number + 1, char(120 + number) FROM numbers(2)", b""),
    ],
)
def test_inserts_in_all_their_forms(server: Server, table: str, query: str, body: bytes) -> None:
    answer = server.post(body.replace(b"{}", table.encode()), query=query.replace("{}", table))
    assert answer.status_code == 200, answer.text
    assert server.ask(f"SELECT * FROM {table} ORDER BY a") == "1\tx\n2\ty"


@pytest.mark.parametrize("encoding", sorted(DECODERS))
@pytest.mark.parametrize("in_body", [True, False])
def test_compressed_bodies(server: Server, table: str, encoding: str, in_body: bool) -> None:
    compress = COMPRESS[encoding.removeprefix("x-")]
    insert = f"INSERT INTO {table} FORMAT JSONEachRow\n".encode()
    # A frame may end anywhere, as clickhouse-connect makes one of each of its blocks.
    data = rows(0, 100_000)
    halves = [insert * in_body + data[:1_000_001], data[1_000_001:]]
    body = b"".join(compress(half) for half in halves)
    query = "" if in_body else insert.decode()
    answer = server.post(body, headers={"Content-Encoding": encoding}, query=query)
    assert answer.status_code == 200, answer.text
    assert server.ask(f"SELECT count(), sum(a) FROM {table}") == "100000\t4999950000"


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        ("gzip", gzip.compress(rows(0, 1000))[:-20], 271),
        ("zstd", zstd.compress(rows(0, 1000))[:-5], 271),
        ("lz4", lz4.frame.compress(rows(0, 1000))[:-5], 271),
        ("deflate", b"nonsense", 271),
        ("zstd", b"nonsense", 271),
        ("lz4", b"nonsense", 271),
        ("br", b"nonsense", 48),
    ],
)
def test_broken_encodings_insert_nothing(server: Server, table: str, encoding: str, body: bytes, code: int) -> None:
    query = f"INSERT INTO {table} FORMAT JSONEachRow"
    answer = server.post(body, query=query, headers={"Content-Encoding": encoding})
    assert answer.headers["X-ClickHouse-Exception-Code"] == str(code)
    assert count(server, table) == 0


@pytest.mark.parametrize("encoding", ["", "lz4", "zstd", "gzip", "deflate"])
def test_compressed_answers(server: Server, encoding: str) -> None:
    query = "SELECT number, toString(number) FROM numbers(200000)"
    plain = server.post(query, enable_http_compression=0).content
    with server.http.stream("POST", "/", content=query, headers={"Accept-Encoding": encoding}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers.get("Content-Encoding", "") == encoding
    assert (DECOMPRESS[encoding](raw) if encoding else raw) == plain
    refused = server.post("SELECT nothing", headers={"Accept-Encoding": encoding})
    assert refused.text.startswith("Code: 47")


def test_binary_formats(server: Server, table: str) -> None:
    values = "SELECT number AS a, unhex('00ff0a27') AS b FROM numbers(100000)"
    for form in ("Native", "RowBinary", "Parquet", "ArrowStream"):
        data = server.post(values, default_format=form, enable_http_compression=0).content
        inserted = server.post(data, query=f"INSERT INTO {table} FORMAT {form}", input_format_parallel_parsing=0)
        assert inserted.status_code == 200, inserted.text
        assert (
            server.ask(f"SELECT count(), sum(a), groupUniqArray(hex(b)) FROM {table}")
            == "100000\t4999950000\t['00FF0A27']"
        )
        server.ask(f"TRUNCATE TABLE {table}")


def test_a_poison_row_is_named(server: Server, table: str) -> None:
    data = rows(0, 6) + b'{"a":"x","b":"y"}\n' + rows(7, 9)
    for target in ("FUNCTION null('a UInt64, b String')", table):
        query = f"INSERT INTO {target} FORMAT JSONEachRow"
        answer = server.post(data, query=query, input_format_parallel_parsing=0)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (400, "27")
        assert "(at row 7)\n" in answer.text
        assert "/dev/fd" not in answer.text
        assert answer.text.count("Code: 27") == answer.text.count("(version ") == 1
    assert count(server, table) == 0
    assert (
        server.post(rows(0, 9), query="INSERT INTO FUNCTION null('a UInt64, b String') FORMAT JSONEachRow").status_code
        == 200
    )


BLOCK = {
    "async_insert": 0,
    "input_format_parallel_parsing": 0,
    "max_insert_block_size": 2_000_000,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}


def test_a_token_makes_an_insert_happen_once(server: Server, database: str, table: str) -> None:
    server.ask(
        f"CREATE TABLE {database}.sums (a UInt64, n UInt64) ENGINE = SummingMergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    server.ask(f"CREATE MATERIALIZED VIEW {database}.v TO {database}.sums AS SELECT a % 10 AS a, 1 AS n FROM {table}")

    def insert(token: str, chunk: int = 1 << 20, settings: dict[str, int] = BLOCK) -> None:
        body = rows(0, 20_000)
        query = f"INSERT INTO {table} FORMAT JSONEachRow"
        parameters = urlencode({"query": query, "insert_deduplication_token": token, **settings})
        pieces = (body[at : at + chunk] for at in range(0, len(body), chunk))
        assert server.http.post(f"/?{parameters}", content=pieces).status_code == 200

    def counts() -> tuple[int, int]:
        return count(server, table), int(server.ask(f"SELECT sum(n) FROM {database}.sums"))

    insert("one")
    # However the body comes in pieces.
    for chunk in (1 << 20, 10_000, 7_777):
        insert("one", chunk)
    assert counts() == (20_000, 20_000)
    insert("two")
    assert counts() == (40_000, 40_000)
    # The size of a block is effective: but the first of four is new.
    blocks = {"max_insert_block_size": 5000, "min_insert_block_size_rows": 5000, "min_insert_block_size_bytes": 0}
    insert("one", settings={**BLOCK, **blocks})
    assert counts()[0] == 55_000


def test_errors_of_writing_are_errors(server: Server, database: str, table: str) -> None:
    """chDB's own streaming insert calls all of these a success."""
    server.ask(f"CREATE TABLE {database}.c (a UInt64, CONSTRAINT small CHECK a < 500) ENGINE = MergeTree ORDER BY a")
    refused = server.post("1\n600\n", query=f"INSERT INTO {database}.c FORMAT TSV")
    assert refused.headers["X-ClickHouse-Exception-Code"] == "469"
    assert count(server, f"{database}.c") == 0
    server.ask(f"CREATE TABLE {database}.target (a UInt64) ENGINE = MergeTree ORDER BY a")
    server.ask(
        f"CREATE MATERIALIZED VIEW {database}.v TO {database}.target AS SELECT a + throwIf(a = 700) AS a FROM {table}"
    )
    query = f"INSERT INTO {table} FORMAT JSONEachRow"
    assert server.post(rows(0, 1000), query=query).headers["X-ClickHouse-Exception-Code"] == "395"
    server.ask(f"DROP TABLE {database}.v SYNC")
    server.ask(f"ALTER TABLE {table} MODIFY SETTING parts_to_throw_insert = 1")
    assert server.post(rows(0, 10), query=query).headers["X-ClickHouse-Exception-Code"] == "252"
    assert server.post(rows(0, 10), query=query, readonly=1).headers["X-ClickHouse-Exception-Code"] == "164"


def test_a_killed_insert_is_an_error(server: Server, table: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        query = f"INSERT INTO {table} FORMAT JSONEachRow"
        insert = pool.submit(server.post, rows(0, 2_000_000), query=query, query_id="victim")
        kill = "KILL QUERY WHERE Settings['log_comment'] = 'victim' ASYNC"
        eventually(lambda: server.ask(kill) != "" or insert.done())
        assert insert.result().headers["X-ClickHouse-Exception-Code"] == "394"


@pytest.mark.parametrize("is_chunked", [True, False])
@pytest.mark.parametrize("in_body", [True, False])
def test_a_body_that_is_cut_off_inserts_nothing(server: Server, table: str, is_chunked: bool, in_body: bool) -> None:
    insert, data = f"INSERT INTO {table} FORMAT JSONEachRow\n".encode(), rows(0, 50_000)
    head = f"POST /?{'' if in_body else 'query=' + quote(insert)} HTTP/1.1\r\nHost: x\r\n".encode()
    body = insert * in_body + data
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        if is_chunked:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body))
        else:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body) + 1, body))
    # The next insert is done after the server has seen the end of the last.
    assert server.post(rows(0, 1), query=insert.decode()).status_code == 200
    assert server.running() == 0
    assert count(server, table) == 1


def test_background_merges_run(server: Server, table: str) -> None:
    for n in range(40):
        assert server.post(rows(n, n + 1), query=f"INSERT INTO {table} FORMAT JSONEachRow").status_code == 200
    parts = f"SELECT count() FROM system.parts WHERE active AND database || '.' || table = '{table}'"
    eventually(lambda: int(server.ask(parts)) < 20)
    assert count(server, table) == 40


# -- clickhouse-connect


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_clickhouse_connect(server: Server, database: str, compress: str | bool) -> None:
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=server.port, database=database, username="any", password="thing", compress=compress
    )
    assert client.ping()
    client.command("CREATE TABLE x (a UInt64, b String, c LowCardinality(String)) ENGINE = MergeTree ORDER BY a")
    written = client.insert("x", [[n, f"text {n}", "low"] for n in range(20_000)], column_names=["a", "b", "c"])
    assert written.written_rows == 20_000
    block = b"".join(b'{"a":%d,"b":"raw","c":"high"}\n' % n for n in range(20_000, 30_000))
    body = COMPRESS[compress](block) if isinstance(compress, str) else block
    client.raw_insert("x", insert_block=body, fmt="JSONEachRow", compression=compress or None)  # type: ignore[arg-type]
    client.raw_insert("x", ["a", "b", "c"], b"30000,b,c\n", fmt="CSV")
    assert client.command("SELECT count() FROM x") == 30_001
    assert client.command("SELECT 'text' WHERE 0") == ""
    result = client.query("SELECT a, b, c FROM x WHERE a < {last:UInt64} ORDER BY a", parameters={"last": 15_000})
    assert result.result_rows == [(n, f"text {n}", "low") for n in range(15_000)]
    assert int(result.summary["read_rows"]) >= 15_000
    assert client.query("SELECT a FROM x LIMIT 0").column_names == ("a",)
    assert client.query("SELECT a FROM x WHERE 0").result_rows == []
    assert client.query_df("SELECT c, count() AS n FROM x GROUP BY c ORDER BY c").n.tolist() == [1, 10_000, 20_000]
    assert client.raw_query("SELECT 1", fmt="TSV", settings={"max_threads": 1}) == b"1\n"
    with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as blocks:
        assert sum(len(block) for block in blocks) == 1_000_000
    # Parameters too long for a URL are sent as a form.
    many = list(range(30_000))
    assert client.query("SELECT length({many:Array(UInt64)})", parameters={"many": many}).result_rows == [(30_000,)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE") as refused:
        client.query("SELECT * FROM nothing")
    assert refused.value.code == 60
    with pytest.raises(ClickHouseError, match="at row 2"):
        client.raw_insert(
            "x", insert_block=b'{"a":1}\n{"a":"x"}\n', fmt="JSONEachRow", settings={"input_format_parallel_parsing": 0}
        )
    client.close()


@pytest.fixture
async def async_client(server: Server, database: str) -> AsyncIterator[Any]:
    pytest.importorskip("aiohttp", reason="clickhouse-connect's async client needs aiohttp")
    client = await clickhouse_connect.get_async_client(host="127.0.0.1", port=server.port, database=database)
    yield client
    await client.close()


async def test_the_async_client(async_client: Any) -> None:
    await async_client.command("CREATE TABLE x (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    await async_client.insert("x", [[n, f"text {n}"] for n in range(10_000)], column_names=["a", "b"])
    await async_client.raw_insert("x", insert_block=rows(10_000, 20_000), fmt="JSONEachRow")
    result = await async_client.query("SELECT count(), sum(a) FROM x")
    assert result.result_rows == [(20_000, 199_990_000)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        await async_client.query("SELECT * FROM nothing")


# -- Many at once, and callers that leave


def test_a_large_result_is_streamed(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    before, peak, size = process.memory_info().rss, 0, 0
    query = "SELECT number, repeat('x', 1000) FROM numbers(500000) FORMAT Native SETTINGS max_block_size = 8192"
    with server.http.stream("POST", "/", content=query, headers={"Accept-Encoding": ""}) as answer:
        for piece in answer.iter_raw():
            size += len(piece)
            peak = max(peak, process.memory_info().rss)
    assert size > 500_000_000
    assert peak - before < 200_000_000


@pytest.mark.parametrize("query", [ENDLESS, SILENT])
def test_callers_that_leave_free_their_places(server: Server, query: str) -> None:
    request = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(query)}\r\n\r\n{query}".encode()
    callers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * QUERIES_MAX)]
    for caller in callers:
        caller.sendall(request)
    # All places are taken, and two thirds wait for one.
    eventually(lambda: server.post("SELECT 1", queue_max_wait_ms=1).status_code == 500)
    for caller in callers:
        caller.close()
    eventually(lambda: server.post("SELECT 1", queue_max_wait_ms=1).status_code == 200 and server.running() == 0)


def test_a_busy_engine_answers_pings_and_refuses_the_rest(server: Server) -> None:
    with ThreadPoolExecutor(QUERIES_MAX) as pool:
        busy = [pool.submit(server.post, SILENT, max_execution_time=3) for n in range(QUERIES_MAX)]
        eventually(lambda: server.post("SELECT 1", queue_max_wait_ms=1).status_code == 500)
        begin = time.monotonic()
        assert server.get("/ping").text == "Ok.\n"
        assert time.monotonic() - begin < 1
        refused = server.post("SELECT 1", queue_max_wait_ms=100)
        assert refused.headers["X-ClickHouse-Exception-Code"] == "202"
        assert 0.1 < refused.elapsed.total_seconds() < 5
        # Who waits gets the first place that becomes free.
        assert server.ask("SELECT 1") == "1"
        assert {one.result().headers["X-ClickHouse-Exception-Code"] for one in busy} == {"159"}


def test_slow_uploads_hold_no_place(server: Server, table: str) -> None:
    query = quote(f"INSERT INTO {table} FORMAT JSONEachRow")
    head = f"POST /?query={query} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode()
    slow = []
    for n in range(QUERIES_MAX + 1):
        caller = socket.create_connection(("127.0.0.1", server.port))
        caller.sendall(head + b'{"a":%03d,' % n)
        slow.append(caller)
    assert server.ask("SELECT 1", queue_max_wait_ms=1000) == "1"
    for caller in slow:
        caller.sendall(b'"b":"slow"}'.ljust(991))
        assert caller.recv(100).startswith(b"HTTP/1.1 200")
        caller.close()
    assert count(server, table) == QUERIES_MAX + 1


def test_a_query_id_runs_once_at_a_time(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, SILENT, query_id="same", max_execution_time=20)
        eventually(lambda: server.running() == 1)
        assert server.post("SELECT 1", query_id="same").headers["X-ClickHouse-Exception-Code"] == "216"
        assert server.ask("KILL QUERY WHERE Settings['log_comment'] = 'same' SYNC")
        assert first.result().headers["X-ClickHouse-Exception-Code"] == "394"
    assert server.ask("SELECT 1", query_id="same") == "1"


# -- Starting, stopping, being killed


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_end(tmp_path: Path, signum: int) -> None:
    with running(tmp_path / "new" / "dir") as server:
        assert server.line.startswith("ClickHouse 26.")
        assert server.line.endswith(f"(chDB) listening on {server.url}, data in {tmp_path / 'new' / 'dir'}")
        # A kept connection, a query that computes and one whose result nobody takes do not hold it up.
        server.ask("CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
        server.ask("INSERT INTO kept SELECT number FROM numbers(10)")
        callers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        for caller, query in zip(callers, (SILENT, ENDLESS), strict=True):
            caller.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(query)}\r\n\r\n{query}".encode())
        eventually(lambda: server.running() == 2)
        begin = time.monotonic()
        assert server.end(signum) == (0, "")
        assert time.monotonic() - begin < 5
        for caller in callers:
            caller.close()
    with running(tmp_path / "new" / "dir") as again:
        assert count(again, "kept") == 10


def test_sigkill_keeps_every_acknowledged_row(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    sent: set[int] = set()

    def insert_until_killed(server: Server, numbers: Iterator[int]) -> None:
        for n in numbers:
            sent.add(n)
            try:
                answer = server.post(rows(n, n + 1), query="INSERT INTO kept FORMAT JSONEachRow")
            except httpx.TransportError:
                return
            assert answer.status_code == 200
            acknowledged.add(n)

    numbers = iter(range(1_000_000))
    for round_ in range(3):
        with running(tmp_path) as server:
            server.ask("CREATE TABLE IF NOT EXISTS kept (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
            found = {int(n) for n in server.ask("SELECT a FROM kept").split()}
            assert acknowledged <= found <= sent
            assert len(found) == count(server, "kept")
            if round_ == 2:
                return
            insert = threading.Thread(target=insert_until_killed, args=(server, numbers))
            enough = len(acknowledged) + 100
            insert.start()
            eventually(lambda enough=enough: len(acknowledged) > enough)  # type: ignore[misc]
            server.process.kill()
            insert.join()


def test_a_data_directory_is_for_one_process(server: Server) -> None:
    code, stderr = Server(server.data_dir, "--port", "0").end()
    assert (code, stderr) == (1, f"clickhouse: {server.data_dir} is in use by another process\n")


def test_a_busy_port(server: Server, tmp_path: Path) -> None:
    address = f"127.0.0.1:{server.port}"
    code, stderr = Server(tmp_path, "--port", str(server.port)).end()
    assert (code, stderr) == (1, f"clickhouse: Cannot listen on {address}: the port is in use by another process\n")


# -- The seams of a text


@pytest.mark.parametrize(
    ("text", "form", "data"),
    [
        (b"INSERT INTO t FORMAT CSV\n1,2", "CSV", b"1,2"),
        (b"INSERT INTO t FORMAT CSV;\r\n\n1", "CSV", b"\n1"),
        (b"INSERT INTO t FORMAT Native \n\x00\xff", "Native", b"\x00\xff"),
        (b"insert into `format`.values (format, `values`) values (1)", "Values", b" (1)"),
        (b"INSERT INTO TABLE FUNCTION null('FORMAT x') FORMAT CSV\n1", "CSV", b"1"),
        (b"INSERT INTO t SETTINGS a = 'VALUES', b = 2 FORMAT TSV\n1", "TSV", b"1"),
        (b"-- FORMAT x\n/* VALUES */ INSERT INTO t FORMAT CSV\n1", "CSV", b"1"),
    ],
)
def test_where_the_data_of_an_insert_begins(text: bytes, form: str, data: bytes) -> None:
    insert = insert_in(text)
    assert insert is not None
    assert (insert.format, text[insert.data_at :]) == (form, data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"SELECT 1",
        b"INSERT INTO t",
        b"INSERT INTO t SELECT 1 FORMAT CSV",
        b"INSERT INTO t FROM INFILE 'x' FORMAT X",
    ],
)
def test_not_an_insert_with_data(text: bytes) -> None:
    assert insert_in(text) is None


@pytest.mark.parametrize(
    ("text", "form", "is_streamed"),
    [
        (b"SELECT 1", "TabSeparated", True),
        (b"SELECT 1 FORMAT Native;", "Native", True),
        (b"SELECT 1 format native settings a = 1 -- FORMAT x", "native", True),
        (b"SELECT 1 FORMAT JSON", "JSON", False),
        (b"SELECT format FROM t", "TabSeparated", True),
        (b"SELECT 1 AS format", "TabSeparated", True),
        (b"SELECT format, 'FORMAT x' FROM t ORDER BY format DESC", "TabSeparated", True),
        (b"(SELECT 1 FORMAT x) FORMAT CSV", "CSV", True),
        (b"FROM t SELECT 1", "TabSeparated", True),
        (b"SELECT count() FROM t GROUP BY ALL WITH TOTALS", "TabSeparated", False),
        (b"SHOW TABLES", "TabSeparated", False),
        (b"WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", None, False),
        (b"DROP TABLE t", None, False),
        (b"SELECT ';' ;; -- ;", "TabSeparated", True),
        (b"SELECT $x$ ; FORMAT JSON $x$, a$b$c FROM t", "TabSeparated", True),
        (b"SELECT insert FROM t FORMAT CSV", "CSV", True),
        (b"SELECT 1 FORMAT CSV -- '", "CSV", True),
        (b"SELECT 'never ended FORMAT CSV \\", "TabSeparated", True),
    ],
)
def test_how_a_query_is_answered(text: bytes, form: str | None, is_streamed: bool) -> None:
    query = query_in(text)
    assert (query.format, query.is_streamed) == (form, is_streamed)


@pytest.mark.parametrize("text", [b"/*", b"'\\", b"$a$ $b$", b"'", b"(", b"--", b"a'"])
def test_reading_takes_time_in_proportion(text: bytes) -> None:
    begin = time.thread_time()
    insert_in(b"INSERT INTO t " + text * 100_000)
    query_in(b"SELECT " + text * 100_000)
    assert time.thread_time() - begin < 5
