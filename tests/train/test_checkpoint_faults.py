"""Whole trainings whose checkpoints meet a kill, a full disk, a lost one or an outage: no bit of the result changes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kexue_train.foundation.artifacts import verify_artifact
from kexue_train.foundation.errors import TrainingError
from kexue_train.metrics.file import read_metrics
from kexue_train.train import loop
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import TrainDir
from tests.free_port import free_port
from tests.train.object_storage import S3Server, contents, local_contents
from tests.train.tiny_training import (
    SECONDS,
    curve,
    final_tensors,
    make_config,
    rank_environment,
    same_bits,
    start_worker,
    train_here,
)

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def after_step(monkeypatch):
    """Gives a function that arranges something to be done after steps: ``after_step({3: action})``."""
    one_step = loop.run_step

    def arrange(actions):
        def one_step_and_more(training, *more):
            step = one_step(training, *more)
            actions.get(step, lambda: None)()
            return step

        monkeypatch.setattr(loop, "run_step", one_step_and_more)

    return arrange


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB under the folder of checkpoints of ``tmp_path/out``."""
    disk = TrainDir(tmp_path / "out").checkpoints
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def _saves(out: Path) -> list[tuple[str, int]]:
    return [
        (line["kind"], line["step"]) for line in read_metrics(TrainDir(out).metrics) if "checkpoint_" in line["kind"]
    ]


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_each_checkpoint_says_for_how_long_it_held_the_loop_and_the_writer_worked(trained):
    lines = read_metrics(TrainDir(trained).metrics)
    held = {line["step"]: line["stall_seconds"] for line in lines if line["kind"] == "checkpoint"}
    written = {line["step"]: line["write_seconds"] for line in lines if line["kind"] == "checkpoint_saved"}
    assert held.keys() == written.keys() == {2, 4, 6, 8}
    assert min(held.values()) > 0


def test_the_best_checkpoint_is_that_of_lowest_validation_loss(samples, tmp_path):
    config = make_config(validate_every=2, keep_checkpoints=1, keep_every=6)
    train_here(config, samples, tmp_path / "out")
    losses = {
        line["step"]: line["mlm_loss"] + line["nsp_loss"]
        for line in read_metrics(TrainDir(tmp_path / "out").metrics)
        if line["kind"] == "validation"
    }
    best = min(losses, key=losses.__getitem__)
    folder = TrainDir(tmp_path / "out").checkpoints
    assert (folder / "best").read_text() == f"step-{best:08d}\n"
    assert {int(path.name[5:]) for path in list_checkpoints(folder)} == {6, 8, best}


def test_a_full_disk_passes_and_training_does_not_notice(trained, samples, tmp_path, small_disk, after_step):
    after_step({1: lambda: _fill(small_disk), 5: (small_disk / "ballast").unlink})
    assert train_here(make_config(keep_checkpoints=1), samples, tmp_path / "out") is Ending.FINISHED
    kinds = [("checkpoint_failed", 2), ("checkpoint_failed", 4), ("checkpoint_saved", 6), ("checkpoint_saved", 8)]
    assert _saves(tmp_path / "out") == kinds
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
    assert curve(tmp_path / "out") == curve(trained)


def test_a_disk_that_stays_full_stops_training_with_the_reason(samples, tmp_path, small_disk, after_step):
    after_step({3: lambda: _fill(small_disk)})
    config = make_config(checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"3 checkpoints in a row could not be written .*(No space|os error 28)"):
        train_here(config, samples, tmp_path / "out")
    (small_disk / "ballast").unlink()
    last = list_checkpoints(small_disk)[0]
    verify_artifact(last)
    assert last.name == "step-00000002"
    assert sorted(path.name for path in small_disk.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half", "describe_files", "publish", "admit"])
def test_kill_9_while_saving_never_leaves_a_torn_checkpoint(trained, samples, tmp_path, moment):
    out, script = tmp_path / "out", Path(__file__).with_name("kill_while_saving.py")
    killed = start_worker(make_config(), samples, out, script=f"{script} {moment}")
    output, _ = killed.communicate(timeout=SECONDS)
    assert killed.returncode == -signal.SIGKILL, output
    folder = TrainDir(out).checkpoints
    found = [path.name for path in list_checkpoints(folder)]
    assert found == ["step-00000004", "step-00000002"][moment != "admit" :]
    for path in list_checkpoints(folder):
        verify_artifact(path)
    assert (folder / "latest").read_text() == "step-00000002\n"
    assert train_here(make_config(), samples, out) is Ending.FINISHED
    assert [line["step"] for line in curve(out, "resume")] == [4 if moment == "admit" else 2]
    assert same_bits(final_tensors(out), final_tensors(trained))
    assert not list(folder.glob(".*"))


def test_a_lost_local_disk_is_made_good_by_the_mirror(trained, samples, tmp_path, after_step):
    out = tmp_path / "out"
    with S3Server() as server:
        config = make_config(mirror=server.new_folder())
        after_step({5: _stop})
        assert train_here(config, samples, out) is Ending.STOPPED
        stopped = max(line["step"] for line in curve(out, "stop"))
        shutil.rmtree(out)
        after_step({})
        assert train_here(config, samples, out) is Ending.FINISHED
        assert [line["step"] for line in curve(out, "resume")] == [stopped]
        assert same_bits(final_tensors(out), final_tensors(trained))
        assert contents(config.train.checkpoints.mirror) == local_contents(TrainDir(out).checkpoints)


@pytest.mark.slow
def test_an_outage_of_the_storage_does_not_hold_training_and_is_made_up_for(trained, samples, tmp_path, after_step):
    out = tmp_path / "out"
    with S3Server() as server:
        config = make_config(mirror=server.new_folder())
        start_again = loop.report_saved

        def start_at_the_end(training):
            start_again(training)
            if training.state.step == 8 and server.is_down:
                server.start()

        after_step({3: server.stop})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "report_saved", start_at_the_end)
            assert train_here(config, samples, out) is Ending.FINISHED
        assert same_bits(final_tensors(out), final_tensors(trained))
        assert curve(out) == curve(trained)
        assert contents(config.train.checkpoints.mirror) == local_contents(TrainDir(out).checkpoints)
    log = (TrainDir(out).logs / "rank-0.log").read_text()
    assert log.count("mirror_failed") == log.count("mirror_back") <= 1


@pytest.mark.slow
def test_ranks_with_disks_of_their_own_all_resume_from_that_of_rank_0(samples, tmp_path):
    first, second, whole = tmp_path / "first", tmp_path / "second", tmp_path / "whole"
    script = Path(__file__).with_name("kill_after_step.py")
    train_here(make_config(STILL), samples, whole)
    start_worker(make_config(STILL), samples, first, script=f"{script} 5").communicate(timeout=SECONDS)
    config, port = make_config(STILL, num_workers=2, micro_batch_size=2), free_port()
    workers = [
        start_worker(config, samples, out, environment=rank_environment(rank, 2, port))
        for rank, out in enumerate((first, second))
    ]
    outputs = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert [(line["step"], line["world_size"]) for line in curve(first, "resume")] == [(4, 2)]
    losses = [[line["loss"] for line in curve(out, "train")] for out in (first, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert list_checkpoints(TrainDir(second).checkpoints) == []
