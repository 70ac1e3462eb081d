"""A training with phases of length and batch size: what it reads, and that no interruption shows in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kexue_train.batches import rows_of_step
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.order import training_rows
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError, StaleArtifactError
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig
from kexue_train.train import loop
from kexue_train.train.job import JobConfig, TrainDir, prepare, read_samples
from tests.batches.epochs import epochs_of_step
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

# Of each step: length of the rows, rows of the batch, rows read before of the same length. 16 comes back in the third
# phase, and the batches of 24 and 40 rows end epochs inside.
STEPS = [(16, 24, 0), (16, 24, 24), (16, 24, 48), (32, 8, 0), (32, 8, 8), (16, 40, 72), (16, 40, 112), (32, 16, 16)]
PHASES = [
    {"steps": 3, "seq_len": 16, "global_batch_size": 24},
    {"steps": 2, "seq_len": 32},
    {"steps": 2, "seq_len": 16, "global_batch_size": 40, "micro_batch_size": 8},
    {"steps": 1, "seq_len": 32, "global_batch_size": 16, "micro_batch_size": 2},
]
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def phased(model: dict[str, float] | None = None, **train: object) -> JobConfig:
    return make_config(model, phases=PHASES, **{"validate_every": 3, "checkpoint_every": 1, **train})


@pytest.fixture(scope="module")
def lengths(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the samples of 16 and of 32 tokens."""
    folder, made = tmp_path_factory.mktemp("lengths"), samples.parent
    config = SampleConfig(seq_len=16, heldout_fraction=0.1)
    build_samples(config, made / "shards", made / "tokenizer", folder / "16", seed=3, executor=LocalExecutor(1))
    shutil.copytree(samples, folder / "32")
    return folder


@pytest.fixture(scope="module")
def undisturbed(lengths: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phases") / "pretrain"
    train_here(phased(), lengths, out)
    return out


@pytest.fixture
def consumed(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[np.ndarray]]:
    """The ids that training took, by step: filled in while a test trains."""
    taken: dict[int, list[np.ndarray]] = {}
    one_step = loop.run_step

    def watch(training, *others):
        step = training.state.step + 1
        micro_step = training.setup.engine.micro_step

        def look(batch, *more):
            taken.setdefault(step, []).append(batch["input_ids"].numpy().copy())
            return micro_step(batch, *more)

        taken.pop(step, None)
        with monkeypatch.context() as patch:
            patch.setattr(training.setup.engine, "micro_step", look)
            return one_step(training, *others)

    monkeypatch.setattr(loop, "run_step", watch)
    return taken


def expected_ids(lengths: Path, step: int) -> np.ndarray:
    """The masked ids of the global batch of ``step`` (from 1), made from its rows at once."""
    seq_len, batch, before = STEPS[step - 1]
    manifest = read_manifest(lengths / str(seq_len))
    rows = rows_of_step(manifest, 7, batch, 0, rows_before=before)
    epochs = epochs_of_step(manifest, batch, 0, rows_before=before)
    return make_batch(SampleDataset(lengths / str(seq_len)), rows, epochs, seed=7)["input_ids"]


def test_every_step_reads_the_rows_of_its_phase(lengths, tmp_path, consumed):
    train_here(phased(), lengths, tmp_path / "out")
    assert list(consumed) == list(range(1, 9))
    for step, micro_batches in consumed.items():
        np.testing.assert_array_equal(np.concatenate(micro_batches), expected_ids(lengths, step))
    assert {len(batches[0]) for batches in consumed.values()} == {4, 8, 2}


@pytest.mark.parametrize("last", range(1, 7))
def test_a_stop_after_any_step_in_any_phase_leaves_no_trace(
    undisturbed, lengths, tmp_path, consumed, monkeypatch, last
):
    out, one_step = tmp_path / "out", loop.run_step

    def ask_to_stop(training, *others):
        step = one_step(training, *others)
        if step == last:
            patch.setattr(training.guards.stop, "poll", lambda: (True, False))
        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_step", ask_to_stop)
        train_here(phased(), lengths, out)
    train_here(phased(), lengths, out)
    (resumed,) = (line["step"] for line in curve(out, "resume"))
    assert last <= resumed < 8
    for step, micro_batches in consumed.items():
        np.testing.assert_array_equal(np.concatenate(micro_batches), expected_ids(lengths, step))
    assert same_bits(final_tensors(out), final_tensors(undisturbed))
    assert curve(out) == curve(undisturbed)


def test_metrics_count_through_the_phases(undisturbed, lengths):
    lines = curve(undisturbed, "train")
    assert [line["rows"] for line in lines] == np.cumsum([batch for _, batch, _ in STEPS]).tolist()
    totals = {seq_len: training_rows(read_manifest(lengths / str(seq_len)))[1] for seq_len in (16, 32)}
    epochs = [(before + batch) / totals[seq_len] for seq_len, batch, before in STEPS]
    assert [line["epoch"] for line in lines] == pytest.approx(epochs)
    assert [line["micro_step"] for line in lines] == np.cumsum([6, 6, 6, 2, 2, 5, 5, 8]).tolist()
    shares = (0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5)
    assert [line["lr"] for line in lines] == pytest.approx([2e-3 * share for share in shares])
    borders = [(line["step"], line["phase"], line["seq_len"]) for line in curve(undisturbed, "start", "phase")]
    assert borders == [(0, 1, 16), (3, 2, 32), (5, 3, 16), (7, 4, 32)]


def test_a_warm_up_of_the_batch_reads_the_rows_that_batches_of_one_size_read(samples, tmp_path, consumed):
    phases = [{"steps": 2, "global_batch_size": 4}, {"steps": 3, "global_batch_size": 12}, {"steps": 1}]
    for name, train in (("one", {"steps": 6}), ("warm", {"steps": 6, "phases": phases})):
        train_here(make_config(**train), samples, tmp_path / name)
        whole = np.concatenate([ids for step in sorted(consumed) for ids in consumed[step]])
        if name == "one":
            first = whole
    assert (len(first), len(whole)) == (48, 52)
    np.testing.assert_array_equal(first, whole[:48])


def test_one_phase_is_what_a_training_without_phases_is(trained, samples, tmp_path):
    train_here(make_config(phases=[{"steps": 8}]), samples, tmp_path / "out")
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
    assert curve(tmp_path / "out") == curve(trained)


@pytest.mark.slow
@pytest.mark.parametrize("last", [2, 4, 6])
def test_after_a_kill_phases_go_on_with_other_ranks_and_micro_batches(lengths, tmp_path, last):
    whole, out, script = tmp_path / "whole", tmp_path / "out", Path(__file__).with_name("kill_after_step.py")
    train_here(phased(STILL), lengths, whole)
    start_worker(phased(STILL), lengths, out, script=f"{script} {last}").communicate(timeout=SECONDS)
    phases = [phase | {"micro_batch_size": 2} for phase in PHASES]
    config = make_config(STILL, phases=phases, num_workers=2, checkpoint_every=1, validate_every=3)
    train_by_ranks(config, lengths, out)
    assert [line["world_size"] for line in curve(out, "start", "resume")] == [1, 2]
    for name in ("rows", "tokens", "epoch"):
        assert [line[name] for line in curve(out, "train")] == [line[name] for line in curve(whole, "train")]
    losses = [[line["loss"] for line in curve(folder, "train")] for folder in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_phases_under_deepspeed_have_the_bits_of_plain_torch(undisturbed, lengths, tmp_path):
    pytest.importorskip("deepspeed")
    worker = start_worker(phased(engine="deepspeed"), lengths, tmp_path / "out")
    output, _ = worker.communicate(timeout=SECONDS)
    assert worker.returncode == 0, output
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(undisturbed))


def test_a_length_that_no_samples_have_is_refused(lengths):
    config = make_config({"max_position_embeddings": 64}, phases=[{"steps": 8, "seq_len": 64}])
    with pytest.raises(ArtifactError, match=r"samples of 16 and 32 tokens, but a phase .* needs seq_len=64; make them"):
        read_samples(lengths, config)


def test_samples_of_several_lengths_need_phases_that_name_them(lengths):
    with pytest.raises(ConfigError, match=r"samples of 16 and 32 tokens, but train\.phases names no seq_len"):
        read_samples(lengths, make_config())


def test_a_phase_whose_batch_is_larger_than_its_samples_is_refused(lengths):
    config = make_config(phases=[{"steps": 4, "seq_len": 16}, {"steps": 4, "seq_len": 32, "global_batch_size": 10_000}])
    with pytest.raises(ArtifactError, match=r"rows of 32 tokens .* fewer than one step takes .*=10000"):
        read_samples(lengths, config)


def test_samples_changed_since_the_checkpoint_are_refused(undisturbed, lengths, samples, tmp_path):
    other, made, config = tmp_path / "lengths", samples.parent, SampleConfig(seq_len=16, heldout_fraction=0.3)
    shutil.copytree(lengths, other)
    prepare(phased(), other, TrainDir(undisturbed))  # a copy is the same
    shutil.rmtree(other / "16")
    build_samples(config, made / "shards", made / "tokenizer", other / "16", seed=3, executor=LocalExecutor(1))
    with pytest.raises(StaleArtifactError, match=r"input 'samples' was rebuilt.*train\.init_from=CHECKPOINT"):
        prepare(phased(), other, TrainDir(undisturbed))
