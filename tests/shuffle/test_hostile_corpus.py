from __future__ import annotations

import gzip

import pytest

from kexue_train.errors import CorpusError
from kexue_train.shuffle.text_shards import verify_text_shards

DAMAGED = {"truncated_mid.jsonl.gz", "truncated_trailer.jsonl.gz", "plain_named_gz.jsonl.gz"}
SLOW = {"bomb_1gib.jsonl.gz", "one_line_50mb.jsonl.gz"}


@pytest.fixture
def hostile_files(shared_data):
    """JSON Lines that can be opened, with all kinds of bad records in them."""
    files = [path for path in sorted((shared_data / "hostile").glob("*.jsonl*")) if path.is_file()]
    return [path for path in files if path.name not in DAMAGED | SLOW]


def test_with_skip_every_line_of_the_hostile_files_is_accounted_for(tmp_path, hostile_files, shuffle):
    manifest = shuffle(hostile_files, tmp_path / "out", on_bad_record="skip", shards=3)
    figures = manifest.statistics
    num_lines = sum(_count_lines(path) for path in hostile_files)
    assert manifest.rows + sum(figures["rejected"].values()) + figures["blank"] == num_lines
    assert sum(entry.rows for entry in manifest.inputs) == manifest.rows == verify_text_shards(tmp_path / "out").rows


def test_by_default_the_first_bad_record_ends_it(tmp_path, hostile_files, shuffle):
    with pytest.raises(CorpusError, match=r"hostile/\w+\.jsonl:\d+: record at byte \d+: .*--on-bad-record skip"):
        shuffle(hostile_files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _count_lines(path):
    data = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))
