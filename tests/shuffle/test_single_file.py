from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus.formats import OUTPUTS, output_format_of
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.artifacts import file_checksum, partial_dir
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.shuffle import passes, single_file
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.single_file import shuffle_to_file

LINES = [b"line %d" % i for i in range(500)] + [b"", b"", b"\xff\xfe no UTF-8", b"ends in a return\r", b" "]


def run(inputs, out, *, seed=0, executor=None, **settings):
    settings = {"output": output_format_of(str(out)) or "lines"} | settings
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
    monkeypatch.setattr(single_file, "_SYNC_BYTES", 1000)


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
    path = tmp_path / f"out{OUTPUTS[output].suffix}"
    manifest = run(corpus, path)
    match output:
        case "arrow":
            texts = pa.ipc.open_stream(path.read_bytes()).read_all()["text"].to_pylist()
        case "parquet":
            texts = pq.read_table(path)["text"].to_pylist()
        case "jsonl":
            texts = [json.loads(line)["text"] for line in path.read_bytes().splitlines()]
        case _:
            texts = path.read_text(encoding="utf-8").splitlines()
    assert len(texts) == manifest.rows == 320
    assert texts[0].startswith("document")


class KilledError(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("kill_after", [0, 1, 3, 5])
def test_a_killed_run_goes_on_with_the_same_bytes(tmp_path, lines, many_parts, monkeypatch, kill_after):
    run(lines, tmp_path / "reference.txt")
    original, calls = passes.gather, []

    def gather(task):
        if len(calls) == kill_after:
            raise KilledError
        calls.append(task)
        return original(task)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "gather", gather)
        with pytest.raises(KilledError):
            run(lines, tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()
    manifest = run(lines, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "reference.txt").read_bytes()
    assert manifest.files["out.txt"].checksum == file_checksum(tmp_path / "reference.txt")


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
