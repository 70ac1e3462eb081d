"""Every command that the documents name exists and takes the options it is given; every file they name is there."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["cluster/README.md", "docs/cluster.md", "docs/operating.md"]
HEADERS = [
    *(ROOT / "cluster").rglob("*.yaml"),
    *(ROOT / "cluster").rglob("*.sbatch"),
    ROOT / "cluster/image/Dockerfile",
]
# Of other programs only the names are known here, and what must follow them.
OTHERS = {
    "docker": {"build", "compose"}, "kubectl": {"apply", "create", "edit", "get", "delete", "port-forward"},
    "sbatch": None, "scancel": None, "squeue": None, "ssh": None, "tail": None, "touch": None, "cat": None,
    "export": None, "tensorboard": None, "torchrun": None, "py-spy": {"dump"}, "python": {"-m"},
}  # fmt: skip


def shell_lines(text: str) -> Iterator[str]:
    """Command lines of fenced or indented blocks and of code in sentences and tables."""
    text = text.replace("\\\n", " ")
    yield from re.findall(r"^    (\S.*)$", text, re.M)
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"<br>", "\n", text))


def commands(*names: str) -> list[str]:
    """The lines that begin with one of ``names``, in all documents, without comments."""
    found = []
    for page in PAGES:
        for line in shell_lines((ROOT / page).read_text(encoding="utf-8")):
            command = html.unescape(line).split("   #")[0].split(" # ")[0].strip()
            if command.split(" ")[0] in names and " " in command:
                found.append(command)
    for path in HEADERS:
        for line in re.findall(r"^#   (.*)$", path.read_text(encoding="utf-8"), re.M):
            command = line.split("  #")[0].strip()
            if command.split(" ")[0] in names:
                found.append(command)
    return sorted(set(found))


def parse(command: str, program: Any) -> None:
    """Take the words of ``command`` apart as the click ``program`` (of typer's own click, too) would."""
    name, *words = [re.sub(r"^(SAMPLES|OUT|DIR|RUN\S*)$", "folder", word) for word in shlex.split(command)]
    context = program.context_class(program, info_name=name)
    while hasattr(program, "commands"):
        name, program, words = program.resolve_command(context, words)
        context = program.context_class(program, info_name=name, parent=context)
    program.make_parser(context).parse_args(args=list(words))


def kexue() -> Any:
    import typer

    from kexue_train.cli.app import app

    return typer.main.get_command(app)


def ray() -> Any:
    return pytest.importorskip("ray.scripts.scripts").cli


@pytest.mark.parametrize("command", commands("kexue"))
def test_kexue_takes_what_the_documents_say(command: str) -> None:
    parse(command, kexue())


@pytest.mark.parametrize("command", commands("ray"))
def test_ray_takes_what_the_documents_say(command: str) -> None:
    parse(command, ray())
    if inner := re.search(r"kexue [^']*", command):
        parse(inner[0], kexue())


def prefect(command: str) -> None:
    """Take the words of ``command`` apart as Prefect would."""
    app = pytest.importorskip("prefect.cli._app")._app
    words = [re.sub(r"^ID$", "00000000-0000-0000-0000-000000000000", word) for word in shlex.split(command)[1:]]
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", commands("prefect"))
def test_prefect_takes_what_the_documents_say(command: str) -> None:
    prefect(command)


@pytest.mark.parametrize("command", commands("torchrun"))
def test_torchrun_takes_what_the_documents_say(command: str) -> None:
    run = pytest.importorskip("torch.distributed.run")
    words = run.get_args_parser().parse_args(shlex.split(command)[1:])
    assert words.training_script == "kexue_train.train.worker"
    assert words.module


@pytest.mark.parametrize("command", commands(*OTHERS))
def test_other_programs_are_those_we_know(command: str) -> None:
    name, first, *_ = shlex.split(re.sub(r'"\$\([^)]*\)"', "X", command))
    known = OTHERS[name]
    assert known is None or first in known


@pytest.mark.parametrize("wrong", ["pipelin --config c.yaml", "plan --config c.yaml --text 3GB"])
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    with pytest.raises(Exception, match="No such"):
        parse(f"kexue {wrong}", kexue())
    with pytest.raises(Exception, match="No such"):
        parse("ray start --hed", ray())
    with pytest.raises(Exception, match=r"(?i)unknown|unused|no such"):
        prefect("prefect flow-run cancle ID")


def test_the_documents_name_many_commands() -> None:
    assert [len(commands(name)) >= 3 for name in ("kexue", "ray", "kubectl", "docker", "sbatch")] == [True] * 5


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_command_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.])((?:cluster|configs)/[\w./-]+\.(?:yaml|sh|sbatch|md)|cluster/kubernetes)\b", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_settings_that_the_documents_name_exist() -> None:
    from kexue_train.pipeline.run_config import RunConfig

    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for section, key in re.findall(r"\b(train|shuffle|execution|corpus|samples)\.([a-z_]+)\b(?!\.py)", text):
            if (section, key) != ("train", "worker"):
                fields = RunConfig.model_fields[section].annotation.model_fields
                assert key in fields, f"{page}: {section}.{key}"


def test_the_images_and_files_need_no_address_of_a_registry() -> None:
    for path in HEADERS:
        assert not re.search(
            r"https?://(?!127\.0\.0\.1|kexue-prefect|prefect-server)", path.read_text(encoding="utf-8")
        )
