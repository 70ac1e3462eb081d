"""The Python that the product shows to people who want to use a model, and a way to run it as they do."""

from __future__ import annotations

import html
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from kexue_train.cli.ending import print_ending
from kexue_train.foundation.artifacts import CARD_NAME
from kexue_train.report.build_report import build_report
from kexue_train.report.summary import summarise
from tests.conftest import REPOSITORY

_FENCED = re.compile(r"^ *```python\n(.*?)^ *```", re.M | re.S)
_INLINE = re.compile(r"`((Auto\w+)\.from_pretrained\([^`]*\))`")
PYTHON = os.environ.get("TRANSFORMERS_PYTHON", sys.executable)
"""The interpreter whose transformers runs the snippets."""


class Shown(NamedTuple):
    """What a program left on the terminal."""

    code: int
    text: str


def run_on_terminal(programs: Mapping[str, str], folder: Path, python: str = PYTHON) -> dict[str, Shown]:
    """Run every program in ``folder`` on a terminal of its own, by the transformers of ``python``; by its name.

    kexue_train cannot be imported there, nothing is in a cache, and no variable keeps transformers from its hub.
    """
    left_out = ("PYTHONPATH", "HF_HUB_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment["HF_MODULES_CACHE"] = str(folder / "modules")
    command = [python, str(REPOSITORY / "tests" / "export" / "on_terminal.py")]
    ended = subprocess.run(
        command, cwd=folder, env=environment, input=json.dumps(programs), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return {name: Shown(*shown) for name, shown in json.loads(ended.stdout).items()}


def snippets_of_a_run(run_dir: Path) -> dict[str, str]:
    """Return what a finished run shows: at its end, in its report, for Prefect."""
    ending = io.StringIO()
    print_ending(run_dir, Console(file=ending))
    build_report(run_dir)
    page = (run_dir / "report" / "index.html").read_text(encoding="utf-8")
    (in_page,) = re.findall(r'<code id="snippet">(.*?)</code>', page, re.S)
    (in_markdown,) = python_blocks(summarise(run_dir).to_markdown())
    return {
        "ending": ending.getvalue().partition("Try it:\n")[2],
        "report": html.unescape(in_page),
        "Prefect": in_markdown,
    }


def snippets_of_a_card(folder: Path) -> dict[str, str]:
    """Return what the card of a model shows, for the model itself."""
    blocks = python_blocks((folder / CARD_NAME).read_text(encoding="utf-8"))
    return {f"{folder.name}/{CARD_NAME} {n}": code.replace("PATH", str(folder)) for n, code in enumerate(blocks, 1)}


def snippets_of_pages() -> dict[str, str]:
    """Return the blocks of README.md and docs, and calls in their text, which name the class and ``folder``."""
    programs = {}
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        programs |= {f"{page.name} {number}": code for number, code in enumerate(python_blocks(text), 1)}
        for call, auto_class in _INLINE.findall(text):
            programs[f"{page.name} {call}"] = f"from transformers import {auto_class}\nfolder = 'runs/demo/hf'\n{call}"
    return programs


def python_blocks(markdown: str) -> list[str]:
    """Return the Python in a Markdown text, without the indentation of a list."""
    blocks = [block.splitlines() for block in _FENCED.findall(markdown)]
    return ["\n".join(line.removeprefix(lines[0][: -len(lines[0].lstrip())]) for line in lines) for lines in blocks]
