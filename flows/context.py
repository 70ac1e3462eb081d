"""The context of a flow run: its configuration, its locked run folder, and the board that shows its stages."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, State

from flows.artifacts import show_link
from flows.credentials import as_given
from kexue_train.cli.terminal import PlainBoard, StageBoard, make_board, open_console
from kexue_train.foundation.errors import ConfigError, KexueError
from kexue_train.foundation.json_logs import JsonFormatter, enter_run, wants_json
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.shipped_configs import find_config
from kexue_train.foundation.stage import Stage
from kexue_train.pipeline.run import Run, is_complete, open_run
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import stages_of

_LINKS = {"KEXUE_TENSORBOARD_URL": ("tensorboard", "TensorBoard"), "KEXUE_RAY_URL": ("ray", "Ray's dashboard")}


class FlowContext:
    """What the tasks of one flow run share. A plain class, so that Prefect does not inspect it."""

    def __init__(self, run: Run, board: StageBoard, summaries: dict[str, str] | None = None) -> None:
        self.run, self.board = run, board
        self.summaries: dict[str, str] = {} if summaries is None else summaries

    @property
    def folder(self) -> RunDir:
        """The run folder."""
        return self.run.folder

    def on(self, run: Run) -> FlowContext:
        """Return the context of the same flow run for work on another run, such as a generation of this one."""
        return FlowContext(run, self.board, self.summaries)

    def completed(self, *stages: Stage[RunConfig]) -> State[str]:
        """Return the final state: what ``stages`` made, as the message, and the run folder, as the result."""
        return self.ended("; ".join(self.summaries[stage.name] for stage in stages))

    def ended(self, message: str) -> State[str]:
        """Return the final state with this message."""
        root = str(self.folder.root)
        return Completed(message=f"{root}: {message}", data=root)


@contextmanager
def run_context(
    stages: Sequence[Stage[RunConfig]],
    config_path: Path,
    run_dir: Path | None = None,
    overrides: Sequence[str] | None = None,
    ray_address: str | None = None,
    fresh: bool = False,
    claim: bool = True,
) -> Iterator[FlowContext]:
    """Load the configuration, claim the run folder and hold its lock; if interrupted, say how to resume.

    Without ``claim`` the configuration in the folder does not change.

    Raises:
        KexueError: If the configuration is wrong, or if another process uses the folder.
    """
    config = load_config(config_path, as_given(overrides), ray_address)
    root = run_dir or Path("runs", config.name)
    enter_run(root)
    _format_prefect_logs()
    wanted = [stage for stage in stages if stage.is_wanted(config)]
    with RunDir(root).lock(), _board(wanted) as board, hint_resume_on_interrupt(board, root):
        for variable, (key, text) in _LINKS.items():
            if address := os.environ.get(variable):
                show_link(key, address, text)
        yield FlowContext(open_run(config, root, fresh=fresh) if claim else Run(config, RunDir(root)), board)


def found_complete(config: RunConfig, root: Path) -> bool:
    """Return whether the run has nothing left to do, and show it if so; needs neither a server nor Ray nor torch."""
    run = Run(config, RunDir(root))
    if not is_complete(run):
        return False
    stages = stages_of(config)
    with make_board([stage.name for stage in stages], open_console()) as board:
        for stage in stages:
            board.finish(stage.name, stage.describe(config, run.folder_of(stage)), 0.0, made=False)
    return True


def load_config(path: Path, overrides: Sequence[str] | None = None, ray_address: str | None = None) -> RunConfig:
    """Return the configuration, with ``ray_address`` as one more override.

    Raises:
        ConfigError: If a value is wrong, or the file does not exist; then the message names the machine and the folder.
    """
    if not find_config(path)[0].exists():
        raise ConfigError(
            f"{path}: no such configuration file on {platform.node()}, where this flow runs in {Path.cwd()}; "
            "give an absolute path that this machine sees, or one relative to that folder"
        )
    chosen = [*(overrides or []), *([f"execution.ray_address={ray_address}"] if ray_address else [])]
    return RunConfig.load(path, chosen)


def run_name() -> str:
    """Return the name of the flow run, such as ``base from base.yaml``, instead of Prefect's random names."""
    parameters: dict[str, Any] = flow_run.parameters
    config = Path(parameters["config_path"])
    run_dir = parameters.get("run_dir")
    return f"{Path(run_dir).name if run_dir else config.stem} from {config.name}"


class _RunLog:
    """A file whose lines go to the log of the flow run, which Prefect's page shows."""

    def __init__(self) -> None:
        self._log = get_run_logger()

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                self._log.info(line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: no line is buffered."""


def _format_prefect_logs() -> None:
    """Let what Prefect prints have the form of the other logs; what it sends to its server stays as it is."""
    if not wants_json():
        return
    loggers = [logging.getLogger(name) for name in logging.Logger.manager.loggerDict if name.startswith("prefect")]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, logging.StreamHandler):
            handler.setFormatter(JsonFormatter())


def _board(stages: Sequence[Stage[RunConfig]]) -> StageBoard:
    if deployment.id:
        return PlainBoard(open_console(file=_RunLog(), width=1000))
    return make_board([stage.name for stage in stages], open_console())


@contextmanager
def hint_resume_on_interrupt(board: StageBoard, root: Path) -> Iterator[None]:
    """Say on the board how to resume if a signal ends the work."""
    try:
        yield
    except KexueError:
        raise  # its message says how
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal: cancelled, or about to be killed
            board.note(f"stopped; what is finished is kept in {root}. Run again with the same parameters to resume")
        raise
