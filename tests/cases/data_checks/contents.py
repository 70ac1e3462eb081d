"""What files hold: compressed data, tables, and what only looks like data."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cases.command import count_rows, kexue, shuffle


def large_window(data: Path) -> None:
    for arguments, num_rows in ((("long31.jsonl.zst",), 40), (("long31.jsonl.zst", "forty.jsonl"), 80)):
        ended = shuffle(data, *(f"{name}" for name in arguments), "--on-bad-record", "skip")
        assert ended.code == 0, ended.err
        assert "damaged" not in ended.err
        assert count_rows(data / "out.jsonl") == num_rows
        (data / "out.jsonl").unlink()


def frames_without_data(data: Path) -> None:
    for name in ("pzstd.jsonl.zst", "skippable_first.jsonl.zst"):
        assert shuffle(data, name).code == 0
        assert count_rows(data / "out.jsonl") == 40
        (data / "out.jsonl").unlink()


def two_columns_of_a_name(data: Path) -> None:
    for name in ("two_text_columns.parquet", "two_text_columns.csv"):
        ended = shuffle(data, name)
        assert ended.code == 2
        assert "several columns 'text'" in ended.err


def backslash_quotes(data: Path) -> None:
    assert shuffle(data, "backslash_quotes.csv").code == 2
    ended = shuffle(data, "backslash_quotes.csv", "--on-bad-record", "skip")
    assert ended.code == 0
    texts = [json.loads(line)["text"] for line in (data / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(text.split()[2] for text in texts) == ["0", "1", "3", "4", "5"]


def column_of_nulls(data: Path) -> None:
    assert shuffle(data, "null_shard").code == 2
    ended = shuffle(data, "null_shard", "--on-bad-record", "skip")
    assert ended.code == 0, ended.err
    assert count_rows(data / "out.jsonl") == 12
    (rejected,) = data.glob("out.jsonl.rejected*")
    assert count_rows(rejected) == 3


def git_lfs_pointers(data: Path) -> None:
    for path in sorted((data / "lfs_pointers").iterdir()):
        ended = shuffle(data, path)
        assert (ended.code, "git lfs pull" in ended.err) == (2, True), path.name


def binary_named_text(data: Path) -> None:
    for name, what in (("utf16le_no_mark.txt", "UTF-16"), ("tar_named.txt", "tar"), ("tar_named.txt.gz", "tar")):
        ended = shuffle(data, name)
        assert (ended.code, what in ended.err) == (2, True), name


def names_the_right_encoding_and_the_binary_column(data: Path) -> None:
    ended = shuffle(data, "utf32.txt")
    assert ended.code == 2
    assert "UTF-32" in ended.err
    assert "UTF-16" not in ended.err
    ended = shuffle(data, "binary_inside.parquet", "--keep", "blob")
    assert ended.code == 2
    assert "binary" in ended.err


def lines_of_any_bytes(data: Path) -> None:
    expected = sorted((data / "byte_order_mark_only.txt").read_bytes().splitlines())
    for options in ((), ("--format", "text")):
        assert kexue(data, "shuffle", "byte_order_mark_only.txt", "-o", "o.txt", "--workers", 1, *options).code == 0
        assert sorted((data / "o.txt").read_bytes().splitlines()) == expected
        (data / "o.txt").unlink()


CHECKS = {
    "D03": large_window,
    "D04": frames_without_data,
    "D09": two_columns_of_a_name,
    "D10": backslash_quotes,
    "D11": column_of_nulls,
    "D15": git_lfs_pointers,
    "D16": binary_named_text,
    "D20: encoding and binary column": names_the_right_encoding_and_the_binary_column,
    "D25": lines_of_any_bytes,
}
