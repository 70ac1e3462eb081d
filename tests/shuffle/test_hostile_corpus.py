from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kexue_train.foundation.errors import CorpusError
from kexue_train.shuffle.text_shards import verify_text_shards

SLOW = {"bomb_1gib.jsonl.gz", "one_line_50mb.jsonl.gz"}
DAMAGED = {"truncated_mid.jsonl.gz", "truncated_trailer.jsonl.gz"}
MISNAMED = {"plain_named_gz.jsonl.gz"}


@pytest.fixture
def hostile_files(shared_data):
    """JSON Lines with all kinds of bad records in them, two of them cut off."""
    files = [path for path in sorted((shared_data / "hostile").glob("*.jsonl*")) if path.is_file()]
    return [path for path in files if path.name not in SLOW | MISNAMED]


@pytest.mark.parametrize("memory", ["1B", "4GB"])
def test_with_skip_every_line_of_the_hostile_files_is_accounted_for(tmp_path, hostile_files, shuffle, memory):
    manifest = shuffle(hostile_files, tmp_path / "out", on_bad_record="skip", shards=3, memory=memory)
    figures = manifest.statistics
    for entry in manifest.inputs:
        path = Path(entry.uri)
        if path.suffix != ".gz":
            assert entry.rows + sum(entry.rejected.values()) + entry.blank == _count_lines(path), path.name
    damaged = {
        Path(entry.uri).name for entry in manifest.inputs if "the file is damaged from here on" in entry.rejected
    }
    assert damaged == DAMAGED
    assert manifest.rows == sum(entry.rows for entry in manifest.inputs) == verify_text_shards(tmp_path / "out").rows
    rejected = (tmp_path / "out" / "rejected" / "records.jsonl").read_bytes().count(b"\n")
    assert rejected == sum(figures["rejected"].values())


def test_by_default_the_first_bad_record_ends_it(tmp_path, hostile_files, shuffle):
    files = [path for path in hostile_files if path.name not in DAMAGED]
    with pytest.raises(CorpusError, match=r"hostile/\w+\.jsonl:\d+: record at byte \d+: .*--on-bad-record skip"):
        shuffle(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_real_corpus_in_two_languages_is_shuffled_and_verified(tmp_path, shared_data, shuffle):
    names = ["en/peps.jsonl.gz", "zh/luxun.jsonl.gz", "zh/techdocs.jsonl.gz"]
    manifest = shuffle([shared_data / "corpus" / name for name in names], tmp_path / "out", shards=4)
    assert verify_text_shards(tmp_path / "out") == manifest
    mixing = manifest.statistics["source_mixing"]
    assert mixing["chi_square"] < mixing["degrees_of_freedom"] + 30


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_it_unfinished_and_says_how_to_go_on(tmp_path, make_corpus, repository, workers):
    path = make_corpus(tmp_path / "a.jsonl", (f"{i} " + "word " * 400 for i in range(60_000)))  # 120 MB
    command = [sys.executable, "-m", "kexue_train", "shuffle", str(path), "-o", str(tmp_path / "out")]
    command += ["--workers", workers, "--memory", "300MB"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=repository, start_new_session=True)
    while not list(tmp_path.glob(".out.partial/.spill/task-*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all processes
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert not (tmp_path / "out").exists()
    assert errors.splitlines()[-1] == "stopped; finished work is kept, run the same command to resume"
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=True)
    assert "resumed: " in done.stderr
    assert verify_text_shards(tmp_path / "out").rows == 60_000


def _count_lines(path):
    data = path.read_bytes()
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))
