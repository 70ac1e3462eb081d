"""A run as a job on a cluster of two nodes, one of which is killed in mid-training: the same bytes as on a laptop."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.free_port import free_port
from tests.pipeline.test_pipeline import CONFIG, write_inputs
from tests.train.tiny_training import curve
from tests.train.warm_python import warm_python

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RAY = ["-c", "from ray.scripts.scripts import main; main()"]
HEAD, SECOND = "127.0.0.2", "127.0.0.3"
STEPS = 400
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
CHANGES = {
    "execution: {tasks: local, num_workers: 1}": "execution: {num_workers: 1}",
    "launcher: torchrun": "launcher: ray",
    "engine: deepspeed": "engine: torch",
    "steps: 12": f"steps: {STEPS}",
    "12: 0.1": f"{STEPS}: 0.1",
    "validate_every: 6": f"validate_every: {STEPS}",
    "checkpoints: {every: 2": "checkpoints: {every: 20",
}


class Cluster:
    """A head with two CPUs, and a second node, marked for training, with one."""

    def __init__(self, folder: Path) -> None:
        self.port, self.dashboard, self.client = free_port(), free_port(), free_port()
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": hashlib.sha256(os.urandom(32)).hexdigest(),
            "RAY_prestart_worker_first_driver": "0",
            "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "300",  # a busy machine needs more than the usual 30
            "GLOO_SOCKET_IFNAME": "lo",
            "PREFECT_HOME": str(folder / "prefect"),
        }
        self._folder = folder
        self.sockets = Path(tempfile.mkdtemp(prefix="kexue-"))  # where pytest keeps its folders paths are too long

    @contextmanager
    def node(self, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A started node. Ray gives up when one takes more than some 20 s, so a busy machine has several tries."""
        for _ in range(3):
            log = self._folder / f"{name}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [warm_python(), *RAY, "start", "--block", "--disable-usage-stats", *options],
                    stdout=output, stderr=output, env=self.environment, start_new_session=True,
                )  # fmt: skip
            try:
                while process.poll() is None and "Ray runtime started" not in log.read_text():
                    time.sleep(0.1)
                if process.poll() is None:
                    yield process
                    return
            finally:
                kill_group(process)
        raise AssertionError(log.read_text())

    def head(self) -> list[str]:
        return [
            "--head", f"--node-ip-address={HEAD}", f"--port={self.port}", "--num-cpus=2", "--num-gpus=0",
            f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={self.client}",
            f"--system-config={json.dumps(HEALTH)}", f"--temp-dir={self.sockets / 'head'}",
            f"--dashboard-agent-listen-port={free_port()}",  # the usual one may be another test's
        ]  # fmt: skip

    def second(self) -> list[str]:
        return [
            f"--address={HEAD}:{self.port}", f"--node-ip-address={SECOND}", "--num-cpus=1", "--num-gpus=0",
            '--resources={"train": 1}', f"--temp-dir={self.sockets / 'second'}",
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip

    def wait_for_jobs(self) -> None:
        """Until jobs are taken, some seconds after the start."""
        for _ in range(300):
            job = self._submit("--", "true")
            said, _ = job.communicate(timeout=600)
            if job.returncode == 0:
                return
            assert "No available agent" in said
            time.sleep(1)
        raise AssertionError(said)

    def submit(self, *command: str) -> subprocess.Popen[str]:
        """A Python command, with this repository as its folder."""
        return self._submit("--working-dir", str(ROOT), "--", warm_python(), *command)

    def _submit(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [warm_python(), *RAY, "job", "submit", "--address", f"http://127.0.0.1:{self.dashboard}", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment,
        )  # fmt: skip


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a node and all its processes at once, as when the power fails."""
    family = [other for other in psutil.process_iter() if is_of_session(other, process.pid)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=600)
    process.wait()


def is_of_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session
    except ProcessLookupError:
        return False


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_inputs(folder)
    text = CONFIG.replace("documents.jsonl", str(folder / "documents.jsonl"))
    for old, new in CHANGES.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "tiny.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def cluster(workplace: Path) -> Iterator[tuple[Cluster, subprocess.Popen[bytes]]]:
    """The cluster, and the process of its second node."""
    cluster = Cluster(workplace)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, cluster.sockets, ignore_errors=True)
        stack.enter_context(cluster.node("head", *cluster.head()))
        cluster.wait_for_jobs()
        yield cluster, stack.enter_context(cluster.node("second", *cluster.second()))


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> dict[str, str]:
    """What the same run makes in local processes."""
    pipeline_here(
        workplace, "undisturbed", "execution.tasks=local", "train.workers.launcher=local", python=warm_python()
    )
    return bytes_made(workplace / "undisturbed")


def bytes_made(run: Path) -> dict[str, str]:
    """File -> digest, of all that lasts: shards, vocabulary, samples, last checkpoint, model."""
    last = f"pretrain/checkpoints/step-{STEPS:08d}"
    files = [path for folder in ("shards", "tokenizer", "samples", last, "hf") for path in (run / folder).rglob("*.*")]
    kept = [path for path in files if path.suffix in (".arrow", ".safetensors") or path.name == "tokenizer.json"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def pipeline_here(folder: Path, run: str, *more: str, python: str) -> str:
    """``kexue pipeline`` to its end; what it said."""
    command = [python, "-m", "kexue_train", "pipeline", "--config", "tiny.yaml", "--run-dir", run, *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_survives_the_loss_of_a_node_and_makes_the_bytes_of_a_laptop(
    workplace: Path, cluster: tuple[Cluster, subprocess.Popen[bytes]], undisturbed: dict[str, str]
) -> None:
    ray, second = cluster
    run = workplace / "run"
    job = ray.submit("-m", "flows.pretrain_pipeline", str(workplace / "tiny.yaml"), "--run-dir", str(run))
    checkpoints = run / "pretrain" / "checkpoints"
    try:
        while not list(checkpoints.glob("step-*")):
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.02)
        kill_group(second)
        said, _ = job.communicate(timeout=600)
    finally:
        job.kill()
    assert job.returncode == 0, said
    stages = ["shuffle", "tokenizer", "samples", "train", "export", "evaluate"]
    assert [name for name in stages if f"{name}: started" in said] == stages  # plain lines, as it is no terminal
    assert re.search(rf"train: {STEPS} steps, [\d,]+ tokens", said)
    assert f"report  {run}/report/index.html" in said
    [resumed] = curve(run / "pretrain", "resume")
    assert 0 < resumed["step"] < STEPS
    assert len(undisturbed) > 6
    assert bytes_made(run) == undisturbed


def test_a_command_from_outside_uses_the_machines_of_the_cluster(
    workplace: Path,
    cluster: tuple[Cluster, subprocess.Popen[bytes]],
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray, _ = cluster
    for name, value in ray.environment.items():
        monkeypatch.setenv(name, value)
    outside = ("--ray", f"ray://{HEAD}:{ray.client}")
    few = (
        "train.steps=6",
        "optimizer.schedule={2: 1.0, 6: 0.1}",
        "train.logging.validate_every=6",
        "train.checkpoints.every=6",
    )
    pipeline_here(workplace, "outside", *outside, *few, python=sys.executable)  # Ray's client does not survive a fork
    assert [line["step"] for line in curve(workplace / "outside" / "pretrain", "train")] == [1, 2, 3, 4, 5, 6]
    shards = [name for name in undisturbed if name.startswith("shards/")]
    made = bytes_made(workplace / "outside")
    assert [made[name] for name in shards] == [undisturbed[name] for name in shards]
    assert len(shards) == 3


def test_a_configuration_that_is_not_there_ends_the_job_with_its_name(
    cluster: tuple[Cluster, subprocess.Popen[bytes]],
) -> None:
    job = cluster[0].submit("-m", "flows.pretrain_pipeline", "configs/bas.yaml")
    said, _ = job.communicate(timeout=600)
    assert job.returncode == 1
    assert "configs/bas.yaml" in said
    assert "no such configuration file" in said
