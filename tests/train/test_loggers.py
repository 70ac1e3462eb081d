"""TensorBoard, MLflow and Weights & Biases: what they are told, and that none of them can stop a training."""

from __future__ import annotations

import errno
import importlib
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from kexue_train.foundation.errors import ResourceError
from kexue_train.metrics.file import read_metrics
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor import loggers
from kexue_train.train.monitor.loggers import MetricLogger, require_loggers
from kexue_train.train.pretrain import pretrain
from tests.train.tiny_training import final_tensors, make_config, same_bits, train_here

SETTINGS = {"seed": 7, "train": {"steps": 8, "masking": {"keep_probability": 0.1}, "phases": []}}


@pytest.fixture
def paths(tmp_path: Path) -> TrainDir:
    TrainDir(tmp_path).logs.mkdir()
    return TrainDir(tmp_path)


class Server(ModuleType):
    """Stands in for a package; remembers its calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.fails: set[str] = set()
        self.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]  # so that find_spec finds it

    def call(self, name: str, value: Any = None) -> None:
        self.calls.append((name, value))
        if name in self.fails:
            raise ConnectionError(f"{name}: server away")


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server("mlflow")

    def start_run(run_id: str | None, run_name: str | None) -> SimpleNamespace:
        server.call("start_run", run_id or run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "run-1"))

    server.set_tracking_uri = lambda uri: server.call("set_tracking_uri", uri)
    server.start_run = start_run
    server.log_params = lambda params: server.call("log_params", params)
    server.log_metrics = lambda values, step: server.call("log_metrics", (step, values))
    server.end_run = lambda: server.call("end_run")
    monkeypatch.setitem(sys.modules, "mlflow", server)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return server


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server("wandb")

    def init(**options: Any) -> SimpleNamespace:
        server.call("init", options)
        return SimpleNamespace(
            id=options["id"] or "abc",
            log=lambda values, step: server.call("log", (step, values)),
            finish=lambda: server.call("finish"),
        )

    server.init = init
    monkeypatch.setitem(sys.modules, "wandb", server)
    return server


def _write(paths: TrainDir, *names: str, resumed_step: int = 0) -> None:
    with MetricLogger(paths, resumed_step=resumed_step, loggers=names, settings=SETTINGS) as metrics:
        metrics.write("start", 0, device="cpu")
        metrics.write("train", resumed_step + 1, loss=2.5, lr=1e-3)
        metrics.write("validation", resumed_step + 1, mlm_loss=2.0)


def test_mlflow_gets_settings_and_curves_and_goes_on_in_the_same_run(paths, mlflow):
    _write(paths, "mlflow")
    assert mlflow.calls == [
        ("set_tracking_uri", f"sqlite:///{paths.root / 'mlflow.db'}"),
        ("start_run", paths.root.name),
        ("log_params", {"seed": 7, "train.steps": 8, "train.masking.keep_probability": 0.1, "train.phases": []}),
        ("log_metrics", (1, {"train/loss": 2.5, "train/lr": 1e-3})),
        ("log_metrics", (1, {"validation/mlm_loss": 2.0})),
        ("end_run", None),
    ]
    del mlflow.calls[:]
    _write(paths, "mlflow", resumed_step=1)
    names = [name for name, _ in mlflow.calls]
    assert ("start_run", "run-1") in mlflow.calls
    assert "log_params" not in names  # other settings for the same run would be an error there


def test_mlflows_server_is_the_one_of_the_environment(paths, mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.invalid")
    _write(paths, "mlflow")
    assert "set_tracking_uri" not in [name for name, _ in mlflow.calls]


def test_weights_and_biases_gets_settings_and_curves_and_goes_on_in_the_same_run(paths, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    _write(paths, "wandb")
    _write(paths, "wandb", resumed_step=1)
    starts = [value for name, value in wandb.calls if name == "init"]
    assert [start["id"] for start in starts] == [None, "abc"]
    assert starts[0] == {
        "project": "mine", "id": None, "resume": "allow", "dir": str(paths.root), "config": SETTINGS
    }  # fmt: skip
    assert [value for name, value in wandb.calls if name == "log"][:2] == [
        (1, {"train/loss": 2.5, "train/lr": 1e-3}), (1, {"validation/mlm_loss": 2.0})
    ]  # fmt: skip
    assert wandb.calls[-1] == ("finish", None)


def test_tensorboard_files_hold_the_curves_and_a_resume_purges_what_is_done_again(paths):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricLogger(paths, resumed_step=0, loggers=["tensorboard"]) as metrics:
        for step in range(1, 5):
            metrics.write("train", step, loss=1 / step)
    with MetricLogger(paths, resumed_step=2, loggers=["tensorboard"]) as metrics:
        metrics.write("train", 3, loss=9.0)
    board = EventAccumulator(str(paths.tensorboard)).Reload()
    points = {event.step: event.value for event in board.Scalars("train/loss")}
    assert points == pytest.approx({1: 1, 2: 1 / 2, 3: 9.0})


@pytest.mark.parametrize(("failing", "reason"), [("log_metrics", "server away"), ("start_run", "server away")])
def test_a_server_that_is_away_is_said_once_and_every_line_is_in_the_file(paths, mlflow, failing, reason):
    mlflow.fails = {failing}
    with MetricLogger(paths, resumed_step=0, loggers=["mlflow"]) as metrics:
        for step in range(1, 20):
            metrics.write("train", step, loss=1.0)
        thread = metrics._loggers[0]
        thread.close()
        metrics.write("validation", 20, mlm_loss=1.0)
    lines = read_metrics(paths.metrics)
    warnings = [line for line in lines if line["kind"] == "warning"]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 20))
    assert len(warnings) == 1
    assert warnings[0]["message"].startswith("mlflow fails (ConnectionError")
    assert reason in warnings[0]["message"]


class _FullDisk:
    """A board that writes nothing while ``is_full``."""

    is_full = False
    made: ClassVar[list[_FullDisk]] = []

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.purge_step, self.lines = purge_step, []
        self.made.append(self)
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / f"events.{len(self.made)}").write_text("" if self.is_full else "x")

    def add_scalar(self, *line: Any) -> None:
        self.lines.append(line[-1])

    def flush(self) -> None:
        if _FullDisk.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    close = flush


def test_curves_go_on_in_tensorboard_when_a_full_disk_has_room_again(paths, monkeypatch):
    monkeypatch.setattr(_FullDisk, "made", [])
    monkeypatch.setattr(importlib.import_module("torch.utils.tensorboard"), "SummaryWriter", _FullDisk)
    opened = loggers._open_tensorboard(loggers.Start(paths, 3, {}))
    opened.log(4, {"loss": 1.0})
    monkeypatch.setattr(_FullDisk, "is_full", True)
    for step in (5, 6):
        with pytest.raises(OSError, match="No space"):
            opened.log(step, {"loss": 1.0})
    monkeypatch.setattr(_FullDisk, "is_full", False)
    opened.log(7, {"loss": 1.0})
    opened.close()
    assert [(board.purge_step, board.lines) for board in _FullDisk.made] == [(4, [4, 5]), (None, [6]), (None, [7])]
    assert sorted(file.name for file in paths.tensorboard.iterdir()) == ["events.1", "events.3"]


def test_a_server_that_comes_back_gets_the_lines_since(paths, mlflow):
    with MetricLogger(paths, resumed_step=0, loggers=["mlflow"]) as metrics:
        mlflow.fails = {"log_metrics"}
        metrics.write("train", 1, loss=1.0)
        while metrics._loggers[0].complaints.empty():
            threading.Event().wait(0.01)
        mlflow.fails = set()
        metrics.write("train", 2, loss=0.5)
    assert ("log_metrics", (2, {"train/loss": 0.5})) in mlflow.calls


def test_a_server_that_hangs_holds_up_neither_training_nor_its_end(paths, mlflow, monkeypatch):
    monkeypatch.setattr(loggers, "_WAITING_LINES", 3)
    monkeypatch.setattr(loggers, "_CLOSE_SECONDS", 0.1)
    let_go = threading.Event()
    mlflow.log_metrics = lambda *_, **__: let_go.wait(30)
    with MetricLogger(paths, resumed_step=0, loggers=["mlflow"]) as metrics:
        for step in range(1, 9):
            metrics.write("train", step, loss=1.0)
    let_go.set()
    warnings = [line["message"] for line in read_metrics(paths.metrics) if line["kind"] == "warning"]
    assert len(warnings) == 1
    assert "too slowly" in warnings[0]


def test_a_missing_package_is_an_error_before_anything_is_made(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    config, out = make_config(loggers=["tensorboard", "wandb"]), tmp_path / "out"
    with pytest.raises(ResourceError, match=r"train\.logging\.loggers names wandb, .* pip install wandb"):
        pretrain(config, samples, out, launch=lambda: pytest.fail("training was started"))
    assert not out.exists()
    with pytest.raises(ResourceError, match="pip install wandb"):
        train_here(config, samples, out)


def test_installed_packages_are_no_error():
    require_loggers(["tensorboard"])


def test_a_training_with_failing_loggers_has_the_bits_of_one_without(trained, samples, tmp_path, mlflow, wandb):
    mlflow.fails, wandb.fails = {"log_metrics"}, {"init"}
    assert train_here(make_config(loggers=["mlflow", "wandb"]), samples, tmp_path / "out")
    assert same_bits(final_tensors(tmp_path / "out"), final_tensors(trained))
