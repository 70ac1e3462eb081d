"""The whole pipeline as a person starts it: to the end, again, killed at random moments, with changed settings."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.train.warm_python import warm_python
from tests.train.warm_worker import WarmProcess

pytestmark = pytest.mark.slow

STEPS = 12
CONFIG = f"""
name: tiny
seed: 3
corpus: {{inputs: [documents.jsonl]}}
shuffle: {{shards: 3, memory: 256MB}}
tokenizer: {{vocab_size: 256}}
samples: {{seq_len: 32, heldout_fraction: 0.05}}
model:
  {{num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64}}
optimizer: {{lr: 1.0e-3, schedule: {{2: 1.0, {STEPS}: 0.1}}}}
train:
  {{steps: {STEPS}, global_batch_size: 8, micro_batch_size: 4, device: cpu,
  workers: {{launcher: torchrun, threads_per_worker: 1}}, compute: {{engine: deepspeed}},
  logging: {{log_every: 1, validate_every: 6}}, checkpoints: {{every: 2, keep: 2}}}}
evaluate: {{masked_sentences: ["One [MASK]."]}}
execution: {{tasks: local, num_workers: 1}}
"""
STAGES = {"shuffle": "shards", "tokenizer": "tokenizer", "samples": "samples", "train": "pretrain", "export": "hf",
          "evaluate": "evaluate"}  # fmt: skip
SAMPLES = ("samples", "samples-64")
IN_ONE_PROCESS = "train.workers.launcher=local"  # changes no result, and starts no torchrun and no worker


def write_inputs(folder: Path) -> None:
    """300 documents of words that do not exist."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 7))) for _ in range(200)]
    with (folder / "documents.jsonl").open("w") as file:
        for _ in range(300):
            sentences = [" ".join(chance.choices(words, k=chance.randint(4, 12))) for _ in range(chance.randint(2, 8))]
            file.write(json.dumps({"text": ". ".join(sentences) + "."}) + "\n")
    (folder / "tiny.yaml").write_text(CONFIG)


COMMAND = ["-m", "kexue_train", "pipeline", "--config", "tiny.yaml", "--run-dir"]
ENVIRONMENT = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}


def start(folder: Path, run: str, *more: str) -> WarmProcess:
    return WarmProcess([*COMMAND, run, *more], ENVIRONMENT, folder=folder, new_session=True, python=warm_python())


def finish(folder: Path, run: str, *more: str, code: int = 0) -> dict[str, str]:
    """Run to the end; the lines said, by the stage that said them last."""
    process = start(folder, run, *more)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return {line.partition(": ")[0]: line for line in output.splitlines() if ": " in line} | {"all": output}


def kill_soon_after(folder: Path, run: str, moment: str, delay: float) -> None:
    """Start a run, and kill its process group ``delay`` seconds after a path that matches ``moment`` exists."""
    process = start(folder, run)
    try:
        while not any((folder / run).glob(moment)):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def manifest_times(run: Path) -> dict[str, int]:
    paths = {stage: run / folder / "manifest.json" for stage, folder in STAGES.items()}
    return {stage: path.stat().st_mtime_ns for stage, path in paths.items() if path.exists()}


def contents(run: Path) -> dict[str, bytes]:
    folders = ["shards", "tokenizer", "samples", f"pretrain/checkpoints/step-{STEPS:08d}", "hf", "evaluate"]
    paths = [path for name in folders for path in (run / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs and the undisturbed run ``undisturbed``, to be read or copied only."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_inputs(folder)
    command = [sys.executable, *COMMAND, "undisturbed"]  # from nothing, as a person starts it
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = {"all": done.stdout}
    assert "complete before" not in said["all"].replace("files as given  (complete before)", "")
    return folder


def redone(workplace: Path, run: str, *more: str) -> tuple[set[str], str]:
    """The stages that a run with changed values redoes on a copy of the undisturbed one, and what it says."""
    shutil.copytree(workplace / "undisturbed", workplace / run)
    before = manifest_times(workplace / run)
    said = finish(workplace, run, IN_ONE_PROCESS, *more)["all"]
    after = manifest_times(workplace / run)
    return {stage for stage in STAGES if before[stage] != after[stage]}, said


def test_a_run_leaves_all_that_it_promises_and_nothing_hidden_but_lock_and_owner(workplace: Path) -> None:
    names = {path.name for path in (workplace / "undisturbed").iterdir()}
    assert names == {".lock", ".run", "config.yaml", "stages.jsonl", "report", *STAGES.values()}


def test_the_same_command_again_finds_every_stage_complete(workplace: Path) -> None:
    before = manifest_times(workplace / "undisturbed")
    said = finish(workplace, "undisturbed")
    assert [stage for stage in STAGES if not said[stage].endswith("(complete before)")] == []
    assert manifest_times(workplace / "undisturbed") == before


def test_a_run_killed_in_shuffle_samples_and_training_ends_as_the_undisturbed_one(workplace: Path) -> None:
    delays = random.Random(0)
    run = workplace / "killed"
    finished: dict[str, int] = {}
    for moment in (".shards.partial", ".samples.partial", "pretrain/checkpoints/step-00000004", ".hf.partial"):
        kill_soon_after(workplace, run.name, moment, delays.uniform(0.0, 0.05))
        assert finished.items() <= manifest_times(run).items(), f"work was done again after a kill at {moment}"
        finished = manifest_times(run)
    finish(workplace, run.name)
    assert finished.items() <= manifest_times(run).items()
    assert contents(run) == contents(workplace / "undisturbed")
    assert not [path.name for path in run.rglob("*.partial")]
    steps = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [record["kind"] for record in steps if record["kind"] in ("start", "resume")] == ["start", "resume"]


def test_more_steps_redo_training_and_what_follows_and_say_why(workplace: Path) -> None:
    stages, said = redone(workplace, "longer", "train.steps=14")
    assert stages == {"train", "export", "evaluate"}
    assert "train: training again: train.steps changed from 12 to 14; the old training is kept in" in said
    assert "export: rebuilding:" in said
    assert (workplace / "longer" / "pretrain.replaced-1" / "manifest.json").exists()


def test_shorter_rows_redo_samples_and_what_follows_and_say_why(workplace: Path) -> None:
    stages, said = redone(workplace, "shorter", "samples.seq_len=24")
    assert stages == {"samples", "train", "export", "evaluate"}
    assert "samples: rebuilding: seq_len changed from 32 to 24" in said
    assert "train: training again: its input 'samples' was rebuilt" in said


def test_phases_of_two_lengths_have_samples_of_both_and_redo_no_other_stage_before(workplace: Path) -> None:
    phases = "train.phases=[{steps: 8, seq_len: 32}, {steps: 4, seq_len: 64, global_batch_size: 4}]"
    stages, said = redone(workplace, "phases", phases)
    assert stages == {"train", "export", "evaluate"}  # the samples of 32 tokens are there; those of 64 are made beside
    run = workplace / "phases"
    lengths = [json.loads((run / name / "manifest.json").read_text())["statistics"]["seq_len"] for name in SAMPLES]
    assert lengths == [32, 64]
    lines = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    borders = [(line["step"], line["seq_len"]) for line in lines if line["kind"] in ("start", "phase")]
    assert borders == [(0, 32), (8, 64)]
    assert [line["rows"] for line in lines if line["kind"] == "train"] == [*range(8, 72, 8), 68, 72, 76, 80]
    assert "complete before" not in next(line for line in said.splitlines() if line.startswith("samples: "))
    again = finish(workplace, "phases", IN_ONE_PROCESS, phases)
    assert [stage for stage in STAGES if not again[stage].endswith("(complete before)")] == []


def test_settings_that_change_no_result_redo_nothing(workplace: Path) -> None:
    stages, _ = redone(
        workplace, "elsewhere", "execution.num_workers=2", "train.logging.log_every=3", "shuffle.memory=300MB"
    )
    assert stages == set()


def test_fresh_starts_over_and_comes_to_the_same(workplace: Path) -> None:
    shutil.copytree(workplace / "undisturbed", workplace / "fresh")
    (workplace / "fresh" / "mine").touch()
    said = finish(workplace, "fresh", "--fresh", IN_ONE_PROCESS)
    assert "started" in said["all"]
    assert not (workplace / "fresh" / "mine").exists()
    assert not set(manifest_times(workplace / "fresh").values()) & set(
        manifest_times(workplace / "undisturbed").values()
    )
    assert contents(workplace / "fresh") == contents(workplace / "undisturbed")


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(workplace: Path) -> None:
    before = manifest_times(workplace / "undisturbed"), (workplace / "undisturbed" / "config.yaml").read_text()
    said = finish(workplace, "undisturbed", "name=other", code=2)
    assert "belongs to the run 'tiny', the configuration is 'other'" in said["all"]
    after = manifest_times(workplace / "undisturbed"), (workplace / "undisturbed" / "config.yaml").read_text()
    assert after == before


@pytest.mark.parametrize("more", [[], ["--fresh"]])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(more: list[str], tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    assert "not a run folder of kexue_train" in finish(tmp_path, "run", *more, code=2)["all"]
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"thesis.tex", ".lock"}
    assert (tmp_path / "run" / "thesis.tex").read_text() == "x"


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    first = start(tmp_path, "run")
    try:
        while not (tmp_path / "run" / "config.yaml").exists():
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.002)
        os.killpg(first.pid, signal.SIGSTOP)  # so that it cannot end before the second begins
        said = finish(tmp_path, "run", code=2)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert f"process {first.pid} is working in this run folder" in said["all"]


@pytest.fixture(scope="module")
def mac(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with a run that has done without what macOS lacks, and what it said, as JSON."""
    folder = tmp_path_factory.mktemp("mac")
    write_inputs(folder)
    words = [
        sys.executable,
        "-m",
        "tests.macos_stand_in",
        *COMMAND[2:],
        "run",
        IN_ONE_PROCESS,
        "train.compute.engine=torch",
    ]
    root = str(Path(__file__).resolve().parent.parent.parent)
    environment = ENVIRONMENT | {"KEXUE_LOG_FORMAT": "json", "PYTHONPATH": root}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return folder / "run", [json.loads(line) for line in done.stderr.splitlines()]


def test_a_whole_run_needs_nothing_that_only_linux_has(mac: tuple[Path, list[dict[str, Any]]]) -> None:
    run, said = mac
    assert not [entry for entry in said if entry["level"] == "ERROR"]
    assert [json.loads(line)["stage"] for line in (run / "stages.jsonl").read_text().splitlines()] == [
        *STAGES,
        "report",
    ]


def test_json_logs_of_a_whole_run_are_one_object_a_line(mac: tuple[Path, list[dict[str, Any]]]) -> None:
    run, said = mac
    assert {entry["run"] for entry in said} == {"run"}
    told = [entry["stage"] for entry in said if entry["message"] == "started"]
    assert [stage for stage in told if stage in STAGES] == list(STAGES)
    assert [entry["stage"] for entry in said if "made" in entry.get("fields", {})] == told
    assert "\nmodel   run/hf\n" in said[-1]["message"]
    log = (run / "pretrain" / "logs" / "rank-0.log").read_text().splitlines()
    assert {(entry["run"], entry["stage"]) for entry in map(json.loads, log)} == {("run", "train")}
