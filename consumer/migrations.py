"""Makes topics and tables. Idempotent: run it before every start, from as many places as you like.

Tables come from numbered plain-SQL files (`schemas/sql/0001_….sql`); what has been applied is in the table
`sluice_migrations`, with the file's checksum, and a file that was changed after it was applied is refused. A
file's statements must each be repeatable (`IF NOT EXISTS`): a crash in the middle repeats the whole file.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import sqlparse
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from consumer.clickhouse import ClickHouse
from consumer.settings import ConsumerSettings
from schemas import kafka
from schemas.streams import STREAMS

log = structlog.get_logger(__name__)

DEAD_LETTER_SUFFIX = ".dead"
DEAD_LETTER_RETENTION_MS = 30 * 24 * 3_600_000


class MigrationError(Exception):
    """What stands there is not what the files say; a person must look."""


@dataclass(frozen=True)
class Migration:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self) -> Iterator[str]:
        for statement in sqlparse.split(self.sql):
            bare = sqlparse.format(statement, strip_comments=True).strip().rstrip(";")
            if bare:
                yield bare


def migrations() -> list[Migration]:
    """The files, in order of their numbers. Raises MigrationError for two of one number."""
    found = []
    for file in (resources.files("schemas") / "sql").iterdir():
        number, _, name = file.name.removesuffix(".sql").partition("_")
        if file.name.endswith(".sql"):
            found.append(Migration(int(number), name, file.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    for first, second in pairwise(found):
        if first.number == second.number:
            raise MigrationError(f"two migrations have the number {first.number}: {first.name}, {second.name}")
    return found


def create_tables(clickhouse: ClickHouse, files: list[Migration], retention_days: int) -> None:
    """Raises MigrationError, or ClickHouseUnavailable."""
    database = clickhouse.database
    clickhouse.command("CREATE DATABASE IF NOT EXISTS {database:Identifier}", {"database": database})
    clickhouse.use_database()
    clickhouse.command(
        "CREATE TABLE IF NOT EXISTS sluice_migrations (number UInt32, name String, checksum String, "
        "applied_at DateTime64(3, 'UTC') DEFAULT now64(3)) ENGINE = MergeTree ORDER BY number"
    )
    applied = dict(clickhouse.query("SELECT number, any(checksum) FROM sluice_migrations GROUP BY number"))
    for migration in files:
        checksum = applied.get(migration.number)
        if checksum == migration.checksum:
            continue
        if checksum is not None:
            raise MigrationError(
                f"migration {migration.number} ({migration.name}) was changed after it was applied to {database!r}; "
                "put the file back and write a new one"
            )
        for statement in migration.statements():
            clickhouse.command(statement)
        clickhouse.command(
            "INSERT INTO sluice_migrations (number, name, checksum) VALUES ({n:UInt32}, {name:String}, {sum:String})",
            {"n": migration.number, "name": migration.name, "sum": migration.checksum},
        )
        log.info("migration applied", number=migration.number, name=migration.name)
    for stream in STREAMS:
        _set_retention(clickhouse, stream.name, retention_days)


def _set_retention(clickhouse: ClickHouse, table: str, days: int) -> None:
    """The TTL that the setting asks for, changed only where it differs: a change rewrites parts."""
    engine = clickhouse.engine(table)
    ttl = f"toDateTime(received_at) + toIntervalDay({days})"
    if days and ttl not in engine:
        clickhouse.command(f"ALTER TABLE {table} MODIFY TTL {ttl}")
    elif not days and " TTL " in engine:
        clickhouse.command(f"ALTER TABLE {table} REMOVE TTL")
    else:
        return
    log.info("retention set", table=table, days=days or "unlimited")


async def create_topics(settings: ConsumerSettings) -> None:
    """A topic and its dead letters for each stream; those that exist stay as they are.

    Raises KafkaError or OSError; MigrationError if Kafka refuses a topic.
    """
    replication = settings.topic_replication_factor
    configs = {"min.insync.replicas": str(max(1, replication - 1))}
    dead_configs = {**configs, "retention.ms": str(DEAD_LETTER_RETENTION_MS)}
    topics = [NewTopic(s.name, settings.topic_partitions, replication, topic_configs=configs) for s in STREAMS]
    topics += [NewTopic(s.name + DEAD_LETTER_SUFFIX, 1, replication, topic_configs=dead_configs) for s in STREAMS]
    admin = AIOKafkaAdminClient(**kafka.connection(settings))
    try:
        await admin.start()
        for topic, code, message in (await admin.create_topics(topics)).topic_errors:
            error = for_code(code)
            if code == 0:
                log.info("topic created", topic=topic)
            elif error is not TopicAlreadyExistsError:
                raise MigrationError(f"Kafka refused topic {topic}: {error.__name__}: {message}")
    finally:
        await kafka.stop(admin)
