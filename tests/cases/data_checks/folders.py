"""Which files of a folder are read, and what is said of the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.cases.command import count_rows, kexue, shuffle


def _is_read_by_its_list(data: Path) -> None:
    ended = shuffle(data, "saved_then_mapped")
    assert (ended.code, count_rows(data / "out.jsonl")) == (0, 8)
    assert "cache-cc5673cc978a9b74.arrow" in ended.err


def _all_is_read_or_named(data: Path) -> None:
    ended = shuffle(data, "left_out")
    assert (ended.code, count_rows(data / "out.jsonl")) == (0, 6 * 40 + 12)  # of .pq, the others are all.jsonl
    assert "2 archives (e.jsonl.zip, h.tar: read only by name)" in ended.err


def _own_output_is_not_read(data: Path) -> None:
    shutil.copytree(data / "own_output", data / "d")
    for out in ("d/shards", "d/shards", "d/shards2"):
        ended = kexue(data, "shuffle", "d", "-o", out, "--workers", "1")
        assert ended.code == 0
        assert "40 rows" in ended.out


def _what_is_named_twice_is_said(data: Path) -> None:
    ended = shuffle(data, "forty.jsonl", data / "forty.jsonl")
    assert (ended.code, count_rows(data / "out.jsonl")) == (0, 40)
    assert "read once" in ended.err


def _keys_that_are_not_kept_are_told(data: Path) -> None:
    ended = shuffle(data, "more_keys.jsonl")
    assert ended.code == 0
    assert "not kept: 'lang', 'url' (--keep NAME keeps one, --keep-all all" in ended.err


CHECKS: dict[str, Callable[[Path], None]] = {
    "D01": _is_read_by_its_list,
    "D05": _all_is_read_or_named,
    "D13": _own_output_is_not_read,
    "D22": _keys_that_are_not_kept_are_told,
    "D23": _what_is_named_twice_is_said,
}
