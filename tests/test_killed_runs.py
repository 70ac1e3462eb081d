"""A whole run in its own process group, killed with SIGKILL at chosen moments, ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parent.parent
STEPS = 16
CONFIG = f"""
name: tiny
seed: 3
corpus: {{inputs: [documents.jsonl]}}
shuffle: {{shards: 3}}
tokenizer: {{vocab_size: 128}}
samples: {{seq_len: 32, heldout_fraction: 0.05}}
model:
  num_hidden_layers: 1
  hidden_size: 32
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 32
optimizer: {{lr: 5.0e-3, schedule: {{4: 1.0, {STEPS}: 0.1}}}}
train:
  steps: {STEPS}
  global_batch_size: 8
  micro_batch_size: 4
  launcher: torchrun
  engine: deepspeed
  recompute: full
  device: cpu
  log_every: 1
  validate_every: 4
  checkpoint_every: 2
  max_restarts: 0
evaluate: {{masked_sentences: ["the river [MASK]."]}}
execution: {{tasks: local, num_workers: 2}}
"""
WORDS = [
    "river",
    "stone",
    "light",
    "under",
    "winter",
    "garden",
    "seven",
    "paper",
    "mountain",
    "quiet",
    "open",
    "letter",
    "bridge",
    "morning",
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the inputs and configuration, and an undisturbed run in ``runs/tiny``."""
    folder = tmp_path_factory.mktemp("killed")
    chance = random.Random(0)
    with (folder / "documents.jsonl").open("w") as file:
        for number in range(400):
            sentences = [
                " ".join(chance.choices(WORDS, k=chance.randint(4, 9))) + "." for _ in range(chance.randint(2, 9))
            ]
            file.write(json.dumps({"text": f"{number} " + " ".join(sentences)}) + "\n")
    (folder / "tiny.yaml").write_text(CONFIG)
    finish(folder, "runs/tiny")
    return folder


def start(folder: Path, run_dir: str, *overrides: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "kexue_train",
        "pipeline",
        "--config",
        "tiny.yaml",
        "--run-dir",
        run_dir,
        *overrides,
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, run_dir: str, *overrides: str, code: int = 0) -> str:
    process = start(folder, run_dir, *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def kill_when(folder: Path, run_dir: str, moment: str) -> None:
    """Start a run and kill its whole process group as soon as a path that matches ``moment`` exists."""
    process = start(folder, run_dir)
    deadline = time.monotonic() + 120
    while not any((folder / run_dir).glob(moment)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def contents(run: Path) -> dict[str, bytes]:
    """Every byte that must not depend on interruptions: shards, tokenizer, samples, weights, momentum, scores."""
    folders = ["shards", "tokenizer", "samples", "hf", "evaluate"]
    paths = [path for name in folders for path in (run / name).rglob("*") if path.is_file()]
    paths += (run / "pretrain").glob(f"checkpoints/step-{STEPS:08d}/*.safetensors")
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "moment",
    [
        ".shards.partial",
        ".shards.partial/data-*.arrow",
        ".samples.partial/data-00000-of-00003.arrow",
        "pretrain/recipe.json",
        "pretrain/checkpoints/.step-00000004.partial",
        "pretrain/checkpoints/step-00000008",
        ".hf.partial",
    ],
)
def test_a_run_killed_at_any_moment_ends_with_the_bytes_of_an_undisturbed_one(workplace, moment):
    run_dir = f"runs/{moment.strip('.').replace('/', '-').replace('*', 'x')}"
    kill_when(workplace, run_dir, moment)
    finish(workplace, run_dir)
    found, wanted = contents(workplace / run_dir), contents(workplace / "runs/tiny")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_a_second_run_finds_every_stage_complete(workplace):
    output = finish(workplace, "runs/tiny")
    assert output.count("(complete before)") == 7, output  # all but the report


def test_training_resumed_in_the_middle_logs_every_step_once(workplace):
    run_dir = "runs/once"
    kill_when(workplace, run_dir, "pretrain/checkpoints/step-00000006")
    finish(workplace, run_dir)
    lines = [json.loads(line) for line in (workplace / run_dir / "pretrain/metrics.jsonl").read_text().splitlines()]
    undisturbed = (workplace / "runs/tiny/pretrain/metrics.jsonl").read_text().splitlines()
    losses = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    assert losses == [(line["step"], line["loss"]) for line in map(json.loads, undisturbed) if line["kind"] == "train"]
    assert any(line["kind"] == "resume" and line["step"] > 0 for line in lines)


def test_a_changed_value_redoes_the_stages_that_depend_on_it_and_says_why(workplace):
    finish(workplace, "runs/changed")
    before = {
        name: (workplace / "runs/changed" / name / "manifest.json").stat().st_mtime_ns for name in ("shards", "samples")
    }
    output = finish(workplace, "runs/changed", "optimizer.lr=3e-3")
    assert "optimizer.lr changed from 0.005 to 0.003" in output
    after = {name: (workplace / "runs/changed" / name / "manifest.json").stat().st_mtime_ns for name in before}
    assert after == before
    assert (workplace / "runs/changed/pretrain.replaced-1/manifest.json").exists()


def test_a_run_folder_of_another_run_is_refused(workplace):
    output = finish(workplace, "runs/tiny", "name=other", code=2)
    assert "belongs to the run 'tiny'" in output


def test_a_run_folder_in_work_is_refused(workplace):
    process = start(workplace, "runs/locked")
    while not (workplace / "runs/locked/config.yaml").exists():
        time.sleep(0.01)
    output = finish(workplace, "runs/locked", code=2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert f"process {process.pid} is working in this run folder" in output
