"""What one training does, seen from its folder."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from kexue_train.batches.order import training_rows
from kexue_train.foundation.artifacts import read_manifest, verify_artifact
from kexue_train.foundation.errors import StaleArtifactError
from kexue_train.metrics.fields import LINES
from kexue_train.metrics.file import read_metrics
from kexue_train.train import loop
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import TrainDir
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_here


def test_a_training_writes_every_step_and_validates_when_asked(trained, samples):
    assert [line["step"] for line in curve(trained, "train")] == list(range(1, 9))
    assert [line["step"] for line in curve(trained, "validation")] == [4, 8]
    assert [line["kind"] for line in curve(trained, "start", "resume", "end")] == ["start", "end"]
    last = curve(trained, "train")[-1]
    rows = training_rows(read_manifest(samples))[1]
    assert (last["rows"], last["micro_step"], last["epoch"]) == (64, 16, pytest.approx(64 / rows))
    assert last["loss"] == pytest.approx(last["mlm_loss"] + last["nsp_loss"])


def test_the_learning_rate_follows_the_schedule(trained):
    rates = [line["lr"] for line in curve(trained, "train")]
    assert rates == pytest.approx([2e-3 * share for share in (0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5)])


def test_a_finished_training_has_a_manifest_of_its_last_checkpoint(trained):
    manifest = verify_artifact(trained)
    assert manifest.statistics["checkpoint"] == "checkpoints/step-00000008"
    assert manifest.statistics["tokens"] == curve(trained, "train")[-1]["tokens"]
    assert [path.name for path in list_checkpoints(TrainDir(trained).checkpoints)] == ["step-00000008", "step-00000006"]


def test_training_again_gives_the_same_bits(trained, samples, tmp_path):
    train_here(make_config(), samples, tmp_path / "again")
    assert same_bits(final_tensors(tmp_path / "again"), final_tensors(trained))
    assert curve(tmp_path / "again") == curve(trained)


@pytest.mark.parametrize("recompute", ["full", "selective", {"every": 2}], ids=["full", "selective", "every"])
def test_recomputation_changes_no_bit(trained, samples, tmp_path, recompute):
    train_here(make_config(recompute=recompute), samples, tmp_path / "out")
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
def test_compiled_layers_learn_the_same(samples, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name, compiled in (("plain", False), ("compiled", True)):
        train_here(make_config(still, compile=compiled), samples, tmp_path / name)
    plain, compiled = ([line["loss"] for line in curve(tmp_path / name, "train")] for name in ("plain", "compiled"))
    assert plain == pytest.approx(compiled, rel=1e-4)


@pytest.mark.parametrize("unit", ["initial", "prior", "online"])
def test_losses_are_told_in_nats_whatever_unit_they_are_weighed_in(trained, samples, tmp_path, unit):
    train_here(make_config(loss_unit=unit), samples, tmp_path / "out")
    first, plain = curve(tmp_path / "out", "train")[0], curve(trained, "train")[0]
    assert first["mlm_loss"] == plain["mlm_loss"]  # before any update
    assert not same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))


def test_metrics_and_checkpoints_written_at_other_steps_change_no_bit(trained, samples, tmp_path):
    train_here(make_config(log_every=3, validate_every=5, checkpoint_every=7), samples, tmp_path / "out")
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
    assert curve(tmp_path / "out", "train")[-1]["tokens"] == curve(trained, "train")[-1]["tokens"]


@pytest.mark.slow
def test_loader_processes_change_no_bit(trained, samples, tmp_path):
    train_here(make_config(num_loader_workers=2), samples, tmp_path / "out")
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
    assert curve(tmp_path / "out") == curve(trained)


def test_a_mixture_of_folders_is_trained_on_and_its_weights_are_part_of_the_recipe(samples, tmp_path):
    shutil.copytree(samples, tmp_path / "copy")
    file, out = tmp_path / "mixture.yaml", tmp_path / "out"
    file.write_text(f"{samples}: 0.5\ncopy: 0.5\n")
    assert train_here(make_config(), file, out) is Ending.FINISHED
    folders = [read_manifest(folder) for folder in (samples, tmp_path / "copy")]
    assert curve(out, "start")[0]["rows_per_epoch"] == sum(training_rows(manifest)[1] for manifest in folders)
    first, last = (line["mlm_loss"] for line in curve(out, "validation"))
    assert last < first
    file.write_text(f"{samples}: 0.6\ncopy: 0.4\n")
    with pytest.raises(StaleArtifactError, match="'samples' was rebuilt"):
        train_here(make_config(), file, out)


def test_micro_batches_of_another_size_give_the_same_curve(samples, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for size in (1, 8):
        train_here(make_config(still, micro_batch_size=size), samples, tmp_path / str(size))
    one, eight = ([line["loss"] for line in curve(tmp_path / name, "train")] for name in "18")
    assert one == pytest.approx(eight, rel=1e-4)


def test_a_stop_request_saves_a_checkpoint_from_which_training_goes_on_bit_for_bit(
    trained, samples, tmp_path, monkeypatch
):
    one_step = loop.run_step

    def ask_at_step_3(training, *more):
        step = one_step(training, *more)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_step", ask_at_step_3)
        assert train_here(make_config(), samples, tmp_path / "out") is Ending.STOPPED
    # Heard one step later.
    assert list_checkpoints(TrainDir(tmp_path / "out").checkpoints)[0].name == "step-00000004"
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert train_here(make_config(), samples, tmp_path / "out") is Ending.FINISHED
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
    assert curve(tmp_path / "out") == curve(trained)
    kinds = [line["kind"] for line in curve(tmp_path / "out", "start", "stop", "resume", "end")]
    assert kinds == ["start", "stop", "resume", "end"]


def test_a_resume_between_lines_of_metrics_loses_no_token(samples, tmp_path, monkeypatch):
    # The checkpoint of step 2 lies inside the window of the line of step 3.
    config, save, kept = make_config(log_every=3, checkpoint_every=2), loop.save_step, []
    train_here(config, samples, tmp_path / "whole")

    def die_after_step_2(training, *more):
        save(training, *more)
        if training.state.step == 2 and not kept:
            kept.append(training)
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_step", die_after_step_2)
    with pytest.raises(KeyboardInterrupt):
        train_here(config, samples, tmp_path / "torn")
    train_here(config, samples, tmp_path / "torn")
    assert curve(tmp_path / "torn") == curve(tmp_path / "whole")


def test_a_damaged_last_checkpoint_is_passed_over_when_resuming(trained, samples, tmp_path):
    out = tmp_path / "out"
    train_here(make_config(), samples, out)
    (out / "manifest.json").unlink()
    (TrainDir(out).checkpoints / "step-00000008" / "model.safetensors").write_bytes(b"torn")
    train_here(make_config(), samples, out)
    assert [line["step"] for line in curve(out, "resume")] == [6]
    (warning,) = curve(out, "warning")
    assert (warning["step"], warning["symptom"]) == (6, "checkpoint")
    assert "step-00000008" in warning["message"]
    assert same_bits(final_tensors(out), final_tensors(trained))
    assert curve(out) == curve(trained)


def test_every_value_that_training_writes_is_declared(trained):
    for record in read_metrics(TrainDir(trained).metrics):
        assert set(record) - {"kind", "step", "time"} <= {field.key for field in LINES[record["kind"]]}
