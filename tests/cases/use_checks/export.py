"""Exported folders: most scripts run in this process; a question on a terminal needs another one."""

from __future__ import annotations

import logging
import runpy
import sys
import warnings
from collections.abc import Callable
from logging.handlers import BufferingHandler
from pathlib import Path
from unittest import mock

import pytest
from transformers import AttentionInterface, AutoModel

from tests.conftest import REPOSITORY
from tests.export.snippets import python_blocks, run_on_terminal


def _asks_nothing(use: Path) -> None:
    """The README's snippet for the folder, in a fresh process on a terminal."""
    snippet = python_blocks((REPOSITORY / "README.md").read_text(encoding="utf-8"))[0]
    shown = run_on_terminal({"README.md": snippet.replace("runs/demo/hf", str(use / "hf"))}, use)
    assert shown["README.md"] == (0, "")


def _reports_nothing(use: Path) -> None:
    """What ``load_report.py`` does, in this process."""
    reports, logger = BufferingHandler(100), logging.getLogger("transformers")
    logger.addHandler(reports)
    try:
        AutoModel.from_pretrained(use / "hf", trust_remote_code=True)
    finally:
        logger.removeHandler(reports)
    assert [record.getMessage() for record in reports.buffer if record.levelno >= logging.WARNING] == []


def _exit_code(script: Path) -> int | str | None:
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def _passes(script: str) -> Callable[[Path], None]:
    """The check that a script ends with code 0; what it registers is forgotten."""

    def check(use: Path) -> None:
        with (
            mock.patch.object(sys, "argv", [script, str(use / "hf")]),
            mock.patch.dict(AttentionInterface._global_mapping),
            warnings.catch_warnings(action="ignore"),
        ):
            assert not _exit_code(use / script)

    return check


CHECKS = {
    "U01": pytest.mark.slow(_asks_nothing),
    "U02": _passes("truncation.py"),
    "U03": _passes("fill_mask_padded_rows.py"),
    "U04": _passes("two_folders_two_codes.py"),
    "U05": _passes("save_pretrained_keeps_code.py"),
    "U06": _passes("pipeline_finds_tokenizer.py"),
    "U11": _passes("attention_implementations.py"),
    "U12": _passes("layer_hooks.py"),
    "U13": _reports_nothing,
}
