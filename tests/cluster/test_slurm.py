"""The batch scripts under a Slurm of stand-ins: which command would run on which node, with which environment."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kexue_train.train.distributed import slurm_environment
from tests.free_port import free_port
from tests.train.tiny_training import make_config, write_samples
from tests.train.warm_python import warm_python

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "slurm"
SCRIPTS = ["ray.sbatch", "torchrun.sbatch"]
JOB = 4711
# Directives that Slurm knows (sbatch(1)); an unknown one ends a submission.
DIRECTIVES = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive", "time", "requeue",
    "open-mode", "output", "propagate", "signal",
}  # fmt: skip

SRUN = """
import json, os, signal, subprocess, sys
nodes = os.environ["FAKE_NODES"].split(",")
per_node, overlap, exclude, wanted, tasks = int(os.environ["FAKE_TASKS_PER_NODE"]), False, [], None, None
words = sys.argv[1:]
while words[0].startswith("-"):
    name, _, value = words.pop(0).partition("=")
    if name == "--nodelist": nodes = value.split(",")
    elif name == "--exclude": nodes = [n for n in nodes if n not in value.split(",")]
    elif name == "--ntasks": tasks = int(value)
    elif name == "--nodes": wanted = int(value)
    elif name not in ("--overlap", "--kill-on-bad-exit"): sys.exit("srun: unrecognized option " + name)
assert wanted is None or wanted == len(nodes), (wanted, nodes)
total = tasks or len(nodes) * per_node
children = []
for rank in range(total):
    node, local = nodes[rank * len(nodes) // total], rank % (total // len(nodes))
    children.append(subprocess.Popen(words, env=os.environ | {
        "FAKE_NODE": node, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(total), "SLURM_STEP_NODELIST": ",".join(nodes)}))
signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in children])
codes = [child.wait() for child in children]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""

# Stands for python, ray, kexue and hostname: writes down how it was called, then does what FAKE_BEHAVIOUR says.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
name, words = Path(sys.argv[0]).name, sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log:
    call = {"program": name, "words": words, "node": os.environ.get("FAKE_NODE"), "env": dict(os.environ)}
    log.write(json.dumps(call) + "\\n")
if name == "hostname": print({"a1": "10.0.0.1 172.17.0.1", "a2": "10.0.0.2"}[os.environ["FAKE_NODE"]])
if name in ("hostname", "ray"): sys.exit(0)
behaviour = os.environ["FAKE_BEHAVIOUR"]
if behaviour == "until stopped":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    Path(os.environ["FAKE_LOG"] + ".ready").touch()
    for _ in range(12000):
        if out and (out / "stop").exists(): sys.exit(3)
        time.sleep(0.05)
    sys.exit(99)
sys.exit(int(behaviour))
"""

SCONTROL = """
import json, os, sys
if sys.argv[1:3] == ["show", "hostnames"]: print(os.environ["FAKE_NODES"].replace(",", "\\n"))
elif sys.argv[1:3] == ["show", "job"]:
    print("   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=" + os.environ["FAKE_PREEMPTED"])
else: open(os.environ["FAKE_LOG"] + ".scontrol", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""

Batch = Callable[..., "Ended"]


class Ended:
    """A finished batch script."""

    def __init__(self, code: int, output: str, log: Path) -> None:
        self.code, self.output = code, output
        self.calls: list[dict[str, Any]] = (
            [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        )
        slurm = Path(f"{log}.scontrol")
        self.scontrol = slurm.read_text().splitlines() if slurm.exists() else []

    def of(self, program: str, *first: str) -> list[dict[str, Any]]:
        return [c for c in self.calls if c["program"] == program and c["words"][: len(first)] == list(first)]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """Run a script as the first node of an allocation would."""
    programs = dict.fromkeys(("python", "ray", "kexue", "hostname"), PROGRAM)
    (tmp_path / "bin").mkdir()
    for name, code in (programs | {"srun": SRUN, "scontrol": SCONTROL}).items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "log"

    def run(
        script: str,
        *arguments: str,
        nodes: str = "a1,a2",
        tasks: int = 2,
        behaviour: str = "0",
        stop_when: Callable[[], bool] | None = None,
        **environ: str,
    ) -> Ended:
        own = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("SLURM_", "RAY_", "RANK", "NCCL_", "TORCHINDUCTOR_", "TRITON_"))
        }
        environment = own | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "FAKE_NODES": nodes, "FAKE_TASKS_PER_NODE": str(tasks), "FAKE_LOG": str(log), "FAKE_BEHAVIOUR": behaviour,
            "FAKE_PREEMPTED": "None",
            "SLURM_JOB_ID": str(JOB), "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_NUM_NODES": str(len(nodes.split(","))),
            "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "6", "SLURM_GPUS_ON_NODE": "8", **environ,
        }  # fmt: skip
        process = subprocess.Popen(
            ["bash", str(FOLDER / script), *arguments],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if stop_when:
            while not stop_when():
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=600)
        return Ended(process.returncode, output, log)

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_and_slurm_can_read_the_script(script: str) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / script)], check=True)
    text = (FOLDER / script).read_text()
    before_code = text[: text.index("set -euo pipefail")]
    assert text.count("#SBATCH") == before_code.count("#SBATCH")  # Slurm stops reading at the first command
    assert set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.M)) <= DIRECTIVES
    assert {"requeue", "signal", "open-mode"} <= set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.M))


def test_every_task_becomes_a_worker_with_its_own_rank(batch: Batch) -> None:
    ended = batch("torchrun.sbatch", "c.yaml", "samples", "out", "train.steps=5")
    assert (ended.code, ended.scontrol) == (0, [])
    workers = ended.of("python", "-m", "kexue_train.train.worker")
    expected = ["--config", "c.yaml", "--samples", "samples", "--out", "out", "train.steps=5"]
    assert [worker["words"][2:] for worker in workers] == [expected] * 4
    seen = [(worker["node"], slurm_environment(worker["env"])) for worker in workers]
    seen.sort(key=lambda pair: int(pair[1]["RANK"]))
    assert [(node, ranks["RANK"], ranks["LOCAL_RANK"]) for node, ranks in seen] == [
        ("a1", "0", "0"), ("a1", "1", "1"), ("a2", "2", "0"), ("a2", "3", "1")
    ]  # fmt: skip
    assert {(ranks["WORLD_SIZE"], ranks["MASTER_ADDR"]) for _, ranks in seen} == {("4", "a1")}
    assert len({ranks["MASTER_PORT"] for _, ranks in seen}) == 1
    assert {worker["env"]["OMP_NUM_THREADS"] for worker in workers} == {"6"}


def test_a_training_that_is_told_to_stop_saves_and_goes_back_into_the_queue(batch: Batch, tmp_path: Path) -> None:
    ended = batch(
        "torchrun.sbatch",
        "c.yaml",
        "samples",
        "out",
        behaviour="until stopped",
        stop_when=(tmp_path / "log.ready").exists,
    )
    assert (ended.code, ended.scontrol) == (0, [f"requeue {JOB}"]), ended.output
    assert (tmp_path / "out" / "stop").exists()


def test_workers_that_slurm_itself_stopped_go_back_into_the_queue(batch: Batch) -> None:
    ended = batch("torchrun.sbatch", "c.yaml", "samples", "out", behaviour="3")
    assert (ended.code, ended.scontrol) == (0, [f"requeue {JOB}"])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("code", [1, 143])
def test_a_preempted_job_whose_tasks_had_no_time_to_save_goes_back_into_the_queue(
    batch: Batch, script: str, code: int
) -> None:
    ended = batch(script, "c.yaml", "run", "out", tasks=1, behaviour=str(code), FAKE_PREEMPTED="2026-01-01T00:00:07")
    assert (ended.code, ended.scontrol) == (0, [f"requeue {JOB}"]), ended.output


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_preempted_job_that_finished_all_the_same_has_finished(batch: Batch, script: str) -> None:
    ended = batch(script, "c.yaml", "run", "out", tasks=1, FAKE_PREEMPTED="2026-01-01T00:00:07")
    assert (ended.code, ended.scontrol) == (0, []), ended.output


@pytest.mark.parametrize("script", SCRIPTS)
def test_tasks_have_their_cpus_what_nccl_says_and_the_nodes_own_disk_for_kernels(
    batch: Batch, script: str, tmp_path: Path
) -> None:
    ended = batch(script, "c.yaml", "run", "out", tasks=1, TMPDIR=str(tmp_path))
    tasks = [*ended.of("python"), *ended.of("kexue")]
    assert tasks
    for name, value in {
        "SRUN_CPUS_PER_TASK": "6",
        "NCCL_DEBUG": "WARN",
        "TRITON_CACHE_DIR": f"{tmp_path}/kexue-{JOB}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{tmp_path}/kexue-{JOB}/inductor",
    }.items():
        assert {task["env"][name] for task in tasks} == {value}
    ended = batch(script, "c.yaml", "run", "out", tasks=1, NCCL_DEBUG="INFO", TRITON_CACHE_DIR="/mine")
    last = [*ended.of("python"), *ended.of("kexue")][-1]["env"]
    assert (last["NCCL_DEBUG"], last["TRITON_CACHE_DIR"]) == ("INFO", "/mine")


@pytest.mark.parametrize("script", SCRIPTS)
def test_tasks_may_pin_what_the_node_allows(batch: Batch, script: str, tmp_path: Path) -> None:
    text = (FOLDER / script).read_text()
    assert "#SBATCH --propagate=NONE" in text.splitlines()
    soft = next(line for line in text.splitlines() if line.startswith("ulimit"))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -S -l 8; {soft}; ulimit -S -l; ulimit -H -l"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(set(done.stdout.split())) == 1


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_one_and_does_not_come_again(batch: Batch, script: str, code: int) -> None:
    ended = batch(script, "c.yaml", "run", "out", tasks=1, behaviour=str(code))
    assert (ended.code, ended.scontrol) == (code, [])


def test_ray_has_one_head_and_a_worker_on_every_other_node(batch: Batch) -> None:
    ended = batch("ray.sbatch", "c.yaml", "run", "train.num_workers=16", nodes="a1,a2", tasks=1)
    assert ended.code == 0, ended.output
    port = 20_000 + JOB % 20_000
    (head,) = ended.of("ray", "start", "--head")
    assert head["node"] == "a1"
    assert {f"--port={port}", "--node-ip-address=10.0.0.1", "--num-gpus=8", "--num-cpus=6"} <= set(head["words"])
    (worker,) = ended.of("ray", "start", f"--address=10.0.0.1:{port}")
    assert worker["node"] == "a2"
    (driver,) = ended.of("kexue")
    assert driver["node"] == "a1"
    assert driver["words"] == [
        "pipeline", "--config", "c.yaml", "--run-dir", "run", "--ray", f"10.0.0.1:{port}",
        "train.num_workers=16",
    ]  # fmt: skip


def test_ray_on_one_node_has_a_head_alone(batch: Batch) -> None:
    ended = batch("ray.sbatch", "c.yaml", "run", nodes="a1", tasks=1)
    assert ended.code == 0, ended.output
    assert len(ended.of("ray", "start")) == 1


def test_all_nodes_share_a_token_that_no_command_line_shows(batch: Batch) -> None:
    ended = batch("ray.sbatch", "c.yaml", "run", tasks=1)
    rays = [*ended.of("ray", "start"), *ended.of("kexue")]
    tokens = {call["env"]["RAY_AUTH_TOKEN"] for call in rays}
    assert len(rays) == 3
    assert {call["env"]["RAY_AUTH_MODE"] for call in rays} == {"token"}
    (token,) = tokens
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    assert token not in json.dumps([call["words"] for call in ended.calls])


def test_a_pipeline_that_is_told_to_stop_goes_back_into_the_queue(batch: Batch, tmp_path: Path) -> None:
    ended = batch(
        "ray.sbatch", "c.yaml", "run", tasks=1, behaviour="until stopped", stop_when=(tmp_path / "log.ready").exists
    )
    assert (ended.code, ended.scontrol) == (0, [f"requeue {JOB}"]), ended.output


def test_the_stand_in_refuses_what_slurm_would(batch: Batch, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(tmp_path / "bin" / "srun"), "--nodez=1", "true"],
        env=os.environ | {"FAKE_NODES": "a1", "FAKE_TASKS_PER_NODE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "unrecognized option --nodez" in done.stderr


@pytest.mark.slow
def test_a_real_training_is_stopped_goes_on_when_resubmitted_and_finishes(batch: Batch, tmp_path: Path) -> None:
    samples, out = write_samples(tmp_path / "data"), tmp_path / "out"
    config = make_config(steps=300, num_workers=2, validate_every=150, checkpoint_every=150, lr=1e-3)
    (tmp_path / "c.yaml").write_text(config.model_dump_json())
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {warm_python()} "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    metrics = out / "metrics.jsonl"

    def submit(stop_when: Callable[[], bool] | None = None) -> Ended:
        return batch(
            "torchrun.sbatch", "c.yaml", str(samples), str(out), nodes="127.0.0.1,127.0.0.2", tasks=1,
            stop_when=stop_when, MASTER_PORT=str(free_port()), GLOO_SOCKET_IFNAME="lo",
        )  # fmt: skip

    stopped = submit(lambda: metrics.exists() and '"kind": "train"' in metrics.read_text())
    assert (stopped.code, stopped.scontrol) == (0, [f"requeue {JOB}"]), stopped.output
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    assert 0 < int(checkpoint.name[5:]) < 300
    assert not (out / "manifest.json").exists()
    finished = submit()
    assert finished.code == 0, finished.output
    assert finished.scontrol == stopped.scontrol  # not once more
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "resume"] == [int(checkpoint.name[5:])]
    assert json.loads((out / "manifest.json").read_text())["statistics"]["steps"] == 300
