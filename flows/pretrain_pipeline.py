"""READ FIRST. The whole run in data order, one line per stage.

Run it: ``python -m flows.pretrain_pipeline configs/demo.yaml [--run-dir DIR] [--fresh] [section.key=value ...]``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from rich.console import Console

from flows.tasks import Workshop, stage_task
from kexue_train.completion import is_complete
from kexue_train.errors import KexueError
from kexue_train.pipeline import STAGES, Run, open_run, show_complete
from kexue_train.report.summary import summarise
from kexue_train.run_config import RunConfig
from kexue_train.run_dir import RunDir
from kexue_train.terminal import make_board, print_ending

corpus = stage_task("corpus")
shuffle = stage_task("shuffle")
tokenizer = stage_task("tokenizer")
samples = stage_task("samples")
train = stage_task("train")
export = stage_task("export")
evaluate = stage_task("evaluate")
report = stage_task("report")


@flow(name="pretrain-pipeline", flow_run_name="{config_path}", persist_result=False)
def pretrain_pipeline(
    config_path: Path, run_dir: Path | None = None, overrides: list[str] | None = None, fresh: bool = False
) -> None:
    """Raw text in, a pretrained encoder with its report out; run again after any interruption, it goes on.

    Args:
        config_path: YAML file of the run.
        run_dir: Run folder; by default ``runs/NAME``.
        overrides: ``section.key=value`` texts that replace values of the file.
        fresh: Empty the run folder and start over.
    """
    config = RunConfig.load(config_path, overrides or [])
    root = run_dir or Path("runs", config.name)
    with RunDir(root).lock(), make_board(list(STAGES), Console()) as board:
        workshop = Workshop(open_run(config, root, fresh=fresh), board)
        corpus(workshop)
        shuffle(workshop)
        tokenizer(workshop)
        samples(workshop)
        train(workshop)
        export(workshop)
        evaluate(workshop)
        report(workshop)
    create_markdown_artifact(markdown=summarise(root).to_markdown(), key="run-summary", description="What the run made")


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.pretrain_pipeline", description="Raw text in, an encoder out."
    )
    parser.add_argument("config", type=Path, help="YAML file of a run, such as configs/demo.yaml")
    parser.add_argument("--run-dir", type=Path, help="run folder (default: runs/NAME)")
    parser.add_argument("--fresh", action="store_true", help="empty the run folder and start over")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = RunConfig.load(options.config, options.overrides)  # a typo should not wait for a server to start
        root = options.run_dir or Path("runs", config.name)
        if not options.fresh and is_complete(config, RunDir(root)):
            with make_board(list(STAGES), Console()) as board:
                show_complete(Run(config, RunDir(root)), board)
        else:
            pretrain_pipeline(options.config, root, options.overrides, options.fresh)
    except KexueError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print_ending(root, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
