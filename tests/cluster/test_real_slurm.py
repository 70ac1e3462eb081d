"""The batch scripts under a real Slurm, where one is installed (apt-get install slurm-wlm munge)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_by_ranks, write_samples

SCRIPT = str(Path(__file__).resolve().parents[2] / "cluster" / "slurm" / "torchrun.sbatch")
STEPS = 200
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--time=10")
ON_LOOPBACK = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}  # the nodes' names lead nowhere
URGENT = "#!/bin/sh\nexit 0\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "KEXUE_REAL_SLURM" not in os.environ,
        reason="takes minutes, and a job may fail where the nodes are busy: set KEXUE_REAL_SLURM=1",
    ),
    pytest.mark.skipif(bool(missing_programs()), reason=f"needs a real Slurm: no {', '.join(missing_programs())} here"),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with slurm_cluster() as cluster:
        yield cluster


def put_python(folder: Path, script: str) -> dict[str, str]:
    """An environment in which jobs find ``script`` as "python"."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(script)
    (folder / "bin" / "python").chmod(0o755)
    return ON_LOOPBACK | {"PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"}


def test_a_rank_has_all_the_cpus_that_its_task_asked_for(slurm: SlurmCluster, tmp_path: Path) -> None:
    environment = put_python(
        tmp_path, f"#!/bin/sh\nscontrol show step $SLURM_JOB_ID.$SLURM_STEP_ID >{tmp_path}/step-$SLURM_PROCID\n"
    )
    slurm.run(
        "sbatch", "--wait", *TWO_NODES, "--cpus-per-task=3", SCRIPT, "c.yaml", "samples", "out",
        cwd=tmp_path, environment=environment,
    )  # fmt: skip
    assert "TresPerTask=cpu:3" in (tmp_path / "step-0").read_text()
    assert (tmp_path / "step-1").exists()


def test_a_training_that_is_stopped_and_preempted_ends_with_the_same_bits(slurm: SlurmCluster, tmp_path: Path) -> None:
    samples, out = write_samples(tmp_path / "data"), tmp_path / "out"
    config = make_config(steps=STEPS, num_workers=2, validate_every=STEPS, checkpoint_every=STEPS, lr=1e-3)
    (tmp_path / "c.yaml").write_text(config.model_dump_json())
    (tmp_path / "urgent.sbatch").write_text(URGENT)
    environment = put_python(tmp_path, f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    job = slurm.run(
        "sbatch", "--parsable", *TWO_NODES, "--cpus-per-task=1", "--exclusive", SCRIPT, "c.yaml", "data/samples", "out",
        cwd=tmp_path, environment=environment,
    )  # fmt: skip

    def said() -> str:
        return "\n".join(path.read_text(errors="replace") for path in tmp_path.glob("slurm-*.out"))

    def train_on(starts: int) -> None:
        """Wait until the training has got further after so many starts."""
        while len(trained := curve(out, "start", "resume", "train")) == 0 or not (
            trained[-1]["kind"] == "train" and sum(line["kind"] != "train" for line in trained) == starts
        ):
            assert slurm.job(job)["JobState"] in ("PENDING", "RUNNING"), said()
            time.sleep(0.1)

    def go_on() -> None:
        """A job that comes back waits two minutes, in case that its node is the reason."""
        slurm.wait_for(job, "PENDING", meanwhile=said)
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    train_on(starts=1)
    slurm.run("scancel", "--batch", "--signal=TERM", job)  # as before the time limit: to the script alone
    go_on()
    train_on(starts=2)
    urgent = slurm.run(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "urgent.sbatch", cwd=tmp_path
    )
    slurm.wait_for(urgent, "COMPLETED", meanwhile=said)
    go_on()
    ended = slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", meanwhile=said)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "2"), said()
    stops = [line["step"] for line in curve(out, "stop")]
    assert [line["step"] for line in curve(out, "resume")] == stops
    assert len(stops) == 2
    train_by_ranks(config, samples, tmp_path / "at once")
    assert same_bits(final_tensors(out, STEPS), final_tensors(tmp_path / "at once", STEPS))
