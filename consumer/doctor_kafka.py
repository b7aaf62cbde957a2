"""What the doctor looks at in Kafka: topics and their settings, the broker's, and the group's commits."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from consumer import ledger
from consumer.doctor import Check, bad, ok, warn
from consumer.group import Group
from consumer.migrations import DEAD_LETTER_SUFFIX
from consumer.reader import LogReader
from consumer.settings import ConsumerSettings
from consumer.source import KafkaUnavailable
from schemas import kafka
from schemas.streams import STREAMS

HOUR_MS = 3_600_000
RETENTION_MS_MIN = 72 * HOUR_MS  # a long weekend without ClickHouse
MESSAGE_BYTES_MIN = 1_048_588  # Kafka's default; the gateway makes batches of up to 1,000,000 bytes
OFFSETS_RETENTION_MINUTES_MIN = 7 * 24 * 60

Configs = Mapping[str, str | None]


async def checks(settings: ConsumerSettings) -> AsyncIterator[Check]:
    """Ends early where nothing more can be seen."""
    try:
        async with Group(settings) as group, LogReader(kafka.connection(settings)) as reader:
            cluster = await group.cluster()
            yield ok("kafka", f"cluster {cluster['cluster_id']}, {len(cluster['brokers'])} brokers")
            async for check in _broker(group, cluster, settings):
                yield check
            async for check in _topics(group, settings):
                yield check
            async for check in _commits(group, reader):
                yield check
    except KafkaUnavailable as error:
        yield bad("kafka", f"cannot be reached, or refuses us: {error}. See CONSUMER_KAFKA_BOOTSTRAP_SERVERS")


async def _broker(group: Group, cluster: dict[str, Any], settings: ConsumerSettings) -> AsyncIterator[Check]:
    node = str(cluster["brokers"][0]["node_id"])
    try:
        configs = (await group.configs([ConfigResource(ConfigResourceType.BROKER, node)]))[node]
    except KafkaUnavailable as error:
        yield warn("broker settings", f"may not be read: {error}")
        return
    minutes = _number(configs, "offsets.retention.minutes", OFFSETS_RETENTION_MINUTES_MIN)
    if minutes < OFFSETS_RETENTION_MINUTES_MIN:
        yield warn(
            "offsets.retention.minutes",
            f"is {minutes}: a group that is away for longer forgets its ledger, and finds its place by the tables. "
            f"Set {OFFSETS_RETENTION_MINUTES_MIN} or more on every broker",
        )
    else:
        yield ok("offsets.retention.minutes", f"{minutes / 1440:.0f} days")
    size = _number(configs, "offset.metadata.max.bytes", ledger.METADATA_BYTES_MAX)
    if size < ledger.METADATA_BYTES_MAX:
        yield bad("offset.metadata.max.bytes", f"is {size}: intents need {ledger.METADATA_BYTES_MAX}")
    else:
        yield ok("offset.metadata.max.bytes", str(size))
    low = _number(configs, "group.min.session.timeout.ms", 0)
    high = _number(configs, "group.max.session.timeout.ms", settings.session_timeout_ms)
    if not low <= settings.session_timeout_ms <= high:
        yield bad("session timeout", f"CONSUMER_SESSION_TIMEOUT_MS must be within the broker's {low} and {high}")


async def _topics(group: Group, settings: ConsumerSettings) -> AsyncIterator[Check]:
    names = [name for stream in STREAMS for name in (stream.name, stream.name + DEAD_LETTER_SUFFIX)]
    described = await group.topics(names)
    there = [name for name in names if not described[name]["error_code"]]
    for name in names:
        if name not in there:
            yield bad(f"topic {name}", "does not exist (or may not be described): run `migrate`")
    try:
        configs = await group.configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in there])
    except KafkaUnavailable as error:
        yield warn("topic settings", f"may not be read: {error}")
        return
    for name in there:
        is_dead = name.endswith(DEAD_LETTER_SUFFIX)
        wanted = 1 if is_dead else settings.topic_partitions
        live = configs.get(name.removesuffix(DEAD_LETTER_SUFFIX), {})
        found = [
            *replication_faults(described[name]["partitions"], configs[name], wanted),
            *retention_faults(
                configs[name], _number(live, "retention.ms", -1) if is_dead else RETENTION_MS_MIN, is_dead
            ),
            *([] if is_dead else window_faults(configs[name], settings.dedupe_window_s)),
        ]
        for state, text in found:
            yield Check(f"topic {name}", state, text)
        if not found:
            yield ok(f"topic {name}", f"{len(described[name]['partitions'])} partitions")


def replication_faults(partitions: list[dict[str, Any]], configs: Configs, wanted: int) -> Iterator[tuple[Any, str]]:
    """State and advice of what is not as it should be."""
    leaderless = [p["partition"] for p in partitions if p["leader"] < 0]
    if leaderless:
        yield "bad", f"partitions {leaderless} have no leader: start the brokers that hold them"
    behind = [p["partition"] for p in partitions if len(p["isr"]) < len(p["replicas"])]
    if behind:
        yield "warn", f"partitions {behind} are under-replicated"
    if len(partitions) < wanted:
        yield (
            "warn",
            f"has {len(partitions)} partitions, CONSUMER_TOPIC_PARTITIONS says {wanted}: add some, or mend that",
        )
    replicas = min(len(p["replicas"]) for p in partitions)
    in_sync = _number(configs, "min.insync.replicas", 1)
    if replicas == 1:
        yield "warn", "has one replica: a broker's disk that fails takes acknowledged events with it. Use 3"
    elif in_sync >= replicas:
        yield "warn", f"min.insync.replicas is {in_sync} of {replicas}: one broker down stops all writes. Use one less"
    elif in_sync == 1:
        yield "bad", f"min.insync.replicas is 1 of {replicas}: an acknowledged event may be on one disk only. Use 2"
    if configs.get("unclean.leader.election.enable") == "true":
        yield "bad", "unclean.leader.election.enable loses acknowledged events: set it to false"
    size = _number(configs, "max.message.bytes", MESSAGE_BYTES_MIN)
    if size < MESSAGE_BYTES_MIN:
        yield "bad", f"max.message.bytes is {size}, the gateway's batches and dead letters need {MESSAGE_BYTES_MIN}"


def retention_faults(configs: Configs, least_ms: int, is_dead: bool) -> Iterator[tuple[Any, str]]:
    if "compact" in (configs.get("cleanup.policy") or ""):
        yield "bad", "cleanup.policy compacts, which drops records that have not landed: set it to delete"
    if _number(configs, "retention.bytes", -1) != -1:
        yield (
            "warn",
            "retention.bytes is set: a burst may push out what has not landed. Bound by time, or watch the lag",
        )
    retention_ms = _number(configs, "retention.ms", -1)
    if retention_ms == -1:
        return
    if is_dead and (least_ms == -1 or retention_ms < least_ms):
        yield "warn", "retention.ms is below that of the live topic: what has no letter any more looks like a gap"
    elif not is_dead and retention_ms < HOUR_MS:
        yield "bad", f"retention.ms is {retention_ms}: an outage of ClickHouse of that length loses events"
    elif not is_dead and retention_ms < least_ms:
        yield "warn", f"retention.ms is {retention_ms / HOUR_MS:.0f} h, and no outage of ClickHouse may last longer"


def window_faults(configs: Configs, window_s: int) -> Iterator[tuple[Any, str]]:
    retention_ms = _number(configs, "retention.ms", -1)
    if 0 <= retention_ms < window_s * 1000:
        yield (
            "warn",
            f"retention.ms is {retention_ms}, below CONSUMER_DEDUPE_WINDOW_S: behind a restart fewer repeats are known",
        )


async def _commits(group: Group, reader: LogReader) -> AsyncIterator[Check]:
    """Whether the group's place is one that Kafka still holds."""
    partitions = await group.partitions(stream.name for stream in STREAMS)
    if not partitions:
        return
    commits = await group.commits(partitions)
    bounds = await reader.bounds(partitions)
    places = 0
    for tp in partitions:
        name, (begin, end) = f"commit of {tp.topic}:{tp.partition}", bounds[tp]
        if tp not in commits:
            continue
        offset, metadata = commits[tp]
        try:
            ledger.decode(offset, metadata)
        except ledger.UnreadableIntent as error:
            yield bad(name, f"{error}: the partition stops. Run the build that wrote it, or look at DESIGN.md")
            continue
        if offset < begin:
            yield bad(name, f"Kafka has deleted {offset} to {begin - 1} before they landed: the partition stops")
        elif offset > end:
            yield warn(name, f"is {offset}, the log ends at {end}: the topic was made anew")
        else:
            places += 1
    yield ok("commits", f"{places} of {len(partitions)} partitions have one")
    if not await group.members():
        yield warn("group", f"{group.id!r} has no members: no consumer runs")
    held = [tp for tp in partitions if bounds[tp][0] < bounds[tp][1]]
    if held:
        try:
            await reader.record(held[0], bounds[held[0]][0])
        except KafkaUnavailable as error:
            yield bad("read", f"{held[0].topic} cannot be read: {error}")
        else:
            yield ok("read", "allowed")


def _number(configs: Configs, name: str, default: int) -> int:
    value = configs.get(name)
    return int(value) if value is not None else default
