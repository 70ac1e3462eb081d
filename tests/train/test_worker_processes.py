"""Training in processes of its own: killed, stopped, several of them, with DeepSpeed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from kexue_train.metrics.file import read_metrics
from kexue_train.train.job import TrainDir
from tests.train.tiny_training import (
    SECONDS,
    curve,
    final_tensors,
    make_config,
    same_bits,
    start_worker,
    train_by_ranks,
    train_here,
)

pytestmark = pytest.mark.slow
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _losses(out: Path) -> list[float]:
    return [line["loss"] for line in curve(out, "train")]


def test_kill_9_and_the_same_command_again_give_the_bits_of_an_uninterrupted_run(trained, samples, tmp_path):
    out, script = tmp_path / "out", Path(__file__).with_name("kill_after_step.py")
    killed = start_worker(make_config(), samples, out, script=f"{script} 5")
    output, _ = killed.communicate(timeout=SECONDS)
    assert killed.returncode == -signal.SIGKILL, output
    assert curve(out, "train")[-1]["step"] == 4
    again = start_worker(make_config(), samples, out)
    output, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, output
    assert [line["step"] for line in curve(out, "resume")] == [4]
    assert same_bits(final_tensors(out), final_tensors(trained))
    assert curve(out) == curve(trained)
    assert (out / "manifest.json").read_bytes() == (trained / "manifest.json").read_bytes()


def test_sigterm_saves_a_checkpoint_and_exits_with_3(samples, tmp_path):
    out = tmp_path / "out"
    config = make_config(steps=100_000, checkpoint_every=100_000, validate_every=100_000)
    worker = start_worker(config, samples, out)
    try:
        deadline = time.monotonic() + SECONDS
        while not any(line["kind"] == "train" for line in read_metrics(TrainDir(out).metrics)):
            assert worker.poll() is None, worker.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.terminate()
        output, _ = worker.communicate(timeout=SECONDS)
    finally:
        worker.kill()
    assert worker.returncode == 3, output
    last = curve(out, "train", "stop")[-1]
    assert last["kind"] == "stop"
    assert (TrainDir(out).checkpoints / "latest").read_text() == f"step-{last['step']:08d}\n"


def test_deepspeed_gives_the_bits_of_plain_torch(trained, samples, tmp_path):
    pytest.importorskip("deepspeed")
    worker = start_worker(make_config(engine="deepspeed"), samples, tmp_path / "out")
    output, _ = worker.communicate(timeout=SECONDS)
    assert worker.returncode == 0, output
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
    assert curve(tmp_path / "out") == curve(trained)


def test_two_workers_with_half_the_accumulation_give_the_same_curve(samples, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(make_config(STILL, micro_batch_size=2), samples, one)
    train_by_ranks(make_config(STILL, micro_batch_size=2, num_workers=2), samples, two)
    accumulation = [curve(out, "start")[0]["accumulation_steps"] for out in (one, two)]
    assert accumulation == [4, 2]
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-4)
    kept = [[line[name] for line in curve(out, "train") for name in ("tokens", "rows", "lr")] for out in (one, two)]
    assert kept[0] == kept[1]


def test_a_training_goes_on_with_another_number_of_workers_and_engine(samples, tmp_path):
    pytest.importorskip("deepspeed")
    out, whole, script = tmp_path / "out", tmp_path / "whole", Path(__file__).with_name("kill_after_step.py")
    train_here(make_config(STILL), samples, whole)
    start_worker(make_config(STILL), samples, out, script=f"{script} 5").communicate(timeout=SECONDS)
    train_by_ranks(make_config(STILL, num_workers=2, engine="deepspeed"), samples, out)
    assert [line["world_size"] for line in curve(out, "start", "resume")] == [1, 2]
    assert _losses(out) == pytest.approx(_losses(whole), rel=1e-4)
