"""``kexue try`` as a person calls it: to the end, again, beside the run; and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kexue_train.cli import app as cli
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.run_dir import RunDir

CONFIG = """
name: tiny
seed: 3
corpus: {inputs: [documents.jsonl]}
shuffle: {shards: 3, memory: 256MB, on_bad_record: fail}
tokenizer: {vocab_size: 256}
samples: {seq_len: 32, heldout_fraction: 0.05}
model:
  {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64}
optimizer: {lr: 1.0e-3, schedule: {2: 1.0, 5000000: 0.1}}
train:
  {steps: 5000000, global_batch_size: 8, micro_batch_size: 4, device: cpu,
  workers: {launcher: local, threads_per_worker: 1}, compute: {engine: torch},
  logging: {log_every: 1, validate_every: 100000}, checkpoints: {every: 100000}}
execution: {tasks: local, num_workers: 1}
"""
Try = Callable[..., tuple[int, str, str]]


def write_inputs(folder: Path) -> None:
    sentences = ["the cat sat on the mat", "a dog ran over the hill", "who let the dog out", "no cat was seen that day"]
    texts = [". ".join(sentences[(i + k) % 4].capitalize() + f" {i}" for k in range(4)) + "." for i in range(300)]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "documents.jsonl").write_text("".join([*lines, "no JSON\n"]))
    (folder / "tiny.yaml").write_text(CONFIG)


@pytest.fixture
def kexue_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Try:
    """Run the command in this process, in a folder with a configuration and its corpus."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kexue", "try", *arguments])
        monkeypatch.setenv("MIMALLOC_PURGE_DELAY", "10000")  # which the command sets for its process
        monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")  # the same
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capfd.readouterr()

    return run


@pytest.mark.slow
def test_a_trial_makes_every_stage_and_forecasts_the_run(kexue_try: Try, tmp_path: Path) -> None:
    real = RunDir(tmp_path / "runs" / "tiny")
    real.root.mkdir(parents=True)
    real.claim("tiny", "name: tiny\n")
    before = {path: path.read_bytes() for path in real.root.iterdir()}
    with real.lock():  # a run at work
        code, out, err = kexue_try("tiny.yaml", "--minutes", "0.25", "--json", "--price-per-hour", "3")
    assert code == 0, err
    found = json.loads(out)
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in real.root.iterdir()} == {path.name for path in before} | {".lock"}

    trial = RunDir(tmp_path / "runs" / "tiny.try")
    assert (trial.report / "index.html").exists()
    assert read_manifest(trial.hf).kind == "hf_model"
    assert list(found["forecast"]) == ["least", "likely", "most"]
    least, likely, most = (found["forecast"][bound]["seconds"] for bound in found["forecast"])
    assert least < likely < most
    assert found["cost"]["likely"] == pytest.approx(3 * likely / 3600)
    assert 0 < found["trial"]["steps"] < 5_000_000
    rate = found["trial"]["tokens_per_second"]["likely"]
    train = next(stage for stage in found["forecast"]["likely"]["stages"] if stage["stage"] == "train")
    assert train["seconds"] > 5_000_000 * 8 * 32 / rate
    assert found["trial"]["sample"]["documents"] == 300
    assert found["loss"]["likely"] < found["loss"]["entropy"]
    said = "\n".join(found["doubts"])
    assert "1 of 301 records cannot be used (1 not valid JSON); the run ends at the first of them" in said
    assert "times, which teaches little" in said
    assert found["next"][0] == "kexue pipeline --config tiny.yaml"

    code, out, err = kexue_try("tiny.yaml", "--minutes", "60", "train.steps=9", "optimizer.schedule={2: 1.0, 9: 0.1}")
    assert code == 0, err
    assert "train: 9 steps" in out  # to the end, within the time
    assert "9 of 9 steps" in out.replace("\n", " ")
    assert "kexue pipeline --config tiny.yaml train.steps=9" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tinny.yaml"], "did you mean tiny.yaml?"),
        (["tiny.yaml", "train.stesp=3"], "did you mean 'steps'?"),
        (["tiny.yaml", "corpus.inputs=[nothing.jsonl]"], "nothing.jsonl"),
        (["tiny.yaml", "corpus.inputs=[]"], "corpus.inputs is empty; name files"),
        (["tiny.yaml", "corpus.inputs=[-]"], "is read once, so nothing can be tried beforehand"),
        (["tiny.yaml", "shuffle.text_key=body"], "hold no document (0 blank, 300 no key 'body'"),
        (["tiny.yaml", "--text-size", "many"], "size 'many' cannot be read"),
        (["demo", "--text-size", "1GB"], "--text-size: this configuration makes its corpus"),
    ],
)
def test_what_is_wrong_is_said_at_once_and_leaves_no_trace(
    kexue_try: Try, tmp_path: Path, arguments: list[str], said: str
) -> None:
    code, _, err = kexue_try(*arguments)
    assert code == 2
    assert said in err
    assert "error: " in err
    assert not list((tmp_path / "runs").rglob("*.jsonl"))


def test_a_missing_gpu_is_said_before_anything_is_made(
    kexue_try: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = kexue_try("tiny.yaml", "train.device=cuda")
    assert code == 2
    assert "torch sees no CUDA device here: call kexue try on the machine that is to train" in err
    assert not (tmp_path / "runs").exists()


def test_an_empty_corpus_is_refused(kexue_try: Try, tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_text("")
    code, _, err = kexue_try("tiny.yaml")
    assert code == 2
    assert "hold no document (0 blank); check corpus.inputs" in err


def test_the_folder_of_a_run_is_never_emptied(kexue_try: Try, tmp_path: Path) -> None:
    real = RunDir(tmp_path / "real")
    real.root.mkdir()
    real.claim("tiny", "name: tiny\n")
    (real.root / "work").write_text("of days")
    code, _, err = kexue_try("tiny.yaml", "--run-dir", "real")
    assert code == 2
    assert "belongs to the run 'tiny'" in err
    assert (real.root / "work").read_text() == "of days"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letters.txt").write_text("mine")
    code, _, err = kexue_try("tiny.yaml", "--run-dir", "other")
    assert code == 2
    assert (tmp_path / "other" / "letters.txt").read_text() == "mine"


def test_a_full_disk_is_said_before_anything_is_made(
    kexue_try: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kexue_train.foundation.runtime.free_disk_bytes", lambda _: 1000)
    code, _, err = kexue_try("tiny.yaml")
    assert code == 2
    assert "the trial needs about" in err
    assert "1 kB are free" in err
    assert not (tmp_path / "runs" / "tiny.try" / "sample.jsonl").exists()
