"""Compares what ``kexue try`` forecasts for a run with what the run took and reached.

python -m benchmarks.forecast CONFIG RUN [section.key=value ...] [--minutes 2] [--json FILE]

RUN is the folder of the finished run of that configuration, on this machine. The trial is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.pipeline.stages import STAGES
from kexue_train.pipeline.trial.forecast import BOUNDS
from kexue_train.pipeline.trial.measure import folder_bytes, measure_loss
from kexue_train.report.run_data import read_stage_records


class Comparison(NamedTuple):
    """One figure."""

    name: str
    unit: str
    """``seconds``, ``bytes`` or ``nats``."""
    least: float
    likely: float
    most: float
    finished: float

    @property
    def is_inside(self) -> bool:
        """Whether the run lies in the interval."""
        return self.least <= self.finished <= self.most

    def row(self) -> str:
        """Return the row of a Markdown table."""
        show = {"seconds": format_seconds, "bytes": format_size, "nats": "{:.2f}".format}[self.unit]
        figures = " | ".join(map(show, (self.least, self.likely, self.most, self.finished)))
        return f"| {self.name} | {figures} | {'yes' if self.is_inside else 'no'} |"


def compare(found: Mapping[str, Any], folder: RunDir) -> Iterator[Comparison]:
    """Yield every figure that both the forecast (the output of ``kexue try --json``) and the run have."""
    took = {record["stage"]: float(record["seconds"]) for record in read_stage_records(folder.stages)}
    forecasts = {bound: {stage["stage"]: stage for stage in found["forecast"][bound]["stages"]} for bound in BOUNDS}
    for stage in STAGES:
        if stage.name in took and stage.name in forecasts["likely"]:
            seconds = [forecasts[bound][stage.name]["seconds"] for bound in BOUNDS]
            if None not in seconds:
                yield Comparison(stage.name, "seconds", *seconds, took[stage.name])
    if set(took) >= set(forecasts["likely"]) - {"corpus"}:
        seconds = [found["forecast"][bound]["seconds"] for bound in BOUNDS]
        yield Comparison("all", "seconds", *seconds, sum(took.values()))
    for stage in STAGES:
        size = folder_bytes(folder.root / stage.folder) if (folder.root / stage.folder).is_dir() else 0
        if stage.name in forecasts["likely"] and size and (stage.name != "report"):
            yield Comparison(
                f"{stage.folder}/", "bytes", *(forecasts[bound][stage.name]["disk_bytes"] for bound in BOUNDS), size
            )
    loss, _ = measure_loss(folder)
    if loss is not None and found["loss"]:
        yield Comparison("loss of hidden tokens", "nats", *(found["loss"][bound] for bound in BOUNDS), loss)


def run_try(config: str, overrides: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """Return what the command says."""
    command = [sys.executable, "-m", "kexue_train", "try", config, *overrides]
    options = ["--minutes", str(minutes), "--run-dir", str(folder), "--json"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def main() -> None:
    """Run the trial, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--json", type=Path, help="keep what kexue try said, or read it from there if it exists")
    given = parser.parse_args()
    if given.json and given.json.exists():
        found = json.loads(given.json.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory(prefix="kexue-forecast-") as folder:
            found = run_try(given.config, given.overrides, given.minutes, Path(folder) / "try")
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")
    comparisons = list(compare(found, RunDir(given.run)))
    print("| | at least | likely | at most | finished run | inside |")
    print("|---|---|---|---|---|---|")
    for entry in comparisons:
        print(entry.row())
    inside = sum(entry.is_inside for entry in comparisons)
    print(
        f"\n{inside} of {len(comparisons)} figures inside; the trial took {format_seconds(found['trial']['seconds'])}."
    )


if __name__ == "__main__":
    main()
