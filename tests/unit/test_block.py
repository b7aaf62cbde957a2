"""The text of an INSERT: rows made by the hundred are those made one by one, wherever it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.block import Block, are_objects, is_object

ROWS = [b'{"n":%d,"kafka_partition":2,"kafka_offset":%d}\n' % (n, n) for n in range(20)]


def block_of(*runs: range) -> Block:
    block = Block(2)
    for offsets in runs:
        block.extend([b'{"n":%d}' % offset for offset in offsets], offsets[0])
    return block


def test_a_block_is_its_rows() -> None:
    block = block_of(range(3), range(3, 4), range(7, 9))
    assert block.offsets == [0, 1, 2, 3, 7, 8]
    assert block.rows == [ROWS[offset] for offset in block.offsets]
    assert b"".join(block.texts) == b"".join(block.rows)
    assert (block.count, block.bytes) == (6, sum(map(len, block.rows)))
    assert block.head == b'{"n":0'


def test_no_rows() -> None:
    block = Block(2)
    assert (block.texts, block.rows, block.offsets, block.count, block.head) == ([], [], [], 0, b"")
    assert block.end_at(1, 1) is None


@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=6),
    end=st.integers(0, 45),
)
def test_a_block_can_be_cut_anywhere(sizes: list[tuple[int, int]], end: int) -> None:
    runs, first = [], 0
    for gap, size in sizes:
        runs.append(range(first + gap, first + gap + size))
        first += gap + size
    whole = block_of(*runs)
    head, rest = whole.cut(end)
    assert head.offsets == [offset for offset in whole.offsets if offset < end]
    assert rest.offsets == [offset for offset in whole.offsets if offset >= end]
    assert head.rows + rest.rows == whole.rows
    assert (head.count + rest.count, head.bytes + rest.bytes) == (whole.count, whole.bytes)


def test_it_tells_the_row_that_reaches_a_limit() -> None:
    block = block_of(range(3), range(5, 9))
    assert [block.end_at(rows_max, 10**6) for rows_max in (1, 3, 4, 7, 8)] == [1, 3, 6, 9, None]
    sizes = [len(b"".join(block.rows[:count])) for count in range(8)]
    assert [block.end_at(100, size) for size in (1, sizes[3], sizes[3] + 1, sizes[7])] == [1, 3, 6, 9]
    assert block.end_at(100, sizes[7] + 1) is None


def test_rows_of_several_lines_stay_apart() -> None:
    """No gateway writes them; JSON allows them."""
    block = Block(2)
    block.extend([b'{"n":\n0}', b'{"n":1}', b'{\n\n"n":2\n}'], 0)
    assert block.rows == [
        b'{"n":\n0,"kafka_partition":2,"kafka_offset":0}\n',
        ROWS[1],
        b'{\n\n"n":2\n,"kafka_partition":2,"kafka_offset":2}\n',
    ]
    assert [part.rows for part in block.cut(1)] == [block.rows[:1], block.rows[1:]]


def test_some_rows_can_be_left_out() -> None:
    block = block_of(range(5)).without({1, 4, 9})
    assert (block.offsets, block.texts, block.count) == ([0, 2, 3], [ROWS[0], ROWS[2], ROWS[3]], 3)
    assert block.of([(3, ROWS[3])]).texts == [ROWS[3]]


@pytest.mark.parametrize("value", [None, b"", b"{", b"}", b"[1]", b'{"cut":', b' {"n":1}', b'{"n":1}\n'])
def test_what_is_no_object(value: bytes | None) -> None:
    assert not is_object(value)
    assert not are_objects([b'{"n":1}', value, b"{}"])


def test_objects() -> None:
    assert is_object(b"{}")
    assert are_objects([b"{}", b'{"n":1}'])
