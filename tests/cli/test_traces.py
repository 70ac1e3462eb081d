"""A command that is refused leaves everything as it was: no new file or folder, no other bytes, mode or time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from kexue_train.cli import app as cli
from kexue_train.cli.errors import run_command
from tests.cli.test_cli import CONFIG, write_documents

TRAIN = "train -c tiny.yaml --samples samples --launcher local -o"


def kexue(words: str) -> int:
    return run_command(cli.app, words.split(), "kexue")


def snapshot(folder: Path) -> dict[str, Any]:
    """All that can be seen of everything below ``folder``."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        about = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (about, status.st_mode, status.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything, made by the commands."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_documents(folder)
        values = yaml.safe_load(CONFIG)
        values["train"] |= {
            "steps": 2,
            "device": "cpu",
            "workers": {"launcher": "local"},
            "compute": {"engine": "torch"},
        }
        (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
        for command in (
            "shuffle documents.jsonl -o shards --workers 1",
            "tokenizer shards -o tokenizer --vocab-size 96",
            "samples shards --tokenizer tokenizer -o samples --seq-len 32 --workers 1",
            f"{TRAIN} trained",
            "export trained -o hf",
        ):
            assert kexue(command) == 0, command
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, with folders and files that are no command's."""
    folder = tmp_path / "here"
    shutil.copytree(finished, folder, symlinks=True)
    for name in ("thesis.tex", "config.yaml", "metrics.jsonl", "logs/app.log", "checkpoints/model.pt"):
        path = folder / "foreign" / name.replace("/", "-").partition(".")[0] / name
        path.parent.mkdir(parents=True)
        path.write_text("mine: years of work\n")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    monkeypatch.chdir(folder)
    return folder


REFUSED = [
    f"{TRAIN} trained optimizer.lr=0.5",
    f"{TRAIN} foreign/thesis",
    f"{TRAIN} foreign/config",
    f"{TRAIN} foreign/metrics",
    f"{TRAIN} foreign/logs-app",
    f"{TRAIN} foreign/checkpoints-model",
    f"{TRAIN} dangling",
    f"{TRAIN} tiny.yaml",
    f"{TRAIN} tiny.yaml/below",
    f"{TRAIN} new/folder train.device=cuda",
    f"{TRAIN} new/folder train.workers.backend=nccl",
    f"{TRAIN} new/folder train.global_batch_size=4000 train.micro_batch_size=4000",
    f"{TRAIN} new/folder train.init_from=nothing",
    f"{TRAIN} new/folder train.logging.loggers=[wandb]",
    "train -c tiny.yaml --samples nothing -o new/folder",
    "train -c tiny.yaml --samples shards -o new/folder",
    "train -c nothing.yaml --samples samples -o new/folder",
    "shuffle nothing.jsonl -o new/shards",
    "shuffle bad.jsonl -o new/shards --workers 1",
    "shuffle documents.jsonl -o foreign/thesis --workers 1",
    "shuffle documents.jsonl -o dangling --workers 1",
    "shuffle documents.jsonl -o shards --seed 5 --workers 1",
    "tokenizer nothing -o new/tokenizer",
    "tokenizer samples -o new/tokenizer",
    "tokenizer shards -o new/tokenizer --vocab-size 50000",
    "tokenizer shards -o foreign/thesis --vocab-size 96",
    "tokenizer shards -o dangling --vocab-size 96",
    "samples shards --tokenizer nothing -o new/samples",
    "samples shards --tokenizer samples -o new/samples",
    "samples shards --tokenizer tokenizer -o foreign/thesis --seq-len 32 --workers 1",
    "samples shards --tokenizer tokenizer -o dangling --seq-len 32 --workers 1",
    "samples shards --tokenizer tokenizer -o samples --seq-len 64 --workers 1",
    "export nothing -o new/hf",
    "export samples -o new/hf",
    "export trained -o foreign/thesis",
    "export trained -o dangling",
    "import-weights nothing -o new/hf",
    "import-weights hf -o foreign/thesis",
    "pipeline -c tiny.yaml --run-dir new/run corpus.inputs=[nothing.jsonl]",
    "pipeline -c tiny.yaml --run-dir foreign/thesis",
    "pipeline -c tiny.yaml --run-dir foreign/config",
    "pipeline -c tiny.yaml --run-dir dangling",
    "pipeline -c nothing.yaml --run-dir new/run",
    "evaluate mlm nothing samples -o new/mlm.json",
    "evaluate mlm hf nothing -o new/mlm.json",
    "evaluate mlm hf samples -o foreign/thesis",
    "evaluate sts hf nothing -o new/sts.json --set x",
    "evaluate nsp-zero-shot hf nothing -o new/zero.json --task nothing.yaml",
    "finetune task hf nothing -o new/task.json --task nothing.yaml",
    "finetune whitening hf nothing.txt -o new/whitened",
    "finetune whitening hf documents.jsonl -o foreign/thesis",
    "finetune sentence-vectors hf nothing --set x -o new/vectors.json",
    "finetune sentence-vectors hf . --set thesis --save foreign -o new/vectors.json",
    "finetune task hf . --task trec --save tiny.yaml -o new/task.json",
    "report foreign/thesis",
]


def test_every_file_that_a_command_makes_has_the_mode_of_any_new_file(finished: Path) -> None:
    usual = (finished / "tiny.yaml").stat().st_mode
    other = [path for path in finished.rglob("*") if path.is_file() and path.stat().st_mode != usual]
    assert other == []


@pytest.mark.parametrize("command", REFUSED)
def test_a_refused_command_leaves_no_trace(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(here)
    code = kexue(command)
    said = capsys.readouterr().err
    assert code == 2, said
    assert "internal error" not in said
    after = snapshot(here)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()
