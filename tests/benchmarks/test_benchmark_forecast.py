"""The comparison of forecasts with finished runs: every figure that both have, and whether it is inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.forecast import Comparison, compare
from kexue_train.foundation.run_dir import RunDir

STAGES = ("shuffle", "tokenizer", "samples", "train", "export", "evaluate", "report")


def forecasts(seconds: float, disk: int) -> dict[str, Any]:
    stages = [{"stage": name, "seconds": seconds, "disk_bytes": disk} for name in STAGES]
    return {"stages": stages, "seconds": seconds * len(STAGES)}


def test_every_figure_that_both_have_is_compared(tmp_path: Path) -> None:
    found = {
        "forecast": {"least": forecasts(5, 10), "likely": forecasts(10, 20), "most": forecasts(20, 30)},
        "loss": {"least": 4.0, "likely": 5.0, "most": 6.0},
    }
    records = [{"stage": name, "seconds": 30 if name == "train" else 10} for name in STAGES]
    (tmp_path / "stages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model").write_bytes(b"x" * 25)
    compared = {entry.name: entry for entry in compare(found, RunDir(tmp_path))}
    assert set(compared) == {*STAGES, "all", "hf/"}
    assert {name for name, entry in compared.items() if not entry.is_inside} == {"train"}
    assert compared["all"].finished == 90
    assert compared["hf/"] == Comparison("hf/", "bytes", 10, 20, 30, 25)
    assert compared["train"].row() == "| train | 5.0 s | 10.0 s | 20.0 s | 30.0 s | no |"
