"""``kexue init``: what is looked at, the file it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from kexue_train.foundation.errors import CorpusError
from kexue_train.pipeline.plan import find_sources
from kexue_train.pipeline.proposal import survey
from kexue_train.pipeline.proposal.survey import survey_data, survey_hardware
from kexue_train.pipeline.run_config import RunConfig
from tests.cases.command import kexue

CHINESE = "这是第一句话。这是第二句话，还有一些别的内容。"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """1.3 MB in two languages, half of the letters Chinese; each fourth document is a copy, all have two sentences."""
    texts = [f"{number} {CHINESE * 8}" if number % 3 else f"{number}. One. Two! " * 30 for number in range(3000)]
    for number in range(0, 3000, 4):
        texts[number] = texts[0]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return folder


def test_the_first_documents_tell_languages_copies_and_sentences(corpus: Path) -> None:
    found = survey_data([str(corpus / "*.jsonl")])
    assert found.num_files == 1
    assert found.text_bytes == pytest.approx((corpus / "a.jsonl").stat().st_size, rel=0.1)
    assert 100 < found.num_looked_at < 3000
    assert found.repeated_share == pytest.approx(0.25, abs=0.02)
    assert found.pair_share == 1.0
    assert 0.4 < found.chinese_share < 0.6


def test_the_machine_is_told_with_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert survey_hardware(tmp_path / "not" / "there").disk_bytes > 0
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'NVIDIA H200, 143771 MiB\\nNVIDIA H200, 143771 MiB\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert survey._gpus() == ("NVIDIA H200, 143771 MiB",) * 2
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert survey._gpus() == ()


def test_other_keys_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a text"}\n')
    with pytest.raises(CorpusError, match=r"hold no text under 'text'; name another key with --text-key"):
        survey_data([str(tmp_path / "a.jsonl")])
    assert survey_data([str(tmp_path / "a.jsonl")], "body").num_looked_at == 1
    with pytest.raises(CorpusError, match="read once"):
        survey_data(["-"])


def test_the_file_loads_from_anywhere_and_the_command_it_prints_runs(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = kexue(tmp_path, "init", "my encoder", "corpus/*.jsonl", "--hours", "0.1")
    assert done.code == 0, done.err
    path = tmp_path / "my encoder" / "config.yaml"
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    assert values["corpus"]["inputs"] == ["../corpus/*.jsonl"]
    assert len(re.findall(r"  # \S", text)) > 6  # reasons
    monkeypatch.chdir("/")
    config = RunConfig.load(path)
    assert config.name == "my-encoder"
    assert [os.path.realpath(source.path) for source in find_sources(config)] == [str(corpus / "a.jsonl")]
    command, pipeline, *words = shlex.split(done.out.splitlines()[-1])
    assert (command, pipeline) == ("kexue", "pipeline")
    planned = kexue(tmp_path, "plan", *words)
    assert planned.code == 0, planned.err
    assert "train" in planned.out


def test_nothing_is_written_over_and_nothing_is_left_of_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("name: mine\n")
    done = kexue(tmp_path, "init", "mine")
    assert done.code == 2
    assert "mine/config.yaml: is there already" in done.err
    assert (tmp_path / "mine" / "config.yaml").read_text() == "name: mine\n"
    assert kexue(tmp_path, "init", "new", "nothing/*.jsonl").code == 2
    assert kexue(tmp_path, "init", "new", "--hours", "0").code == 2
    assert not (tmp_path / "new").exists()


def test_as_json_it_says_what_it_wrote(tmp_path: Path) -> None:
    told = json.loads(kexue(tmp_path, "init", "new", "--json").out)
    assert yaml.safe_load((tmp_path / told["config"]).read_text())["train"] == told["values"]["train"]
    assert set(told["reasons"]) > {"train.steps", "optimizer.lr"}
