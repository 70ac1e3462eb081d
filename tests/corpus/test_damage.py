"""A damaged input gives its whole records up to the damage, the same ones however it is read, then an error."""

from __future__ import annotations

import gzip

import pytest

from tests.corpus.written_formats import PACKERS, WRITERS

ROWS = [{"text": f"{i} {i * 7919 % 1000}", "source": "s"} for i in range(12_000)]
FEW = ROWS[:40]
BLOCK_BYTES = (7777, 1 << 20)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "stream.arrow"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_what_comes_before_the_damage_of_compressed_data_is_read(tmp_path, read, suffix, name, damage):
    whole = PACKERS[suffix](WRITERS[name](ROWS))
    at = len(whole) * 3 // 4
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(whole[:at] if damage == "cut" else whole[:at] + bytes(64) + whole[at + 64 :])
    if damage == "flip" and suffix == "lz4":
        pytest.skip("this writer adds no checksum to lz4 frames, so a flipped byte shows as bad records at most")
    first, *others = [read(path, block_bytes=size, stop_at_damage=True) for size in BLOCK_BYTES]
    assert first.damaged == 1
    assert first.texts[:100] == [row["text"] for row in ROWS[:100]]
    assert all(other == first for other in others)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_gzip_that_is_cut_off_gives_every_whole_line_that_can_be_unpacked(tmp_path, read, size):
    whole = gzip.compress(WRITERS["a.jsonl"](ROWS))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) - size])
    expected = len(ROWS) if size <= 8 else read(tmp_path / "a.jsonl.gz", stop_at_damage=True).positions[-1] + 1
    result = read(tmp_path / "a.jsonl.gz", stop_at_damage=True)
    assert result.texts == [row["text"] for row in ROWS[:expected]]
    assert expected > 11_000


@pytest.mark.parametrize("name", ["a.json", "stream.arrow"])
def test_a_plain_file_cut_anywhere_gives_what_lies_before_the_cut(tmp_path, read, name):
    whole = WRITERS[name](FEW)
    path, counts = tmp_path / name, []
    for size in range(1, len(whole), 23):
        path.write_bytes(whole[:size])
        result = read(path, block_bytes=50, stop_at_damage=True)
        assert result.damaged == 1
        assert result.texts == [row["text"] for row in FEW[: len(result.texts)]]
        counts.append(len(result.texts))
    assert counts == sorted(counts)
    assert counts[-1] >= len(FEW) - 2


def test_row_groups_before_a_damaged_one_are_read(tmp_path, read):
    whole = bytearray(WRITERS["a.parquet"](FEW))
    at = whole.index(b"20 ")  # a value within the seventh group of three rows
    whole[at - 40 : at] = bytes(byte ^ 0xA5 for byte in whole[at - 40 : at])
    (tmp_path / "a.parquet").write_bytes(whole)
    first, *others = [read(tmp_path / "a.parquet", block_bytes=size, stop_at_damage=True) for size in (1, 20, 1 << 20)]
    assert first.damaged == 1
    assert first.texts == [row["text"] for row in FEW[:18]]
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", ["file.arrow", "a.parquet"])
def test_a_file_without_its_footer_is_found_and_refused_on_reading(tmp_path, read, name):
    (tmp_path / name).write_bytes(WRITERS[name](FEW)[:-9])
    result = read(tmp_path / name, stop_at_damage=True)
    assert (result.texts, result.damaged) == ([], 1)
