"""Command lines of the release before still mean what they meant; every option of then is in one of them."""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from kexue_train.cli.app import TREE, app
from kexue_train.cli.options import ConfigOptions


class Recorder:
    """In place of a flow."""

    def __init__(self, function: Callable[..., Any], called: list[dict[str, Any]]) -> None:
        self.fn, self._called = function, called

    def __call__(self, **options: Any) -> None:
        self._called.append(options)


ROOT = Path(__file__).resolve().parents[2]
# Written by the code before commands had their options from configuration classes: what click's tree offered, and
# to what each line led, the values of a configuration class in "config".
BEFORE = json.loads((Path(__file__).parent / "commands_before.json").read_text(encoding="utf-8"))
PROGRAM: Any = typer.main.get_command(app)


def asked_for(words: list[str]) -> tuple[Any, Any]:
    """The command and the context with the parameters that ``kexue WORDS`` leads to."""
    program, rest = PROGRAM, list(words)
    context = program.context_class(program, info_name="kexue")
    while hasattr(program, "commands"):
        name, program, rest = program.resolve_command(context, rest)
        if hasattr(program, "commands"):
            context = program.context_class(program, info_name=name, parent=context)
    return program, program.make_context(name, list(rest), parent=context)


def plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def all_flags(program: Any) -> set[str]:
    context = program.context_class(program, info_name="x")
    return {flag for param in program.get_params(context) for flag in [*param.opts, *param.secondary_opts]}


@pytest.mark.parametrize("entry", BEFORE["lines"], ids=lambda entry: str(entry["line"])[:60])
def test_a_command_line_of_before_means_the_same(entry: dict[str, Any]) -> None:
    command, context = asked_for(shlex.split(entry["line"]))
    arguments, config = dict(context.params), None
    for parameter in inspect.signature(command.function).parameters.values():
        if isinstance(parameter.default, ConfigOptions):
            options = parameter.default.take(arguments, "kexue").config(**entry.get("set_by_command", {}))
            config = config or options
    given = {name: plain(value) for name, value in arguments.items() if value not in (None, [], ())}
    assert {name: given.get(name) for name in entry["arguments"]} == entry["arguments"]
    since = {name: value for name, value in given.items() if name not in entry["arguments"]}
    assert since.items() <= {"as_json": False, "trust_code": False}.items()
    assert (config is None) == (entry["config"] is None)
    if config is not None:
        found = config.model_dump(mode="json")
        assert with_values(found, entry["config"]) == found


def with_values(found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """``found`` with the values ``given``, also in its sections: what came since then keeps its default."""
    both = {key: (found.get(key), value) for key, value in given.items()}
    return found | {
        key: with_values(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        for key, (old, value) in both.items()
    }


@pytest.mark.parametrize("command", BEFORE["options"])
def test_every_option_of_before_is_accepted_and_tried(command: str) -> None:
    before = set(BEFORE["options"][command])
    lines = [shlex.split(entry["line"]) for entry in BEFORE["lines"] if entry["line"].startswith(command)]
    assert before <= all_flags(asked_for(lines[0])[0])
    assert before <= {word for line in lines for word in line}


@pytest.mark.parametrize("command", BEFORE["options"])
def test_the_example_in_the_help_can_be_run(command: str) -> None:
    program = asked_for(shlex.split(next(e["line"] for e in BEFORE["lines"] if e["line"].startswith(command))))[0]
    title, *lines = program.epilog.replace("\b", "").split()[0], program.epilog.splitlines()[-1].strip()
    assert title == "Example:"
    asked_for(shlex.split(lines[0])[1:])


@pytest.mark.parametrize("entry", BEFORE["flow_lines"], ids=lambda entry: str(entry["line"])[:60])
def test_a_flow_of_before_is_called_with_the_same(
    entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("prefect")
    name, *words = shlex.split(entry["line"])
    module = importlib.import_module(f"flows.{name}")
    called: list[dict[str, Any]] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("flows.command.require_server", lambda: None)
    monkeypatch.setattr(module, name, Recorder(getattr(module, name).fn, called))
    monkeypatch.setattr(module, "print_ending", lambda *_: None, raising=False)
    assert module.main(words) == 0, capsys.readouterr().err
    given = {key: plain(value) for key, value in called[0].items() if value not in (None, [], False)}
    assert given == entry["arguments"]


@pytest.mark.parametrize("name", BEFORE["flow_options"])
def test_every_option_of_a_flow_is_accepted_and_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prefect")
    module = importlib.import_module(f"flows.{name}")
    assert module.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert [flag for flag in BEFORE["flow_options"][name] if flag not in out] == []
    example = out.partition("Example:")[2].strip()
    assert example.startswith(f"python -m flows.{name} configs/demo.yaml")
    assert module.main(["configs/demo.yaml", "--rum-dir", "x"]) == 2
    assert "--run-dir" in capsys.readouterr().err


def test_the_tree_holds_every_command() -> None:
    assert sorted(name for names in TREE.values() for name in names) == sorted(PROGRAM.commands)
