"""Which tokens a log remembers without their rows, and what of a log that a kill has left."""

from pathlib import Path

import pytest

from deploy.local.clickhouse_tokens import Blocks, forget_lost_tokens, lost_tokens

LOG = [
    "1\tall_1_1_0\tall_11_1",
    "1\tall_2_2_0\tall_22_2",
    "1\tall_3_3_1\tall_33_3",  # a SummingMergeTree's are of level 1 from the start
    "",
]


@pytest.mark.parametrize(
    ("name", "is_covered"),
    [
        ("all_3_3_0", True),
        ("all_5_5_0", True),  # all_1_6_2 holds it
        ("all_2_5_1", True),
        ("all_6_7_1", False),  # by two, not by one
        ("all_7_7_0", True),
        ("all_8_8_0", False),
        ("202511_1_1_0", False),
        ("202512_4_4_0", True),
        ("202512_3_3_0", False),
        ("-5_9_9_0", True),
        ("patch-0123abcd-all_9_9_0", False),
        ("of_no_form", True),  # nothing is said of it
    ],
)
def test_a_block_is_in_one_part(name: str, is_covered: bool) -> None:
    others = ["detached", "deduplication_logs", "format_version.txt", "tmp_insert_all_8_8_0", "delete_tmp_all_8_8_0"]
    parts = ["all_2_2_0", "all_1_6_2", "all_4_4_0", "all_7_7_0_12", "202512_4_4_0", "-5_9_9_0"]
    assert Blocks([*others, *parts]).cover(name) is is_covered


def test_the_newest_token_has_no_part() -> None:
    assert lost_tokens(LOG, ["all_1_1_0", "all_2_2_0"]) == {"all_33_3": "all_3_3_1"}


def test_merged_parts_are_not_lost() -> None:
    assert lost_tokens(LOG, ["all_1_3_1"]) == {}


def test_what_the_engine_has_dropped_is_not_dropped_again() -> None:
    assert lost_tokens([*LOG, "2\tall_3_3_1\tall_33_3"], ["all_1_2_1"]) == {}


def test_a_token_that_came_back_counts_by_its_last_part() -> None:
    again = [*LOG, "2\tall_3_3_1\tall_33_3", "1\tall_4_4_1\tall_33_3"]
    assert lost_tokens(again, ["all_1_2_1", "all_4_4_1"]) == {}
    assert lost_tokens(again, ["all_1_2_1", "all_3_3_1"]) == {"all_33_3": "all_4_4_1"}


def test_lines_of_another_form_are_left_alone() -> None:
    assert lost_tokens(["", "3\tall_1_1_0\tx", "nonsense", "1\tall_1_1_0"], ["all_1_1_0"]) == {}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Of a table with parts 1 to 3, in two files of which the newer is the last by number, not by name."""
    directory = tmp_path / "store" / "abc" / "abc-def" / "deduplication_logs"
    directory.mkdir(parents=True)
    (directory.parent / "all_1_3_1").mkdir()
    (directory / "deduplication_log_9.txt").write_text("\n".join(LOG))
    (directory / "deduplication_log_10.txt").write_bytes(b"1\tall_4_4_0\tall_\xff44_4\n")
    return directory


def test_a_drop_is_written_into_the_newest_file_and_once(tmp_path: Path, logs: Path) -> None:
    assert forget_lost_tokens(tmp_path) == 1
    expected = b"1\tall_4_4_0\tall_\xff44_4\n2\tall_4_4_0\tall_\xff44_4\n"
    assert (logs / "deduplication_log_10.txt").read_bytes() == expected
    assert (logs / "deduplication_log_9.txt").read_text() == "\n".join(LOG)
    assert forget_lost_tokens(tmp_path) == 0
    assert (logs / "deduplication_log_10.txt").read_bytes() == expected


@pytest.mark.parametrize("torn", ["1", "1\tall_4", "1\tall_4_4_0\tall_44", "1\tall_4_4_0\tall_44_4"])
def test_a_torn_line_is_cut_off(tmp_path: Path, logs: Path, torn: str) -> None:
    newest = logs / "deduplication_log_10.txt"
    newest.write_text(torn)
    assert forget_lost_tokens(tmp_path) == 0
    assert newest.read_text() == ""


def test_nothing_is_made_where_nothing_is(tmp_path: Path) -> None:
    assert forget_lost_tokens(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
