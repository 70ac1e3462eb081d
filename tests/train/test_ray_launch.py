"""Ray Train starts the workers under DeepSpeed, and starts them again when one dies."""

from __future__ import annotations

import sys
import threading
import time

import psutil
import pytest

from kexue_train.executor.config import ExecutionConfig
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.job import TrainDir
from kexue_train.train.pretrain import pretrain
from tests.train.tiny_training import (
    SECONDS,
    curve,
    final_tensors,
    make_config,
    same_bits,
    train_by_ranks,
)
from tests.train.warm_python import warm_python

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours to heed
STEPS = 100


@pytest.fixture(scope="module", autouse=True)
def ray_stopped_after():
    ray = pytest.importorskip("ray")
    pytest.importorskip("deepspeed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python())
        yield
    ray.shutdown()


def _train(config, samples, out):
    from kexue_train.train.ray_launch import train_on_ray

    return pretrain(
        config, samples, out, launch=lambda: train_on_ray(config, samples, out, execution=ExecutionConfig())
    )


def _training_workers() -> list[psutil.Process]:
    """Ray Train's workers below this process; nobody else's."""
    names = ((process, _title(process)) for process in psutil.Process().children(recursive=True))
    return [process for process, title in names if title.startswith("ray::") and "TrainWorker" in title]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_killed_worker_is_replaced_and_the_training_ends_with_all_steps(samples, tmp_path):
    out, killed = tmp_path / "out", []
    config = make_config(steps=STEPS, engine="deepspeed", num_workers=2, checkpoint_every=10, validate_every=STEPS)

    def kill_one() -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not killed:
            if list_checkpoints(TrainDir(out).checkpoints) and (workers := _training_workers()):
                workers[-1].kill()
                killed.append(workers[-1].pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    manifest = _train(config, samples, out)
    killer.join()
    assert killed
    assert manifest.statistics["steps"] == STEPS
    resumed = curve(out, "resume")
    assert len(resumed) == 1
    assert curve(out, "start")[0]["world_size"] == resumed[0]["world_size"] == 2
    assert 0 < resumed[0]["step"] < STEPS
    undisturbed = tmp_path / "undisturbed"
    train_by_ranks(config, samples, undisturbed)
    assert curve(out) == curve(undisturbed)
    assert same_bits(final_tensors(out, STEPS), final_tensors(undisturbed, STEPS))
