"""The flow's tasks: in the order of the pipeline, tried again only where that can help, with readable results."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from rich.console import Console

from kexue_train.cli.terminal import PlainBoard
from kexue_train.foundation.artifacts import FileEntry, InputFile, Manifest, RowsChecksum
from kexue_train.foundation.errors import (
    ArtifactError,
    ConfigError,
    CorpusError,
    ResourceError,
    StaleArtifactError,
    TrainingError,
)
from kexue_train.pipeline.run import StageResult
from kexue_train.pipeline.stages import STAGES

pytest.importorskip("prefect")

FLOW = Path(__file__).resolve().parents[2] / "flows" / "pretrain_pipeline.py"


class Failed:
    """A state of Prefect, as far as the retry condition looks at it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def result(self, *, raise_on_failure: bool) -> BaseException:
        assert not raise_on_failure
        return self.error


def stages_of_the_flow() -> list[tuple[str, tuple[str, ...]]]:
    """Each line ``name = stage(run, ...)`` of the flow: the stage, and the stages whose results it is given."""
    tree = ast.parse(FLOW.read_text(encoding="utf-8"))
    flow = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "pretrain_pipeline")
    made_by: dict[str, str] = {}
    found = []
    for node in ast.walk(flow):
        call = node.value if isinstance(node, ast.Assign | ast.Expr) else None
        call = call.body if isinstance(call, ast.IfExp) else call  # a stage that some runs have
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.args[0]) == "run":
            stage = ast.unparse(call.func)
            found.append((stage, tuple(made_by[ast.unparse(argument)] for argument in call.args[1:])))
            made_by |= {ast.unparse(target): stage for target in getattr(node, "targets", [])}
    return found


def test_the_flow_runs_the_stages_in_their_order_and_gives_each_what_it_reads() -> None:
    assert stages_of_the_flow() == [(stage.name, stage.reads) for stage in STAGES]


def test_every_name_in_the_flow_is_the_task_of_that_stage() -> None:
    from flows import pretrain_pipeline

    names = [stage.name for stage in STAGES]
    assert [getattr(pretrain_pipeline, name).name for name in names] == names


@pytest.mark.parametrize(
    "error",
    [ConfigError("x"), CorpusError("x"), ArtifactError("x"), StaleArtifactError("x", "y"), ResourceError("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_the_user_has_to_correct_is_not_tried_again(error: Exception) -> None:
    from flows.tasks import is_worth_retrying

    unused: Any = None
    assert not is_worth_retrying(unused, unused, Failed(error))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [TrainingError("x"), OSError("x"), RuntimeError("x")], ids=lambda error: type(error).__name__
)
def test_what_may_pass_by_itself_is_tried_again(error: Exception) -> None:
    from flows.tasks import is_worth_retrying

    unused: Any = None
    assert is_worth_retrying(unused, unused, Failed(error))  # type: ignore[arg-type]


def manifest(**fields: Any) -> Manifest:
    files = {"a": FileEntry(bytes=1_500_000, checksum="x")}
    return Manifest(kind="text_shards", settings={}, settings_digest="x", files=files, bytes=1_500_000, **fields)


def test_the_facts_of_a_stage_are_what_it_made_and_how_fast() -> None:
    made = manifest(rows=12_345, rows_checksum=RowsChecksum(input="ab", output="ab"))
    facts = StageResult("shuffle", True, 65.0, "all well", made, Path("run/shards")).facts
    assert facts == {
        "result": "all well",
        "time": "1 min 05 s",
        "rows": "12,345",
        "bytes": "1.5 MB",
        "speed": "23.1 kB/s",
        "checksum of the rows": "ab",
        "digest": made.content_digest,
        "folder": "run/shards",
    }


def test_the_facts_tell_what_could_not_be_used_and_what_was_not_kept() -> None:
    inputs = [InputFile(uri=uri, bytes=1, rejected={"not UTF-8": 2, uri: 1}) for uri in ("a", "b")]
    made = manifest(rows=1, inputs=inputs, statistics={"unread_keys": ["lang", "url"]})
    facts = StageResult("shuffle", True, 1.0, "all well", made, Path("run/shards")).facts
    assert facts["rejected"] == "6 records rejected (4 not UTF-8, 1 a, 1 b), kept in run/shards/rejected"
    assert facts["keys not kept"] == "'lang', 'url'"


def test_the_facts_of_work_done_before_have_no_speed_and_of_no_folder_no_numbers() -> None:
    before = StageResult("samples", False, 0.1, "x", manifest(rows=1), Path("run/samples")).facts
    assert (before["time"], "speed" in before) == ("complete before", False)
    page = StageResult("report", True, 0.1, "index.html", None, Path("run/report")).facts
    assert set(page) == {"result", "time", "folder"}


def test_only_training_is_limited_to_one_at_a_time() -> None:
    from flows import tasks

    limited = [stage.name for stage in STAGES if tasks.TRAINING_TAG in getattr(tasks, stage.name).tags]
    assert limited == ["train", "supervise"]


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Artifacts:
    """A server that keeps progress artifacts, or is away."""

    def __init__(self) -> None:
        self.is_away, self.told = False, list[tuple[str, float]]()

    def create_progress_artifact(self, percent: float, **_: object) -> UUID:
        return self._tell("created", percent)

    def update_progress_artifact(self, _: UUID, percent: float) -> UUID:
        return self._tell("updated", percent)

    def _tell(self, what: str, percent: float) -> UUID:
        self.told.append((what, percent))
        if self.is_away:
            raise httpx.ConnectError("refused")
        return UUID(int=1)


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, Artifacts, Any]:
    """A clock, a server, and the progress of a stage that is sent to it."""
    from flows import artifacts

    clock, server = Clock(), Artifacts()
    monkeypatch.setattr(artifacts, "time", clock)
    for name in ("create_progress_artifact", "update_progress_artifact"):
        monkeypatch.setattr(artifacts, name, getattr(server, name))
    progress = artifacts.ArtifactProgress("shuffle", PlainBoard(Console(file=io.StringIO())))
    return clock, server, progress


def test_a_short_stage_costs_one_artifact_and_a_long_one_updates_it(artifacts: tuple[Clock, Artifacts, Any]) -> None:
    clock, server, progress = artifacts
    progress.update(1, 4, "rows")
    assert server.told == []
    clock.now = 6.0
    progress.update(2, 4, "rows")
    progress.update(3, 4, "rows")
    progress.complete()
    assert server.told == [("created", 50.0), ("updated", 100.0)]


def test_progress_leaves_a_server_that_is_away_alone_for_a_minute(artifacts: tuple[Clock, Artifacts, Any]) -> None:
    clock, server, progress = artifacts
    server.is_away = True
    for clock.now in range(120):
        progress.update(1, 4, "rows")
    assert len(server.told) == 2
    server.is_away = False
    progress.complete()
    assert server.told[-1] == ("created", 100.0)


@pytest.mark.slow
def test_a_mistake_ends_the_flow_before_a_server_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.pretrain_pipeline import main

    (tmp_path / "a.yaml").write_text("name: a\ncorpus: {inputs: [x]}\ntrain: {stepz: 1}\n")
    assert main([str(tmp_path / "a.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    assert "unknown key 'train.stepz', did you mean 'steps'?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
