"""What we tell people to type runs when they do: on a terminal, without a question, a warning or an error.

TRANSFORMERS_PYTHON names another interpreter, whose transformers runs the snippets.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from kexue_train.downstream.evaluate.sentence_vectors.fit_whitening import fit_whitening
from kexue_train.export.export_hf import export_hf
from kexue_train.export.import_weights import import_weights
from tests.conftest import REPOSITORY
from tests.export.snippets import run_on_terminal, snippets_of_a_card, snippets_of_a_run, snippets_of_pages
from tests.report.example_run import write_finished_run

_OTHER_FOLDERS = """
from transformers import AutoModelForMaskedLM, AutoTokenizer
AutoTokenizer.from_pretrained("runs/demo/tokenizer")
AutoTokenizer.from_pretrained("runs/demo/pretrain/checkpoints/step-00000006", trust_remote_code=True)
AutoModelForMaskedLM.from_pretrained("runs/demo/pretrain/checkpoints/step-00000006", trust_remote_code=True)
"""


@pytest.mark.slow
def test_every_snippet_runs_on_a_terminal_and_shows_nothing(samples: Path, checkpoint: Path, tmp_path: Path) -> None:
    run = write_finished_run(tmp_path / "runs" / "demo")
    programs = {**snippets_of_a_run(run), **snippets_of_pages(), "other folders": _OTHER_FOLDERS}
    for name in ("hf", "tokenizer"):
        shutil.rmtree(run / name, ignore_errors=True)
    shutil.copytree(samples / "tokenizer", run / "tokenizer")
    shutil.copytree(checkpoint, run / "pretrain" / "checkpoints" / checkpoint.name)
    export_hf(checkpoint, run / "hf")
    import_weights(run / "hf", tmp_path / "imported")
    programs |= snippets_of_a_card(run / "hf") | snippets_of_a_card(tmp_path / "imported")
    if find_spec("sentence_transformers"):
        (tmp_path / "sentences.txt").write_text("".join(f"the {n} boats of harbour {n * n}\n" for n in range(20)))
        fit_whitening(run / "hf", [tmp_path / "sentences.txt"], tmp_path / "vectors", dimensions=2)
        programs |= snippets_of_a_card(tmp_path / "vectors")
    assert {"ending", "report", "Prefect", "README.md 1", "hf/README.md 1", "imported/README.md 1"} < programs.keys()
    assert all("from_pretrained" in program or "SentenceTransformer(" in program for program in programs.values())
    shown = run_on_terminal(programs, tmp_path)
    assert {name: text for name, (code, text) in shown.items() if code or text} == {}


def test_no_page_shows_a_call_that_asks_before_it_runs() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("**/*.md"), *(REPOSITORY / "docs").glob("**/*.html")]
    calls = [
        line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if ".from_pretrained(" in line
    ]
    assert calls
    assert [line for line in calls if "trust_remote_code=True" not in line] == []
