"""What the operator commands decide, without Kafka and ClickHouse."""

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumer import commands, doctor, ledger, moments, rewind
from consumer.batch import Range
from consumer.dead_letter_commands import Candidate, as_candidate, printable
from consumer.dead_letter_log import DROPPED, OPEN, Letter, parsed, reason
from consumer.doctor_kafka import replication_faults, retention_faults, window_faults
from consumer.repeats import Checkpoint

TP = TopicPartition("app_interactions", 3)
ERROR = "Code: 41. DB::Exception: Cannot read: (while reading the value of key received_at): (CANNOT_PARSE_DATETIME)"


@dataclass
class Record:
    value: bytes | None = b'{"event_id":"a"}'
    offset: int = 5
    key: bytes | None = b"app_interactions:3:17"
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def letter_headers() -> list[tuple[str, bytes]]:
    return [
        ("dead.state", b"dropped"),  # of the record itself, which may say anything
        ("dead.code", b"9"),
        ("dead.code", b"41"),
        ("dead.error", ERROR.encode()),
        ("dead.time_ms", b"1000"),
        ("dead.record_time_ms", b"900"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22", 1_795_305_600_000),
        ("2026-11-22T06:20:00", 1_795_328_400_000),
        ("2026-11-22T06:20:00Z", 1_795_328_400_000),
        ("2026-11-22T08:20:00+02:00", 1_795_328_400_000),
        ("1960-01-01", 0),
    ],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str, expected: int) -> None:
    assert moments.epoch_ms(text) == expected


def test_a_time_may_be_how_long_ago() -> None:
    assert time.time() * 1000 - moments.epoch_ms("90m") == pytest.approx(5_400_000, abs=5_000)
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        moments.epoch_ms("yesterday")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (8_000, "2 h"), (9e5, "10 d")]
)
def test_an_age_is_short(seconds: float, text: str) -> None:
    assert moments.age(seconds) == text


@pytest.mark.parametrize("offsets", [1, 5_000, 5_001, 700_000, 5_000_000])
def test_an_intent_of_old_covers_its_offsets(offsets: int) -> None:
    first = 10**10
    intent = rewind.intent_of_old("t:0", first, first + offsets)
    entry = ledger.decode(first, intent.encode())
    assert entry.intent == intent
    assert intent.of_old
    assert intent.ranges[-1].end == first + offsets
    assert len(intent.encode()) <= ledger.METADATA_BYTES_MAX
    assert all(range_.end - range_.first <= 50_000 for range_ in intent.ranges)


def test_a_rewind_too_far_names_the_furthest() -> None:
    end = 10**9
    with pytest.raises(rewind.RewindRefused, match="more than a commit can name") as refused:
        rewind.intent_of_old("t:0", 1, end)
    furthest = int(str(refused.value).rsplit(":", 1)[1].rstrip("`"))
    assert end - furthest > 7_000_000
    rewind.intent_of_old("t:0", furthest, end)


def test_a_rewind_goes_on_to_the_end_of_what_is_open() -> None:
    metadata = ledger.Intent((Range(50, 60),), 1).encode()
    move = rewind.move_to(TP, (50, metadata), 20, 10, 100)
    assert move.intent is not None
    assert (move.intent.ranges, move.offsets, move.note) == ((Range(20, 60),), 40, "")
    closed = ledger.encode_closed(Checkpoint(40, 1))
    assert rewind.move_to(TP, (50, closed), 20, 10, 100).offsets == 30
    assert "oldest record" in rewind.move_to(TP, (50, ""), 10, 10, 100).note


@pytest.mark.parametrize(
    ("commit", "target", "note"),
    [
        (None, 20, "has not begun"),
        ((50, ""), 50, "stands before that already"),
        ((5, ""), 20, "outside of the log"),
        ((101, ""), 20, "outside of the log"),
    ],
)
def test_what_cannot_be_rewound_stays(commit: tuple[int, str] | None, target: int, note: str) -> None:
    move = rewind.move_to(TP, commit, target, 10, 100)
    assert move.intent is None
    assert note in move.note


@pytest.mark.parametrize(("commit", "target"), [((50, ""), 9), ((50, "{}"), 20)])
def test_a_rewind_to_nowhere_or_over_unknown_metadata_is_refused(commit: tuple[int, str], target: int) -> None:
    with pytest.raises(rewind.RewindRefused):
        rewind.move_to(TP, commit, target, 10, 100)


def test_a_letter_is_read_and_its_mark() -> None:
    log = TopicPartition("app_interactions.dead", 0)
    letter = parsed(log, Record(headers=letter_headers()))
    assert letter == Letter(TP, 17, log, 5, 41, "CANNOT_PARSE_DATETIME in received_at", 1000, 900, OPEN)
    assert letter.key == "app_interactions:3:17"
    mark = parsed(log, Record(headers=[*letter_headers(), ("dead.state", b"dropped")]))
    assert mark is not None
    assert mark.state == DROPPED


@pytest.mark.parametrize("record", [Record(key=None), Record(key=b"x:y:z"), Record(), Record(key=b"\xff:1:2")])
def test_what_is_no_letter_is_passed_over(record: Record) -> None:
    assert parsed(TP, record) is None


def test_a_reason_quotes_nothing_of_the_record() -> None:
    assert reason(41, ERROR) == "CANNOT_PARSE_DATETIME in received_at"
    assert reason(0, "not a JSON object") == "not a JSON object"
    assert reason(7, "what is this?") == "error 7"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b"{",
        b'{"event_id":1}',
        b'{"event_id":"a"}{"event_id":"b"}',
        b"{" + b'"a":{' * 99_999 + b"}",
    ],
)
def test_what_no_table_can_take_is_no_candidate(value: bytes | None) -> None:
    letter = Letter(TP, 17, TP, 5, 0, "", 0, None, OPEN)
    assert isinstance(as_candidate(letter, Record(value)), str)


def test_a_candidate_carries_its_own_coordinates() -> None:
    letter = Letter(TP, 17, TP, 5, 0, "", 0, None, OPEN)
    row = b'{"event_id":"a","kafka_partition":3,"kafka_offset":17}\n'
    assert as_candidate(letter, Record()) == Candidate(letter, "a", row)
    gone = "Kafka does not hold the letter any more"
    assert as_candidate(letter, None) == gone
    assert as_candidate(letter, Record(offset=6)) == gone
    assert as_candidate(letter, Record(headers=[("dead.state", b"dropped")])) == gone


def test_what_is_printed_commands_no_terminal() -> None:
    assert printable("é\n\x1b[2J\u202e".encode() + b"\xff") == "é\n\\x1b[2J\\u202e\\xff"
    assert printable(None) == "(none)"


def partitions(count: int, replicas: int, in_sync: int | None = None, leader: int = 1) -> list[dict[str, Any]]:
    isr = replicas if in_sync is None else in_sync
    return [
        {"partition": p, "leader": leader, "replicas": [*range(replicas)], "isr": [*range(isr)]} for p in range(count)
    ]


@pytest.mark.parametrize(
    ("found", "configs", "complaint"),
    [
        (partitions(4, 3), {"min.insync.replicas": "2"}, None),
        (partitions(4, 1), {}, ("warn", "one replica")),
        (partitions(2, 3), {"min.insync.replicas": "2"}, ("warn", "has 2 partitions")),
        (partitions(4, 3), {"min.insync.replicas": "1"}, ("bad", "on one disk only")),
        (partitions(4, 3), {"min.insync.replicas": "3"}, ("warn", "stops all writes")),
        (partitions(4, 3, 2), {"min.insync.replicas": "2"}, ("warn", "under-replicated")),
        (partitions(4, 3, leader=-1), {"min.insync.replicas": "2"}, ("bad", "no leader")),
        (partitions(4, 3), {"min.insync.replicas": "2", "max.message.bytes": "1000"}, ("bad", "max.message.bytes")),
        (
            partitions(4, 3),
            {"min.insync.replicas": "2", "unclean.leader.election.enable": "true"},
            ("bad", "unclean"),
        ),
    ],
)
def test_the_doctor_on_replicas(
    found: list[dict[str, Any]], configs: dict[str, str], complaint: tuple[str, str] | None
) -> None:
    complaints = list(replication_faults(found, configs, wanted=4))
    if complaint is None:
        assert complaints == []
    else:
        [(state, text)] = complaints
        assert state == complaint[0]
        assert complaint[1] in text


@pytest.mark.parametrize(
    ("configs", "is_dead", "least_ms", "state"),
    [
        ({"retention.ms": "-1"}, False, 9_000_000, None),
        ({"retention.ms": "604800000"}, False, 259_200_000, None),
        ({"retention.ms": "86400000"}, False, 259_200_000, "warn"),
        ({"retention.ms": "60000"}, False, 259_200_000, "bad"),
        ({"retention.ms": "-1", "retention.bytes": "1000"}, False, 1, "warn"),
        ({"cleanup.policy": "compact,delete"}, False, 1, "bad"),
        ({"retention.ms": "2592000000"}, True, 604_800_000, None),
        ({"retention.ms": "60000"}, True, 604_800_000, "warn"),
        ({"retention.ms": "2592000000"}, True, -1, "warn"),
    ],
)
def test_the_doctor_on_retention(configs: dict[str, str], is_dead: bool, least_ms: int, state: str | None) -> None:
    assert [found for found, _ in retention_faults(configs, least_ms, is_dead)] == ([state] if state else [])


@pytest.mark.parametrize(
    ("configs", "faults"),
    [({}, 0), ({"retention.ms": "-1"}, 0), ({"retention.ms": "60000"}, 0), ({"retention.ms": "59999"}, 1)],
)
def test_the_doctor_on_what_is_to_be_read_back(configs: dict[str, str], faults: int) -> None:
    assert len(list(window_faults(configs, window_s=60))) == faults


def test_the_doctors_verdict() -> None:
    checks = [doctor.ok("a"), doctor.warn("b", "x")]
    assert doctor.verdict(checks) == "OK: 1 checks, 1 to be known."
    assert doctor.verdict([*checks, doctor.bad("c", "y")]) == "BAD: 1 to be mended, 1 to be known."


@pytest.mark.parametrize(
    "words",
    [
        ["rewind"],
        ["rewind", "--to", "1h", "--to-offset", "t:0:1"],
        ["rewind", "--to-offset", "nowhere"],
        ["audit", "--since", "then"],
        ["dead-letters"],
        ["dead-letters", "replay"],
        ["dead-letters", "drop", "--all", "t:0:1"],
    ],
)
def test_unclear_command_lines_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    commands.add(parser.add_subparsers(required=True))
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(words)
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err
