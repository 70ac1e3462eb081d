"""A run is complete when each stage's own recipe equals its manifest and no file is missing: nothing else is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kexue_train.foundation.progress import SILENT
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run import Run, is_complete, run_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import STAGES, TRAIN
from kexue_train.shuffle.shuffle_corpus import SHUFFLE
from tests.pipeline.test_refresh import CONFIG, make_all, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def config_of(folder: Path, *sections: tuple[str, dict[str, Any]]) -> RunConfig:
    """The configuration of the run in ``folder``, with some values of sections changed."""
    values = CONFIG | {"corpus": {"inputs": [str(folder / "a.jsonl")]}}
    values = values | {"samples": values["samples"] | {"dictionary": str(folder / "words.txt")}}
    for name, changes in sections:
        values = values | {name: values.get(name, {}) | changes}
    return RunConfig.parse(values, where="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents, a dictionary and the finished run ``run``; each test leaves it as it was."""
    folder = tmp_path_factory.mktemp("completion")
    write(folder / "a.jsonl", range(150))
    (folder / "words.txt").write_text("一个词\n", encoding="utf-8")
    make_all(config_of(folder), folder / "run")
    return folder


def not_complete(config: RunConfig, root: Path) -> list[str]:
    run = Run(config, RunDir(root))
    return [stage.name for stage in STAGES if not run.is_complete(stage)]


@contextmanager
def changed(path: Path, contents: bytes | None) -> Iterator[None]:
    """The file with other contents, or gone; afterwards as before."""
    before, times = path.read_bytes(), path.stat()
    path.unlink() if contents is None else path.write_bytes(contents)
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_finished_run_is_complete_and_a_mark_that_older_versions_left_counts_for_nothing(folder: Path) -> None:
    run = Run(config_of(folder), RunDir(folder / "run"))
    (folder / "run" / ".complete.json").write_text('{"config": "of another time"}')
    assert is_complete(run)
    assert not is_complete(Run(run.config, RunDir(folder / "nothing")))


def test_a_complete_run_is_found_without_torch_ray_or_prefect(folder: Path) -> None:
    (folder / "run.yaml").write_text(config_of(folder).to_yaml())
    code = (
        "import sys; from pathlib import Path; from kexue_train.foundation.run_dir import RunDir\n"
        "from kexue_train.pipeline.run import Run, is_complete\n"
        "from kexue_train.pipeline.run_config import RunConfig\n"
        "print(is_complete(Run(RunConfig.load(Path('run.yaml')), RunDir(Path('run')))),"
        " *sorted({'torch', 'ray', 'prefect', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


@pytest.mark.parametrize(
    ("file", "contents", "stages"),
    [
        ("a.jsonl", b'{"text": "another text"}\n', ["shuffle"]),
        ("words.txt", "另一个词\n".encode(), ["samples"]),
        ("run/shards/data-00001-of-00002.arrow", None, ["shuffle"]),
        ("run/tokenizer/tokenizer.json", None, ["tokenizer"]),
        ("run/samples/data-00001-of-00002.arrow", None, ["samples", "train"]),
        ("run/hf/model.safetensors", None, ["export"]),
        ("run/evaluate/mlm.json", b"{}", ["evaluate"]),
        ("run/report/index.html", None, ["report"]),
    ],
)
def test_a_file_that_has_changed_or_is_gone_undoes_the_stage_that_reads_or_made_it(
    file: str, contents: bytes | None, stages: list[str], folder: Path
) -> None:
    with changed(folder / file, contents):
        assert not_complete(config_of(folder), folder / "run") == stages
    assert not_complete(config_of(folder), folder / "run") == []


def test_a_finished_run_needs_no_corpus(folder: Path) -> None:
    (folder / "a.jsonl").rename(folder / "moved.jsonl")
    try:
        run = Run(config_of(folder), RunDir(folder / "run"))
        assert is_complete(run)
        assert not run_stage(SHUFFLE, run, SILENT).made
        assert not_complete(config_of(folder, ("shuffle", {"shards": 3})), folder / "run") == ["shuffle"]
    finally:
        (folder / "moved.jsonl").rename(folder / "a.jsonl")


@pytest.mark.parametrize(
    ("section", "changes", "stages"),
    [
        ("shuffle", {"shards": 3}, ["shuffle"]),
        ("shuffle", {"memory": "300MB"}, []),
        ("tokenizer", {"vocab_size": 90}, ["tokenizer"]),
        ("samples", {"heldout_fraction": 0.06}, ["samples"]),
        ("optimizer", {"lr": 5e-4}, ["train"]),
        ("train", {"steps": 5}, ["train"]),
        ("evaluate", {"masked_sentences": ["One [MASK]."]}, ["evaluate"]),
        ("execution", {"num_workers": 2}, []),
    ],
)
def test_a_setting_that_determines_a_result_undoes_the_stage_that_reads_it(
    section: str, changes: dict[str, Any], stages: list[str], folder: Path
) -> None:
    assert not_complete(config_of(folder, (section, changes)), folder / "run") == stages


def test_a_last_checkpoint_that_is_gone_undoes_training_and_what_is_made_from_it(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "pretrain" / "checkpoints")
    assert not_complete(config_of(folder), tmp_path / "run") == ["train", "export"]


def test_other_weights_to_start_with_undo_training(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copytree(folder / "run" / "hf", tmp_path / "weights")
    run = Run(config_of(folder, ("train", {"init_from": str(tmp_path / "weights")})), RunDir(tmp_path / "run"))
    assert not run.is_complete(TRAIN)
    run_stage(TRAIN, run, SILENT)
    assert run.is_complete(TRAIN)
    weights = bytearray((tmp_path / "weights" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "weights" / "model.safetensors").write_bytes(weights)
    assert not run.is_complete(TRAIN)
