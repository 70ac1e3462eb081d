from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.lines import iter_line_blocks

ALPHABET = st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"long line with words", b"\n\n"])


def lines_of(
    data: bytes, start: int = 0, end: int | None = None, block_bytes: int = 7, limit: int = 1 << 20, line_end=b"\n"
):
    stream = io.BytesIO(data)
    stream.seek(max(start - 1, 0))
    found = []
    for block in iter_line_blocks(
        stream, start=start, end=end, block_bytes=block_bytes, max_record_bytes=limit, line_end=line_end
    ):
        assert data[block.offset : block.offset + len(block.data)] == block.data
        for low, high in itertools.pairwise(block.bounds):
            found.append((block.offset + int(low), block.long_line_bytes or block.data[low:high]))
    return found


def expected_lines(data: bytes):
    offset, found = 0, []
    for line in io.BytesIO(data):
        found.append((offset, line))
        offset += len(line)
    return found


@given(st.lists(ALPHABET, max_size=30).map(b"".join), st.integers(1, 40))
def test_lines_are_those_of_python_for_any_block_size(data, block_bytes):
    assert lines_of(data, block_bytes=block_bytes) == expected_lines(data)


@given(st.lists(ALPHABET, min_size=1, max_size=30).map(b"".join), st.lists(st.integers(0, 60)), st.integers(1, 40))
def test_ranges_cut_anywhere_give_each_line_once(data, cuts, block_bytes):
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    found = [line for low, high in itertools.pairwise(edges) for line in lines_of(data, low, high, block_bytes)]
    assert found == expected_lines(data)


@given(st.lists(ALPHABET, min_size=1, max_size=30).map(b"".join), st.integers(0, 20), st.integers(1, 40))
def test_another_byte_may_end_the_lines(data, start, block_bytes):
    swap = bytes.maketrans(b"\n\0", b"\0\n")
    found = lines_of(data.translate(swap), start, None, block_bytes, limit=8, line_end=b"\0")
    plain = [(at, line if isinstance(line, int) else line.translate(swap)) for at, line in found]
    assert plain == lines_of(data, start, None, block_bytes, limit=8)


@pytest.mark.parametrize("block_bytes", [1, 3, 8, 100])
@pytest.mark.parametrize("data", [b"ab\n123456789\ncd\n\nef", b"123456789", b"123456789\n", b"\n123456789\nx\ny\nz\n"])
def test_a_line_over_the_limit_is_told_by_its_length_and_the_next_ones_are_read(data, block_bytes):
    expected = [(at, line if len(line.rstrip(b"\n")) <= 8 else 9) for at, line in expected_lines(data)]
    assert lines_of(data, block_bytes=block_bytes, limit=8) == expected


def test_memory_is_bounded_by_the_limit_however_long_the_line():
    class Endless:
        left, largest = 1 << 28, 0

        def read(self, size):
            self.largest, size = max(self.largest, size), min(size, self.left)
            self.left -= size
            return b"x" * size

    stream = Endless()
    (block,) = iter_line_blocks(stream, block_bytes=1 << 16, max_record_bytes=1 << 20)
    assert block.long_line_bytes == 1 << 28
    assert stream.largest <= (1 << 20) + 1
