"""What the doctor looks at in ClickHouse. Reads system tables only, and inserts no rows into each table."""

import re
import time
from collections.abc import Iterator

from consumer.clickhouse import ONE_BLOCK, ClickHouse, ClickHouseUnavailable
from consumer.doctor import Check, bad, ok, warn
from consumer.landing import EXTRA
from consumer.migrations import migrations
from consumer.recovery import CLOCK_SKEW_MAX_MS
from consumer.settings import ConsumerSettings
from schemas.streams import STREAMS, Stream

CLOCK_WARN_MS = 2_000
REPLAY_S_MIN = 60  # a consumer that comes back within this should find its tokens remembered
DISK_FREE_WARN, DISK_FREE_BAD = 0.15, 0.05
VIEWS_DEEP_MAX = 5
NO_UUID = "00000000-0000-0000-0000-000000000000"

ESSENTIAL = ("event_id", "received_at", "kafka_partition", "kafka_offset", "inserted_at", EXTRA)
"""Columns that recovery, audit or the keeping of unknown fields rest on, besides the stream's owner."""

_WINDOW = re.compile(r"\b((?:non_)?replicated)_deduplication_window = (\d+)")
_TARGET = re.compile(r"^CREATE MATERIALIZED VIEW \S+ (?:UUID '\S+' )?TO ((?:`[^`]+`|[^\s.`]+)\.(?:`[^`]+`|[^\s(`]+))")


def checks(clickhouse: ClickHouse, settings: ConsumerSettings) -> Iterator[Check]:
    """Ends early where nothing more can be seen."""
    try:
        [(version, now_ms)] = clickhouse.query("SELECT version(), toUnixTimestamp64Milli(now64(3))")
    except ClickHouseUnavailable as error:
        yield bad("clickhouse", f"cannot be reached, or refuses us: {error}. See CONSUMER_CLICKHOUSE_URL")
        return
    yield ok("clickhouse", f"version {version}")
    yield _clock(int(now_ms))
    yield _settings(clickhouse)
    yield from _disks(clickhouse)
    try:
        if not clickhouse.query(f"SELECT 1 FROM system.databases WHERE name = '{_quoted(clickhouse.database)}'"):
            yield bad(f"database {clickhouse.database}", "does not exist (or may not be seen): run `migrate`")
            return
        yield _migrations(clickhouse)
        for stream in STREAMS:
            yield from _table(clickhouse, stream, settings.inserts_per_second_max)
    except ClickHouseUnavailable as error:
        yield bad("clickhouse", f"a question was not answered: {error}")


def _clock(now_ms: int) -> Check:
    difference_ms = now_ms - time.time_ns() // 1_000_000
    found = f"ClickHouse is {abs(difference_ms) / 1000:.1f} s {'ahead of' if difference_ms > 0 else 'behind'} us"
    if abs(difference_ms) > CLOCK_SKEW_MAX_MS:
        return bad("clock", f"{found}: whether a block is still remembered is judged by it. Synchronise both by NTP")
    if abs(difference_ms) > CLOCK_WARN_MS:
        return warn("clock", f"{found}. Synchronise both by NTP")
    return ok("clock", "in step")


def _settings(clickhouse: ClickHouse) -> Check:
    """Each insert pins its settings; the server must know them and let us set them."""
    name = "insert settings"
    names = ", ".join(f"'{setting}'" for setting in ONE_BLOCK)
    try:
        found = clickhouse.query(f"SELECT name, value, readonly, min, max FROM system.settings WHERE name IN ({names})")
    except ClickHouseUnavailable as error:
        return warn(name, f"cannot be read: {error}")
    unknown = ONE_BLOCK.keys() - {row[0] for row in found} - {"wait_end_of_query"}  # HTTP's, not the engine's
    if unknown:
        return bad(name, f"this version does not know {', '.join(sorted(unknown))}: inserts fail. Upgrade ClickHouse")
    fixed = [setting for setting, value, readonly, *_ in found if readonly and value != str(ONE_BLOCK[setting])]
    if fixed:
        return bad(name, f"the user's profile does not let us set {', '.join(sorted(fixed))}: change its constraints")
    return ok(name, "pinned with every insert, whatever the server's defaults")


def _disks(clickhouse: ClickHouse) -> Iterator[Check]:
    try:
        found = clickhouse.query("SELECT name, free_space, total_space FROM system.disks WHERE total_space > 0")
    except ClickHouseUnavailable as error:
        yield warn("disks", f"system.disks cannot be read: {error}")
        return
    for disk, free, total in found:
        name, text = f"disk {disk}", f"{free / 1e9:,.0f} GB of {total / 1e9:,.0f} GB free"
        if free / total < DISK_FREE_BAD:
            yield bad(name, f"{text}: inserts will soon fail. Add space, or set CONSUMER_RETENTION_DAYS and `migrate`")
        elif free / total < DISK_FREE_WARN:
            yield warn(name, text)
        else:
            yield ok(name, text)


def _migrations(clickhouse: ClickHouse) -> Check:
    name = "migrations"
    try:
        applied = dict(
            clickhouse.query(
                f"SELECT number, any(checksum) FROM `{clickhouse.database}`.sluice_migrations GROUP BY number"
            )
        )
    except ClickHouseUnavailable as error:
        return bad(name, f"none seem applied: run `migrate` ({error})")
    files = {migration.number: migration for migration in migrations()}
    missing = sorted(files.keys() - applied.keys())
    changed = sorted(number for number in files.keys() & applied.keys() if files[number].checksum != applied[number])
    newer = sorted(applied.keys() - files.keys())
    if changed:
        return bad(name, f"{changed} were changed after they were applied: put the files back and write new ones")
    if missing:
        return bad(name, f"{missing} are not applied: run `migrate`")
    if newer:
        return warn(name, f"{newer} are applied and not known to this build: a newer one was here")
    return ok(name, f"{len(files)} applied, unchanged")


def _table(clickhouse: ClickHouse, stream: Stream, inserts_per_second: float) -> Iterator[Check]:
    table = stream.name
    if not clickhouse.query(f"SELECT 1 FROM system.tables WHERE {_is(clickhouse.database, table)}"):
        yield bad(f"table {table}", "does not exist (or may not be seen): run `migrate`")
        return
    yield _columns(clickhouse, stream)
    yield _insert(clickhouse, table)
    yield _window(clickhouse, clickhouse.database, table, f"window of {table}", inserts_per_second)
    for database, target in _targets(clickhouse, clickhouse.database, table):
        yield _window(clickhouse, database, target, f"window of view target {target}", inserts_per_second)


def _columns(clickhouse: ClickHouse, stream: Stream) -> Check:
    name = f"columns of {stream.name}"
    columns = clickhouse.columns(stream.name)
    essential = [column for column in (stream.owner, *ESSENTIAL) if column not in columns]
    if essential:
        return bad(name, f"lacks {', '.join(essential)}, without which nothing lands safely: add them")
    lacking = sorted(stream.fields - columns.keys())
    if lacking:
        return warn(name, f"lacks {', '.join(lacking)}, kept in `{EXTRA}` at a price: write a migration that adds them")
    return ok(name, f"{len(columns)} columns")


def _insert(clickhouse: ClickHouse, table: str) -> Check:
    """Inserts no rows: what is refused here would be refused with rows, too."""
    name, full = f"insert into {table}", f"`{clickhouse.database}`.`{table}`"
    try:
        clickhouse.command(f"INSERT INTO {full} (event_id) SELECT event_id FROM {full} WHERE 0")
    except ClickHouseUnavailable as error:
        return bad(name, f"is refused: {error}")
    return ok(name, "allowed")


def _window(clickhouse: ClickHouse, database: str, table: str, name: str, inserts_per_second: float) -> Check:
    """How many blocks the table knows again. A quarter of them is relied on."""
    found = clickhouse.query(f"SELECT engine, engine_full FROM system.tables WHERE {_is(database, table)}")
    if not found:
        return bad(name, f"{database}.{table} does not exist: every insert fails. Make it, or drop the view")
    engine, engine_full = found[0]
    if "MergeTree" not in engine:
        return warn(name, f"engine {engine} drops no repeated blocks: a replay may double what it holds")
    is_replicated = engine.startswith(("Replicated", "Shared"))
    prefix = "replicated" if is_replicated else "non_replicated"
    setting = f"{prefix}_deduplication_window"
    windows = {kind: int(size) for kind, size in _WINDOW.findall(engine_full)}
    if prefix in windows:
        window = windows[prefix]
    else:
        defaults = clickhouse.query(f"SELECT value FROM system.merge_tree_settings WHERE name = '{setting}'")
        window = int(defaults[0][0]) if defaults else 0
    wanted = int(4 * REPLAY_S_MIN * inserts_per_second)
    change = f"ALTER TABLE {database}.`{table}` MODIFY SETTING {setting} = {max(10_000, wanted)}"
    if window == 0:
        return bad(name, f"is 0, a block sent again is inserted again: {change}")
    if window < wanted:
        return warn(name, f"is {window}, {window / 4 / inserts_per_second:.0f} s at the highest rate: {change}")
    return ok(name, f"{window} blocks")


def _targets(clickhouse: ClickHouse, database: str, table: str, deep: int = 0) -> Iterator[tuple[str, str]]:
    """Database and name of the tables that materialized views fill from this one, and from those in turn."""
    if deep == VIEWS_DEEP_MAX:
        return
    [(databases, views)] = clickhouse.query(
        f"SELECT dependencies_database, dependencies_table FROM system.tables WHERE {_is(database, table)}"
    )
    for view_database, view in sorted(zip(databases, views, strict=True)):
        found = clickhouse.query(
            f"SELECT create_table_query, toString(uuid) FROM system.tables WHERE {_is(view_database, view)} "
            "AND engine = 'MaterializedView'"
        )
        for sql, uuid in found:
            named = _TARGET.match(sql)
            if named:
                target_database, _, target = named.group(1).replace("`", "").partition(".")
            else:
                target_database, target = view_database, f".inner.{view}" if uuid == NO_UUID else f".inner_id.{uuid}"
            yield target_database, target
            if clickhouse.query(f"SELECT 1 FROM system.tables WHERE {_is(target_database, target)}"):
                yield from _targets(clickhouse, target_database, target, deep + 1)


def _is(database: str, table: str) -> str:
    return f"database = '{_quoted(database)}' AND name = '{_quoted(table)}'"


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace("'", "\\'")
