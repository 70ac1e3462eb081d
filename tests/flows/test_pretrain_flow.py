"""The flow for real, on a few sentences, with Prefect's embedded server; its records are read through the client."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.train.warm_python import warm_python

pytest.importorskip("prefect")
pytestmark = pytest.mark.slow

STAGES = ["corpus", "shuffle", "tokenizer", "samples", "train", "export", "evaluate", "report"]
CONFIG = """
name: tiny
corpus: {inputs: [documents.jsonl]}
shuffle: {shards: 2, memory: 256MB}
tokenizer: {vocab_size: 96}
samples: {seq_len: 32, heldout_fraction: 0.05}
model:
  {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 32}
optimizer: {schedule: {2: 1.0}}
train:
  {steps: 4, global_batch_size: 4, micro_batch_size: 4, device: cpu, compute: {engine: torch},
  workers: {launcher: torchrun, threads_per_worker: 1}, logging: {log_every: 1}, checkpoints: {every: 4}}
evaluate: {masked_sentences: ["One [MASK]."]}
execution: {tasks: local, num_workers: 1}
"""
# In a process of its own: Prefect starts threads and a server that outlive a test.
READ_BACK = """
import asyncio, json, sys
import flows
from prefect.client.orchestration import get_client

async def read():
    async with get_client() as client:
        runs = await client.read_flow_runs()
        tasks = await client.read_task_runs()
        artifacts = await client.read_artifacts()
    print("RECORDED", json.dumps({
        "flows": [[run.name, run.state_name] for run in runs],
        "tasks": {run.name: run.state_name for run in tasks},
        "artifacts": {a.key: a.data for a in artifacts},
    }))

asyncio.run(read())
"""


def write_inputs(folder: Path) -> None:
    words = ["river", "stone", "light", "under", "winter", "garden", "seven", "paper", "open", "letter", "old", "sea"]
    with (folder / "documents.jsonl").open("w") as file:
        for number in range(150):
            sentences = [" ".join(words[(number * k + j) % 12] for j in range(5 + k)) + "." for k in range(1, 6)]
            file.write(json.dumps({"text": f"{number} " + " ".join(sentences)}) + "\n")
    (folder / "tiny.yaml").write_text(CONFIG)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [warm_python(), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the flow ran to its end."""
    folder = tmp_path_factory.mktemp("flow")
    write_inputs(folder)
    done = run(folder, "-m", "flows.pretrain_pipeline", "tiny.yaml", "--run-dir", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run/report/index.html" in done.stdout
    return folder


@pytest.fixture(scope="module")
def recorded(workplace: Path) -> dict[str, Any]:
    """What Prefect keeps of that run."""
    done = run(workplace, "-c", READ_BACK)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RECORDED "))
    found: dict[str, Any] = json.loads(line.removeprefix("RECORDED "))
    return found


def test_the_flow_makes_what_the_pipeline_makes(workplace: Path) -> None:
    made = {path.name for path in (workplace / "run").iterdir() if path.is_dir()}
    assert made == {"shards", "tokenizer", "samples", "pretrain", "hf", "evaluate", "report"}
    lines = (workplace / "run" / "stages.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in lines] == STAGES[1:]


def test_the_flow_and_every_task_are_recorded_as_completed(recorded: dict[str, Any]) -> None:
    assert recorded["flows"] == [["run from tiny.yaml", "Completed"]]
    assert recorded["tasks"] == dict.fromkeys(STAGES, "Completed")


def test_every_stage_leaves_its_progress_and_its_summary(recorded: dict[str, Any]) -> None:
    artifacts = recorded["artifacts"]
    assert [stage for stage in STAGES if artifacts[f"{stage}-progress"] != 100.0] == []
    tables = {stage: {row[""]: row[stage] for row in json.loads(artifacts[f"{stage}-summary"])} for stage in STAGES}
    assert [stage for stage in STAGES if "result" not in tables[stage]] == []
    assert tables["shuffle"]["rows"] == "150"
    assert json.loads(artifacts["train-metrics"])[-1]["step"] == "4"
    assert "tiny" in artifacts["run-summary"]


def test_the_state_of_the_embedded_server_stays_in_the_working_directory(workplace: Path) -> None:
    assert (workplace / ".prefect" / "prefect.db").exists()


def test_an_error_in_a_stage_is_one_line_and_is_not_tried_again(workplace: Path) -> None:
    done = run(workplace, "-m", "flows.pretrain_pipeline", "tiny.yaml", "--run-dir", "bad", "corpus.inputs=[nothing]")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {workplace / 'nothing'}: no such input file")
    assert "Traceback" not in done.stderr
