"""What an audit says, and what it asks ClickHouse for, without either store."""

import asyncio
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from consumer import audit_report
from consumer.audit_table import (
    CHUNK_OFFSETS,
    EXAMPLES_MAX,
    SEEK_OFFSETS,
    PartitionAudit,
    event_ids,
    received_before,
    runs,
    slices,
)
from consumer.audit_timer import AuditTimer
from consumer.clickhouse import ClickHouseUnavailable
from tests.unit import virtual_time


@dataclass
class Record:
    key: bytes | None
    value: bytes | None


def test_the_verdict_counts_all_partitions() -> None:
    sound = PartitionAudit("t", 0, 0, 10, rows=9, dead_letters=1)
    wrong = PartitionAudit("t", 1, 0, 100, rows=60)
    assert audit_report.verdict([sound]) == "OK: 9 records are in the tables exactly once, 1 are dead letters."
    assert audit_report.advice([sound]) == ""
    repeated = PartitionAudit("t", 2, 0, 10, rows=8, repeats_dropped=2)
    assert audit_report.verdict([sound, repeated]) == (
        "OK: 17 records are in the tables exactly once, 1 are dead letters, 2 are repeats of others."
    )
    for offset in range(10, 50):
        wrong.gap(offset)
    wrong.duplicate(3, 2)
    assert audit_report.verdict([sound, wrong]) == "WRONG: 2 duplicate rows, 40 records without a row."
    duplicates, gaps = audit_report.examples([sound, wrong])
    assert duplicates == "t:1 duplicates at 3 …"
    assert gaps.startswith("t:1 gaps at 10, 11")
    assert gaps.endswith(f"{9 + EXAMPLES_MAX} …")
    assert audit_report.advice([sound, wrong]).startswith("`python -m consumer rewind --dry-run --to-offset t:1:10`")


@pytest.mark.parametrize(
    ("key", "value", "ids"),
    [
        (b"a", b'{"event_id":"a"}', {"a"}),
        (None, b'{"event_id":"a"}', {"a"}),
        (b"k", b'{"event_id":"a"}', {"k", "a"}),
        (b"k", b'{"event_id":1}', {"k"}),
        (b"k", b"[1]", {"k"}),
        (b"\xff", b"{", {"\ufffd"}),
        (None, None, set()),
    ],
)
def test_a_record_names_its_row(key: bytes | None, value: bytes | None, ids: set[str]) -> None:
    assert event_ids(Record(key, value)) == ids


def test_a_ttl_takes_what_was_received_before_it() -> None:
    limit_ms = 1_700_000_000_000  # 2023-11-14T22:13:20Z
    assert received_before(Record(None, b'{"received_at":"2023-11-14T22:13:19.999Z"}'), limit_ms)
    assert not received_before(Record(None, b'{"received_at":"2023-11-14T22:13:20.000Z"}'), limit_ms)
    assert not received_before(Record(None, b'{"received_at":17}'), limit_ms)
    assert not received_before(Record(None, None), limit_ms)


def test_what_lies_far_apart_is_read_apart() -> None:
    assert list(runs([])) == []
    assert list(runs({7})) == [range(7, 8)]
    near, far = 10 + SEEK_OFFSETS, 12 + 2 * SEEK_OFFSETS
    assert list(runs({10, near, far, 0})) == [range(near + 1), range(far, far + 1)]


def test_slices_cover_every_offset_once_and_cut_no_chunk() -> None:
    scopes = {
        TopicPartition("t", 0): PartitionAudit("t", 0, 7, 1_000_003),
        TopicPartition("t", 1): PartitionAudit("t", 1, 120_000, 130_000),
        TopicPartition("t", 2): PartitionAudit("t", 2, 900_000, 2_000_000),
    }
    ranges: dict[int, list[tuple[int, int]]] = {}
    found = list(slices(scopes, 600_000))
    for condition in found:
        for partition, first, end in re.findall(
            r"= (\d+) AND kafka_offset >= (\d+) AND kafka_offset < (\d+)", condition
        ):
            ranges.setdefault(int(partition), []).append((int(first), int(end)))
    assert len(found) == 6
    for tp, scope in scopes.items():
        covered = ranges[tp.partition]
        assert covered[0][0] == scope.first
        assert covered[-1][1] == scope.end
        for (_, end), (first, _) in pairwise(covered):
            assert end == first
            assert end % CHUNK_OFFSETS == 0
        assert all(end - first <= 200_000 for first, end in covered)


@pytest.mark.parametrize("error", [KafkaError("away"), ClickHouseUnavailable(0, "away"), KeyError("odd")], ids=repr)
def test_an_audit_that_fails_is_not_the_last(error: Exception) -> None:
    async def scenario() -> int:
        nobody = cast(Any, None)
        timer, audits = AuditTimer(nobody, nobody, nobody, interval_s=600), 0

        async def fails() -> list[PartitionAudit]:
            nonlocal audits
            audits += 1
            raise error

        timer.audit = fails  # type: ignore[method-assign]
        running = asyncio.ensure_future(timer.run())
        await asyncio.sleep(1_801)
        running.cancel()
        return audits

    assert virtual_time.run(scenario()) == 3
