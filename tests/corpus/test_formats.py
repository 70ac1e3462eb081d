"""The table of formats is the one place that names a format: what follows from it, and what a new one costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from kexue_train.corpus.builder import BlockBuilder
from kexue_train.corpus.formats import (
    COMPRESSIONS,
    FORMATS,
    OUTPUTS,
    InputFormat,
    load_function,
    output_file_of,
    split_suffixes,
)
from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import describe_position, read_records
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.outputs import _FORMATS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "shuffle.md"


def read_shouted(path: str, _: str | None, options: ReadOptions) -> Iterator[RecordBlock]:
    builder = BlockBuilder(options)
    builder.add_text(0, Path(path).read_text(encoding="utf-8").upper())
    yield builder.build()


def test_a_new_format_is_an_entry_and_its_reader(tmp_path, monkeypatch):
    shouted = InputFormat("shouted", (".loud",), f"{__name__}:read_shouted", "one document", record_name="shout")
    monkeypatch.setitem(FORMATS, "shouted", shouted)
    (tmp_path / "a.loud").write_text("hello")
    (source,) = find_inputs([str(tmp_path)])
    assert [text for block in read_records(source) for text in block.texts.to_pylist()] == ["HELLO"]
    assert describe_position(source, 0) == f"{tmp_path}/a.loud: shout 0"
    (tmp_path / "b.quiet").write_text("hello")
    with pytest.raises(CorpusError, match=r"expected [^;]*\.loud.*--format [^;]*shouted"):
        find_inputs([str(tmp_path / "b.quiet")])


@pytest.mark.parametrize("entry", FORMATS.values(), ids=lambda entry: entry.name)
def test_the_functions_of_a_format_are_there(entry):
    assert callable(load_function(entry.reader))
    assert entry.unit_counter is None or callable(load_function(entry.unit_counter))


def test_no_suffix_stands_for_two_things():
    suffixes = [suffix for entry in FORMATS.values() for suffix in entry.suffixes]
    suffixes += [suffix for entry in COMPRESSIONS.values() for suffix in entry.suffixes]
    assert len(suffixes) == len(set(suffixes))


def test_the_configuration_allows_the_formats_of_the_tables():
    choices = ("auto", *(name for name, entry in FORMATS.items() if entry.suffixes))
    assert get_args(ShuffleConfig.model_fields["format"].annotation) == choices
    assert get_args(ShuffleConfig.model_fields["output"].annotation) == tuple(OUTPUTS) == tuple(_FORMATS)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("out.txt", ("lines", None)),
        ("a.b/OUT.TXT.GZ", ("lines", "gzip")),
        ("out.jsonl.zst", ("jsonl", "zstd")),
        ("out.ndjson", ("jsonl", None)),
        ("out.csv.bz2", ("csv", "bz2")),
        ("out.tsv.xz", ("tsv", "xz")),
        ("out.parquet", ("parquet", None)),
        ("out.arrow", ("arrow", None)),
        *(
            (name, None)
            for name in ("shards", "a.txt/shards", "shards-v1.0", "2024.11.30", "out.txt/", "out.foo/", ".")
        ),
    ],
)
def test_the_name_of_an_output_says_what_it_is(name, file):
    assert output_file_of(name) == file


@pytest.mark.parametrize(
    "name",
    ["out.json", "out.json.gz", "out.gz", "out.txt.zip", "out.zip", "out.tar", "out.text.7z", "out.parquet.gz",
     "out.arrow.zst", "out.gz.txt.foo", "out.txt.gz.gz", "out.txtt",
     "out.txt.lzma", "out.feather", "out.ipc"],
)  # fmt: skip
def test_a_name_that_means_no_output_is_refused(name):
    with pytest.raises(ConfigError, match=re.escape(f"{name}: no file is written under the suffix")):
        output_file_of(name)


@pytest.mark.parametrize("name", ["s3://bucket/out.txt", "file:///tmp/shards"])
def test_a_uri_is_no_output(name):
    with pytest.raises(ConfigError, match="is a URI, but outputs are local"):
        output_file_of(name)


def test_every_output_can_be_read_back():
    for entry in OUTPUTS.values():
        assert entry.suffixes
        for suffix in entry.suffixes:
            assert output_file_of(f"out{suffix}") == (entry.name, None)
            assert split_suffixes(f"out{suffix}") == (entry.read_as, None)


def test_the_documentation_lists_the_tables():
    text = DOCS.read_text(encoding="utf-8")
    for entry in FORMATS.values():
        suffixes = ", ".join(f"`{suffix}`" for suffix in entry.suffixes)
        assert f"| `{entry.name}` |{f' {suffixes} ' if suffixes else ' '}| {entry.description} |" in text
    assert ", ".join(f"`{suffix}`" for entry in COMPRESSIONS.values() for suffix in entry.suffixes) in text
    assert all(f"`--to {name}`" in text for name in OUTPUTS if name != "arrow")
