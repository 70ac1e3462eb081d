from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus.formats import COMPRESSIONS, OUTPUTS, output_file_of
from kexue_train.corpus.streams import open_stream
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.artifacts import file_checksum, partial_dir
from kexue_train.foundation.errors import (
    ArtifactError,
    ConfigError,
    CorpusError,
    InterruptedOutputError,
    ResourceError,
)
from kexue_train.shuffle import appending, passes, single_file
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.single_file import shuffle_to_file

LINES = [b"line %d" % i for i in range(500)] + [b"", b"", b"\xff\xfe no UTF-8", b"ends in a return\r", b" "]


def run(inputs, out, *, seed=0, executor=None, **settings):
    settings = {"output": output_file_of(str(out)).format if str(out) != "-" else "lines"} | settings
    return shuffle_to_file(
        ShuffleConfig(**settings), [str(inputs)], str(out), seed=seed, executor=executor or LocalExecutor(1)
    )


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    return path


@pytest.fixture
def many_parts(monkeypatch):
    """A few kilobytes are many parts."""
    monkeypatch.setattr(single_file, "_SHARD_BYTES", 700)
    monkeypatch.setattr(appending, "_SYNC_BYTES", 1000)


def test_lines_come_out_as_they_went_in_whatever_their_bytes(tmp_path, lines, many_parts):
    manifest = run(lines, tmp_path / "out.txt")
    found = (tmp_path / "out.txt").read_bytes().removesuffix(b"\n").split(b"\n")
    assert Counter(found) == Counter(LINES)
    assert found != LINES
    assert manifest.rows == len(LINES)
    assert manifest.files["out.txt"].checksum == file_checksum(tmp_path / "out.txt")
    assert not partial_dir(tmp_path / "out.txt").exists()


def test_a_last_line_without_newline_gets_one(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo")
    run(tmp_path / "a.txt", tmp_path / "out.txt")
    assert sorted((tmp_path / "out.txt").read_bytes().splitlines(keepends=True)) == [b"one\n", b"two\n"]


def test_the_file_holds_the_order_of_the_folder(tmp_path, corpus, shuffle, many_parts):
    run(corpus, tmp_path / "out.jsonl")
    shuffle(corpus, tmp_path / "folder", output="jsonl", shards=3)
    parts = sorted((tmp_path / "folder").glob("data-*"))
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(part.read_bytes() for part in parts)


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_every_format_can_be_one_file(tmp_path, corpus, output):
    path = tmp_path / f"out{OUTPUTS[output].suffixes[0]}"
    manifest = run(corpus, path)
    match output:
        case "arrow":
            texts = pa.ipc.open_stream(path.read_bytes()).read_all()["text"].to_pylist()
        case "parquet":
            texts = pq.read_table(path)["text"].to_pylist()
        case "jsonl":
            texts = [json.loads(line)["text"] for line in path.read_bytes().splitlines()]
        case "csv":
            texts = [row["text"] for row in csv.DictReader(io.StringIO(path.read_bytes().decode()))]
        case _:
            texts = path.read_text(encoding="utf-8").splitlines()[output == "tsv" :]
    assert len(texts) == manifest.rows == 320
    assert texts[0].startswith("document")


@pytest.mark.parametrize(
    "compression", [entry for entry in COMPRESSIONS.values() if entry.is_appendable], ids=lambda entry: entry.name
)
@pytest.mark.parametrize("name", ["out.txt", "out.csv"])
def test_a_compressed_file_holds_what_the_plain_one_does(tmp_path, lines, many_parts, name, compression):
    lines.write_bytes(b"".join(b"line %d\n" % i for i in range(300)))
    run(lines, tmp_path / name)
    manifest = run(lines, tmp_path / f"{name}{compression.suffixes[-1]}")
    packed = tmp_path / f"{name}{compression.suffixes[-1]}"
    with open_stream(str(packed), compression.name) as stream:
        assert stream.read(10**6) == (tmp_path / name).read_bytes()
    (entry,) = manifest.files.values()
    assert (entry.bytes, entry.checksum) == (packed.stat().st_size, file_checksum(packed))


TEXTS = ["plain", 'with "quotes"', "a, comma", "two\nlines", "return\r\nand feed", " blanks ", "\ttab", "'", "中文"]


def test_csv_holds_texts_of_any_kind(tmp_path, make_corpus):
    run(make_corpus(tmp_path / "a.jsonl", TEXTS), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["text"]
    assert sorted(rows) == sorted([text] for text in TEXTS)
    run(tmp_path / "out.csv", tmp_path / "back.jsonl")
    assert sorted(json.loads(line)["text"] for line in (tmp_path / "back.jsonl").read_bytes().splitlines()) == sorted(
        TEXTS
    )


@pytest.mark.parametrize("text", ["a\ttab", "two\nlines", "a return\r"])
def test_tsv_cannot_hold_its_own_separators(tmp_path, make_corpus, text):
    with pytest.raises(CorpusError, match=r"column 'text' has a value with a tab or a line end.*--to csv"):
        run(make_corpus(tmp_path / "a.jsonl", ["good", text]), tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_tsv_takes_quotes_as_they_are(tmp_path, make_corpus):
    run(make_corpus(tmp_path / "a.jsonl", ['"', 'a "b" c']), tmp_path / "out.tsv")
    assert sorted((tmp_path / "out.tsv").read_text().splitlines()[1:]) == ['"', 'a "b" c']


@pytest.mark.parametrize("given", [{"shards": 4}, {"shard_size": "1GB"}, {"shards": 1}])
def test_shards_of_one_file_are_refused(tmp_path, corpus, given):
    with pytest.raises(
        ConfigError, match=rf"out\.jsonl: is one file, where --{next(iter(given)).replace('_', '-')} has"
    ):
        run(corpus, tmp_path / "out.jsonl", **given)
    assert not (tmp_path / "out.jsonl").exists()


def test_the_name_and_the_format_asked_for_must_agree(tmp_path, lines):
    with pytest.raises(ConfigError, match=r"out\.txt: is a file of lines by its name, but jsonl is asked for"):
        run(lines, tmp_path / "out.txt", output="jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize("name", ["out.txt", "out.txt.gz"])
def test_no_line_at_all_gives_an_empty_output(tmp_path, name):
    (tmp_path / "empty.txt").touch()
    assert run(tmp_path / "empty.txt", tmp_path / name).rows == 0
    with open_stream(str(tmp_path / name), output_file_of(name).compression) as stream:
        assert stream.read(1) == b""


def test_no_document_at_all_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CorpusError, match="hold no document"):
        run(tmp_path / "empty.jsonl", tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.jsonl"]


class KilledError(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
@pytest.mark.parametrize("kill_after", [0, 1, 3, 5])
def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path, lines, many_parts, monkeypatch, kill_after, suffix):
    reference, out = tmp_path / f"reference{suffix}", tmp_path / f"out{suffix}"
    run(lines, reference)
    original, calls = passes.gather, []

    def gather(task):
        if len(calls) == kill_after:
            raise KilledError
        calls.append(task)
        return original(task)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "gather", gather)
        with pytest.raises(KilledError):
            run(lines, out)
    assert not out.exists()
    manifest = run(lines, out)
    assert out.read_bytes() == reference.read_bytes()
    assert manifest.files[out.name].checksum == file_checksum(reference)


def test_an_existing_file_is_left_alone(tmp_path, lines):
    (tmp_path / "out.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"out\.txt: already exists and is not overwritten"):
        run(lines, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "precious"


def test_a_document_with_a_newline_cannot_be_a_line(tmp_path, make_corpus):
    path = make_corpus(tmp_path / "a.jsonl", ["one", "two\nlines"])
    with pytest.raises(CorpusError, match=r"holds a newline.*--to jsonl"):
        run(path, tmp_path / "out.txt")


def test_refused_records_lie_beside_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": 4}\n')
    run(tmp_path / "a.jsonl", tmp_path / "out.jsonl", on_bad_record="skip")
    (kept,) = (tmp_path / "out.jsonl.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(kept)["raw"] == '{"text": 4}'


def test_standard_output_has_no_place_for_refused_records(lines):
    with pytest.raises(ConfigError, match="give a file or folder with --out"):
        run(lines, "-", on_bad_record="skip")


def test_standard_output_gets_the_bytes_of_the_file(tmp_path, lines, many_parts, capfdbinary):
    run(lines, tmp_path / "out.txt")
    run(lines, "-")
    assert capfdbinary.readouterr().out == (tmp_path / "out.txt").read_bytes()


@pytest.fixture
def no_traces(tmp_path, monkeypatch):
    """A folder for temporary files that must be empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def test_a_full_standard_output_is_said_in_words_that_fit_it(lines, no_traces, monkeypatch):
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with pytest.raises(ResourceError, match=r"^standard output: cannot be written .*No space left") as caught:
            run(lines, "-")
    assert not any(word in str(caught.value) for word in ("partial", "kept", "resume", "delete"))


def test_a_closed_standard_output_is_refused(lines, no_traces, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(ConfigError, match="standard output is closed"):
        run(lines, "-")


def test_a_reader_that_went_away_is_no_failure_of_the_shuffle(lines, no_traces, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", nobody)
        with pytest.raises(BrokenPipeError):
            run(lines, "-")


def test_an_interrupt_says_that_nothing_is_kept(lines, no_traces, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(passes, "gather", interrupt)
    with pytest.raises(InterruptedOutputError, match="nothing is kept to resume") as caught:
        run(lines, "-")
    assert caught.value.exit_code == 130


def test_a_full_temporary_folder_is_named_with_the_way_out(lines, no_traces, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(passes, "scatter", fill)
    with pytest.raises(ResourceError, match=r"temporary: temporary files cannot.*--spill or TMPDIR"):
        run(lines, "-")


@pytest.mark.slow
def test_standard_input_to_standard_output_is_a_permutation_of_the_lines(repository):
    command = [sys.executable, "-m", "kexue_train", "shuffle", "-", "-o", "-", "--workers", "1"]
    data = b"\n".join(LINES) + b"\n"
    results = [
        subprocess.run([*command, "--seed", seed], input=data, capture_output=True, check=True, cwd=repository).stdout
        for seed in ("1", "1", "2")
    ]
    assert results[0] == results[1] != results[2]
    assert Counter(io.BytesIO(results[0]).readlines()) == Counter(io.BytesIO(data).readlines())
