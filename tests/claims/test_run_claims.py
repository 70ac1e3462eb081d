"""Claims are measured the cheapest first, within the time, and one that crashes hides no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import claims.__main__ as command
from claims.claim import Setting
from claims.results import Entry, read_results, write_results
from claims.run_claims import Outcome, run_claims
from claims.table import make_table
from kexue_train.foundation.errors import ConfigError


def fail(seed: int, _: Setting) -> dict[str, float]:
    raise RuntimeError("no such text")


def test_every_seed_is_measured_and_judged(make_claim) -> None:
    [outcome] = run_claims([make_claim()], Setting())
    assert (outcome.status, outcome.figures) == ("confirmed", {"gain": [2.0, 2.01, 2.02]})


def test_one_that_crashes_hides_no_other(make_claim) -> None:
    claims = [make_claim(name="broken", measure=fail), make_claim(name="sound", seconds=2)]
    broken, sound = run_claims(claims, Setting())
    assert (broken.status, sound.status) == ("crashed", "confirmed")
    assert "RuntimeError: no such text" in broken.message


def test_a_verdict_that_crashes_counts_as_well(make_claim) -> None:
    [outcome] = run_claims([make_claim(judge=lambda found: found["missing"])], Setting())
    assert outcome.status == "crashed"
    assert outcome.figures == {"gain": [2.0, 2.01, 2.02]}


def test_the_cheapest_come_first_and_what_does_not_fit_is_not_run(make_claim) -> None:
    claims = [make_claim(name=str(seconds), seconds=seconds) for seconds in (100, 10, 40, 5)]
    now = iter([0.0, 0.0, 20.0, 30.0, 31.0])  # the start, then before each claim
    outcomes = list(run_claims(claims, Setting(), minutes=1, clock=lambda: next(now)))
    assert [outcome.name for outcome in outcomes] == ["5", "10", "40", "100"]
    assert [outcome.status for outcome in outcomes] == ["confirmed", "confirmed", "not run", "not run"]
    assert outcomes[2].message == "needs about 40 s, 30 s left"


def test_the_table_shows_figures_verdicts_and_why_there_are_none(make_claim) -> None:
    claims = [make_claim(), make_claim(name="broken")]
    outcomes = [
        Outcome("broken", "crashed", message="RuntimeError: no such text"),
        Outcome("made-up", "refuted", {"gain": [1.0, 1.5]}, seconds=3.25),
    ]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(make_table(claims, outcomes))
    console.file.close()
    text = console.export_text()
    assert "gain 1.25 ± 0.35 nats" in text
    assert "refuted" in text
    assert "RuntimeError: no such text" in text
    assert text.index("made-up") < text.index("broken")  # in the order of the claims


def test_results_are_kept_and_replaced_one_by_one(make_claim, tmp_path: Path) -> None:
    path, claims = tmp_path / "kept" / "results.json", [make_claim(name="a"), make_claim(name="b")]
    first = {name: Entry(Outcome(name, "confirmed", {"gain": [1.0]}), "2026-01-01", "a processor") for name in "ab"}
    write_results(path, first, claims)
    second = read_results(path)
    assert second == first
    second["a"] = Entry(Outcome("a", "refuted", {"gain": [0.0]}), "2026-01-02", "another")
    write_results(path, second, claims[:1])  # b is no claim any more
    assert read_results(path) == {"a": second["a"]}


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"claims": {"a": {"outcome": {}}}}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="not the results of claims"):
        read_results(tmp_path / "results.json")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, make_claim):
    """Runs the command on made-up claims; returns its exit status and output."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    claims = (make_claim(name="gain"), make_claim(name="loss", judge=lambda _: "refuted"))
    monkeypatch.setattr(command, "CLAIMS", claims)
    monkeypatch.setattr(command.choose, "__defaults__", (claims,))
    app = command.typer.Typer()
    app.command()(command.main)
    return lambda *words: CliRunner().invoke(app, words)


def test_a_refuted_claim_is_a_result_and_a_crash_is_an_error(run, monkeypatch, make_claim) -> None:
    assert run().exit_code == 0
    monkeypatch.setattr(command.choose, "__defaults__", ((make_claim(name="broken", measure=fail),),))
    assert run().exit_code == 1


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names(run) -> None:
    refused = run("--only", "gian")
    assert refused.exit_code == 2
    assert "no claim 'gian'; did you mean gain? There are: gain, loss" in refused.output


def test_only_what_is_named_is_measured_and_kept(run, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert run("--only", "loss", "--json", str(path), "--pictures", str(tmp_path / "pictures")).exit_code == 0
    assert list(json.loads(path.read_text(encoding="utf-8"))["claims"]) == ["loss"]
    assert [picture.name for picture in (tmp_path / "pictures").iterdir()] == ["loss.svg"]


def test_without_time_the_page_is_written_from_what_is_kept(run, tmp_path: Path) -> None:
    path, page = tmp_path / "results.json", tmp_path / "page.md"
    run("--json", str(path))
    kept = path.read_text(encoding="utf-8")
    assert run("--json", str(path), "--minutes", "0", "--page", str(page)).exit_code == 0
    assert path.read_text(encoding="utf-8") == kept
    assert "| [gain](#gain) |" in page.read_text(encoding="utf-8")
    assert (tmp_path / "page" / "gain.svg").exists()
