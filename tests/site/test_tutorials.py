"""Every command of the tutorials is run on a small corpus, in their order; those that cannot be run here say why."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kexue_train.cli.app import app
from kexue_train.pipeline.run_config import RunConfig
from tests.site.tutorial import (
    NOT_RUN,
    TUTORIALS,
    Block,
    commands_of,
    read_blocks,
    reason_not_to_run,
    words_to_run,
    write_corpus,
    write_published_weights,
)
from tests.train.warm_worker import WarmProcess


@pytest.fixture(scope="module")
def followed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder in which the tutorial of a name was followed; each is followed once."""

    @functools.cache
    def follow(name: str) -> Path:
        folder = tmp_path_factory.mktemp("followed")
        write_corpus(folder, documents=400 if name == "own_chinese_encoder" else 60)  # kexue init wants 1 MB
        write_published_weights(folder)
        for block in read_blocks(repository / "docs" / "tutorials" / f"{name}.md"):
            if block.language == "yaml":
                path = folder / block.text.partition("\n")[0].removeprefix("# ")
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                run(folder, "-c", block.text)
            elif block.language == "sh":
                for command in commands_of(block):
                    if reason_not_to_run(command) is None:
                        run(folder, "-m", "kexue_train", *words_to_run(command))
        return folder

    return follow


@pytest.fixture(params=TUTORIALS)
def blocks(request: pytest.FixtureRequest, repository: Path) -> list[Block]:
    return read_blocks(repository / "docs" / "tutorials" / f"{request.param}.md")


def run(folder: Path, *words: str) -> None:
    """Run Python with ``words``, in the folder."""
    process = WarmProcess(words, os.environ | {"COLUMNS": "100"}, folder=folder, new_session=True)
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 0, f"{shlex.join(words)}\n{said}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("own_chinese_encoder", ["runs/my-encoder/report/index.html", "mlm.json", "published/README.md"]),
        ("domain_corpus_on_a_cluster", ["runs/rehearsal/report/index.html"]),
        ("continue_from_published_weights", ["before.json", "after.json"]),
    ],
)
def test_the_blocks_run_in_their_order_and_leave_what_is_promised(followed, name: str, left: list[str]) -> None:
    assert [path for path in left if not (followed(name) / path).is_file()] == []


@pytest.mark.slow
def test_the_notebooks_run_on_what_a_pipeline_leaves(followed, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    folder = followed("own_chinese_encoder")
    made = folder / "runs" / "my-encoder"
    (made / "corpus").mkdir(exist_ok=True)  # where the demo, which makes its corpus itself, keeps it
    shutil.copy(folder / "corpus" / "texts.jsonl", made / "corpus" / "documents.jsonl")
    command = [sys.executable, "-m", "tests.site.notebooks", str(made), str(tmp_path)]  # a kernel warns when it ends
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in (repository / "docs" / "notebooks").glob("*.ipynb"):
        kept, here = (json.loads((at / path.name).read_text("utf-8"))["cells"] for at in (path.parent, tmp_path))
        assert [cell["source"] for cell in here] == [cell["source"] for cell in kept]
        assert kinds_of_output(here).count("execute_result") == kinds_of_output(kept).count("execute_result") > 0
        assert "error" not in kinds_of_output(kept)


def kinds_of_output(cells: list[dict]) -> list[str]:
    return [output["output_type"] for cell in cells for output in cell.get("outputs", [])]


def test_commands_that_are_not_run_are_understood(blocks, tmp_path: Path) -> None:
    import typer

    texts = [block.text for block in blocks if block.language == "yaml"]
    for block in blocks:
        for command in commands_of(block) if block.language == "sh" else []:
            if not command.startswith("kexue ") or reason_not_to_run(command) is None:
                continue
            name, *words = shlex.split(command)[1:]
            context = typer.main.get_command(app).commands[name].make_context(name, words)
            for text in texts if "config" in context.params else []:
                RunConfig.parse(yaml.safe_load(text), where=name)


def test_every_reason_not_to_run_is_needed(repository: Path) -> None:
    documents = [repository / "docs" / "tutorials" / f"{name}.md" for name in TUTORIALS]
    commands = [
        c for path in documents for block in read_blocks(path) if block.language == "sh" for c in commands_of(block)
    ]
    assert len(commands) > 20
    assert [begin for begin in NOT_RUN if not any(command.startswith(begin) for command in commands)] == []
    assert [c for c in commands if not c.startswith("kexue ") and reason_not_to_run(c) is None] == []
