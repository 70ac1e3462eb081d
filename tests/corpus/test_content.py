"""The format of a file whose name does not tell it, by its content where that leaves no doubt."""

from __future__ import annotations

import gzip
import json

import pytest

from kexue_train.corpus.content import tell_format
from tests.corpus.written_formats import PACKERS, to_arrow_file, to_jsonl, to_parquet

ROWS = [{"text": f"文 {i}", "source": "s"} for i in range(3)]
LONG = {"text": "江河" * 40_000, "source": "s"}
CERTAIN = {
    "lines of objects": (to_jsonl(ROWS), ("jsonl", None)),
    "no newline at the end": (to_jsonl(ROWS).rstrip(), ("jsonl", None)),
    "a byte order mark and blank lines": (b"\xef\xbb\xbf\n" + to_jsonl(ROWS) + b"\n\n", ("jsonl", None)),
    "more than is looked at": (to_jsonl([LONG, LONG]), ("jsonl", None)),
    "an array of objects": (json.dumps(ROWS, indent=1).encode(), ("json", None)),
    "a long array of objects": (json.dumps([LONG, LONG], ensure_ascii=False).encode(), ("json", None)),
    "Parquet": (to_parquet(ROWS), ("parquet", None)),
    "Arrow": (to_arrow_file(ROWS), ("arrow", None)),
    "Arrow, packed": (gzip.compress(to_arrow_file(ROWS)), ("arrow", "gzip")),
}
UNCERTAIN = {
    "nothing": b"",
    "prose": b"A river.\n",
    "a line of prose among objects": to_jsonl(ROWS) + b"A river.\n",
    "an object on several lines": json.dumps(ROWS[0], indent=1).encode(),
    "numbers": b"1\n2\n",
    "an array of numbers": b"[1, 2]",
    "an empty array": b"[]",
    "other characters": '["é"]'.encode("latin-1"),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_content_that_leaves_no_doubt_tells_the_format(tmp_path, name):
    data, expected = CERTAIN[name]
    (tmp_path / "part-00000").write_bytes(data)
    assert tell_format(str(tmp_path / "part-00000")) == expected


@pytest.mark.parametrize("name", UNCERTAIN)
def test_other_content_tells_nothing(tmp_path, name):
    (tmp_path / "part-00000").write_bytes(UNCERTAIN[name])
    assert tell_format(str(tmp_path / "part-00000")) == (None, None)


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz", "lz4"])
def test_packed_content_is_looked_into(tmp_path, suffix):
    (tmp_path / "part-00000").write_bytes(PACKERS[suffix](to_jsonl(ROWS)))
    assert tell_format(str(tmp_path / "part-00000"))[0] == "jsonl"


def test_packed_content_that_is_damaged_tells_nothing(tmp_path):
    (tmp_path / "part-00000").write_bytes(b"\x1f\x8b\x08\x00 damaged")
    assert tell_format(str(tmp_path / "part-00000")) == (None, None)
