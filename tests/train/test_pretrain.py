"""The stage around the workers: what is done already, what is other work, what failed."""

from __future__ import annotations

import shutil
import socket

import pytest
import torch

from kexue_train.foundation.errors import ArtifactError, ConfigError, ResourceError, StaleArtifactError, TrainingError
from kexue_train.metrics.file import read_metrics
from kexue_train.train.job import TrainDir
from kexue_train.train.launch import preserve_process_state
from kexue_train.train.pretrain import pretrain
from kexue_train.train.torchrun_launch import train_with_torchrun
from kexue_train.train.worker import main
from tests.train.test_checkpoint import Notes
from tests.train.tiny_training import curve, make_config, train_here


def _never() -> None:
    raise AssertionError("nothing is left to train")


def test_a_finished_training_is_found_at_once(trained, samples):
    before = sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*"))
    manifest = pretrain(make_config(num_workers=2), samples, trained, launch=_never)
    assert manifest.statistics["steps"] == 8
    assert sorted((path, path.stat().st_mtime_ns) for path in trained.rglob("*")) == before


def test_other_settings_are_refused_without_replace(trained, samples):
    with pytest.raises(StaleArtifactError, match=r"optimizer\.lr changed from 0\.002 to 0\.001"):
        pretrain(make_config(lr=1e-3), samples, trained, launch=_never)


def test_other_settings_move_the_old_training_aside_with_replace(trained, samples, tmp_path):
    out, progress = tmp_path / "pretrain", Notes()
    shutil.copytree(trained, out)
    for number, lr in ((1, 1e-3), (2, 3e-3)):
        config = make_config(lr=lr)
        run = lambda config=config: train_here(config, samples, out)  # noqa: E731
        pretrain(config, samples, out, launch=run, replace=True, progress=progress)
        moved = [note for note in progress.notes if f"pretrain.replaced-{number}" in note]
        assert len(moved) == 1
        assert "optimizer.lr changed" in moved[0]
    old = read_metrics(TrainDir(tmp_path / "pretrain.replaced-1").metrics)
    assert old == read_metrics(TrainDir(trained).metrics)
    assert max(line.get("lr", 0) for line in read_metrics(TrainDir(out).metrics)) == pytest.approx(3e-3)


@pytest.mark.parametrize("name", ["config.yaml", "thesis.tex", "metrics.jsonl", "logs/app.log", "checkpoints/model.pt"])
def test_a_folder_with_other_contents_is_refused_and_stays(samples, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years of work")
    with pytest.raises(ArtifactError, match=rf"no training of kexue_train .* such as '{name.partition('/')[0]}'"):
        pretrain(make_config(), samples, tmp_path, launch=_never)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [name]


def test_the_users_configuration_a_wish_to_stop_and_empty_folders_may_lie_in_the_folder(samples, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine")
    (tmp_path / "stop").touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to("disk")
    with pytest.raises(TrainingError, match="stopped before step 8"):
        pretrain(make_config(), samples, tmp_path, launch=lambda: None, given=tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "name: mine"
    assert (tmp_path / "recipe.json").exists()


def test_what_the_workers_refuse_leaves_no_trace_of_a_new_training_and_keeps_an_old_one(samples, trained, tmp_path):
    def refuse() -> None:
        (tmp_path / "new" / "logs" / "rank-0.log").touch()
        raise ConfigError("no such device")

    with pytest.raises(ConfigError):
        pretrain(make_config(), samples, tmp_path / "new", launch=refuse)
    assert not (tmp_path / "new").exists()
    shutil.copytree(trained, tmp_path / "new")
    (tmp_path / "new" / "manifest.json").unlink()
    with pytest.raises(ConfigError):
        pretrain(make_config(), samples, tmp_path / "new", launch=refuse)
    assert (tmp_path / "new" / "checkpoints" / "step-00000008").is_dir()


def test_a_damaged_recipe_is_named(samples, tmp_path):
    (tmp_path / "recipe.json").write_bytes(b"\0" * 300)
    with pytest.raises(ArtifactError, match=r"recipe\.json: is damaged"):
        pretrain(make_config(), samples, tmp_path, launch=_never)


def test_a_damaged_manifest_costs_no_checkpoint(trained, samples, tmp_path):
    out = tmp_path / "pretrain"
    shutil.copytree(trained, out)
    (out / "manifest.json").write_bytes(b"\0" * 300)
    run = lambda: train_here(make_config(), samples, out)  # noqa: E731
    assert pretrain(make_config(), samples, out, launch=run).statistics["steps"] == 8
    assert curve(out) == curve(trained)


def test_weights_can_be_read_by_whomever_the_umask_allows(trained):
    modes = {path.name: path.stat().st_mode & 0o777 for path in trained.rglob("*") if path.is_file()}
    assert modes["model.safetensors"] == modes["optimizer.safetensors"] == modes["config.json"]
    assert 0o600 not in modes.values()


def test_a_lost_last_checkpoint_is_trained_again(trained, samples, tmp_path):
    out, progress = tmp_path / "pretrain", Notes()
    shutil.copytree(trained, out)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    run = lambda: train_here(make_config(), samples, out)  # noqa: E731
    assert pretrain(make_config(), samples, out, launch=run, progress=progress) == pretrain(
        make_config(), samples, trained, launch=_never
    )
    assert [note.partition("validation")[0] for note in progress.notes] == [
        "resumed from checkpoint step-00000006", "step 8: "
    ]  # fmt: skip


def test_workers_that_end_early_are_an_error_that_says_how_to_go_on(samples, tmp_path):
    with pytest.raises(TrainingError, match=r"stopped before step 8; .* Run the same command again"):
        pretrain(make_config(), samples, tmp_path / "out", launch=lambda: None)


def test_a_taken_port_is_named(samples, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port {port} on 127\.0\.0\.1 cannot be used"):
            train_with_torchrun(make_config(), samples, tmp_path, port=port)


def test_a_users_mistake_ends_the_worker_with_2_and_one_paragraph(samples, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(make_config({"max_position_embeddings": 16}).model_dump_json())
    arguments = ["--config", tmp_path / "c.yaml", "--samples", samples, "--out", tmp_path / "out"]
    with preserve_process_state():
        try:
            assert main([str(argument) for argument in arguments]) == 2
        finally:
            torch.distributed.destroy_process_group()  # a worker's ends with its process
    assert "model.max_position_embeddings=16" in capsys.readouterr().err
