"""JSON Lines: the usual record is taken by a shorter way, which must not accept or change anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions

NESTED = b'{"text": "a", "z": ' + b"[" * 250 + b"]" * 250 + b"}"
LINES = [
    b'{"text": "a"}',
    b'{"text": "a", "text": "b"}',
    b'{"text": 1, "text": "b"}',
    b'{"text": "a", "text": 1}',
    b'{"text": "\\u00e9\\n\\ud83d\\ude00 \\"\\\\"}',
    b'{"te\\u0078t": "a"}',
    b'{"text": "\\ud800"}',
    b'{"text": "\\u0000"}',
    b'{"text": "\xff"}',
    b'{"text": "a", "y": "\xff"}',
    b'{"text": "a", "x": NaN, "y": -Infinity, "z": 123456789012345678901234567890}',
    b'{"text": "a", "x": 01}',
    b' {"text": "a"}\t ',
    b'{"text": "a"}\r',
    b'\x0b{"text": "a"}',
    b'{"text": "a"} {"text": "b"}',
    b'{"text": "a"},',
    b'{"text": null}',
    b'{"text": true}',
    b'{"text": ["a"]}',
    b'{"text": {"text": "a"}}',
    b'{"other": "a"}',
    b'["text"]',
    b'"text"',
    b"null",
    b"",
    b"  ",
    b"{",
    b'{"text": " "}',
    NESTED,
]


def read(path: Path, data: bytes, **options: object) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]], int]:
    path.write_bytes(data)
    (source,) = find_inputs([str(path)])
    accepted, rejected, blank = [], [], 0
    for block in read_records(source, ReadOptions(**options)):
        accepted += zip(block.positions.tolist(), block.texts.to_pylist(), strict=True)
        rejected += [(entry.position, entry.raw) for entry in block.rejected]
        blank += block.blank
    return accepted, rejected, blank


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("end", [b"\n", b""], ids=["", "unended"])
def test_a_record_is_read_as_if_several_keys_were_wanted(line: bytes, end: bytes, tmp_path: Path) -> None:
    data = b'{"text": "before"}\n' + line + end
    usual = read(tmp_path / "in.jsonl", data)
    general = read(tmp_path / "in.jsonl", data, text_keys=("text", "absent"))
    assert usual == general


def test_all_lines_together(tmp_path: Path) -> None:
    data = b"\n".join(LINES)
    usual = read(tmp_path / "in.jsonl", data)
    assert usual == read(tmp_path / "in.jsonl", data, text_keys=("text", "absent"))
    assert usual == read(tmp_path / "in.jsonl", data, block_bytes=16)
    assert len(usual[0]) + len(usual[1]) + usual[2] == len(LINES)


def test_a_key_with_a_dot_is_that_key_or_a_way_into_objects(tmp_path: Path) -> None:
    data = b'{"a.b": "x"}\n{"a": {"b": "y"}}\n'
    assert [text for _, text in read(tmp_path / "in.jsonl", data, text_keys=("a.b",))[0]] == ["x", "y"]
