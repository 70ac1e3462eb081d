"""From a step back to its rows, documents and lines, compared with what the loader gives and what the files hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kexue_train.batches import order
from kexue_train.batches.dataset import SampleDataset
from kexue_train.cli import app as cli
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.foundation.progress import SILENT
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.rows import Step, find_lines, rows_of_step, with_documents
from kexue_train.pipeline.run import open_run, run_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import SAMPLES, SHUFFLE, TOKENIZER

STEPS, ROWS = 6, 4


def write_run(root: Path, corpus: Path, **samples: object) -> RunDir:
    """A run whose samples are made and whose training has not begun."""
    values = {
        "name": "tiny",
        "corpus": {"source": "files", "inputs": [str(corpus)]},
        "shuffle": {"shards": 2, "filters": {"min_chars": 10}},
        "tokenizer": {"vocab_size": 90},
        "samples": {"seq_len": 64, "heldout_fraction": 0.1, **samples},
        "model": {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
        "optimizer": {"schedule": {2: 1.0}},
        "train": {"steps": STEPS, "global_batch_size": ROWS, "micro_batch_size": 2},
        "execution": {"num_workers": 1},
    }
    with RunDir(root).lock():
        run = open_run(RunConfig.parse(values, where="test"), root)
        for stage in (SHUFFLE, TOKENIZER, SAMPLES):
            run_stage(stage, run, SILENT)
    return RunDir(root)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of 60 documents in two files, each with words of its own, one of them in both."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "corpus").mkdir()
    random = np.random.default_rng(3)
    words = ["cat", "dog", "hill", "river", "tree", "stone", "bird", "cloud"]
    for name, numbers in (("a", range(30)), ("b", range(29, 59))):
        lines = []
        for number in numbers:
            draw = np.random.default_rng(number)
            sentences = [f"The {' '.join(draw.choice(words, 4))} number {number} part {part}." for part in range(8)]
            lines.append(json.dumps({"text": " ".join(sentences)}) + "\n")
        lines.insert(int(random.integers(len(lines))), '{"text": "short"}\n')
        (folder / "corpus" / f"{name}.jsonl").write_text("".join(lines))
    return write_run(folder / "run", folder / "corpus")


@pytest.fixture(scope="module")
def steps(run: RunDir) -> list[Step]:
    """Every step with its documents."""
    return [with_documents(rows_of_step(run, step), run.shards) for step in range(1, STEPS + 1)]


def test_the_rows_are_those_that_training_reads(run: RunDir, steps: list[Step]) -> None:
    dataset = SampleDataset(run.samples)
    for step in steps:
        numbers = order.rows_of_step(dataset.manifests[0], 0, ROWS, step.number - 1)
        assert [row.number for row in step.rows] == numbers.tolist()
        for row, ids in zip(step.rows, dataset.take(numbers)["input_ids"], strict=True):
            shown = [t for q in row.sequences for segment in q.segments for t in segment.tokens.tolist()]
            assert shown == [token for token in ids.tolist() if token > 4 or token == 1]


def test_b_follows_in_the_same_document_or_is_of_another(steps: list[Step]) -> None:
    seen = set()
    for sequence in (sequence for step in steps for row in step.rows for sequence in row.sequences):
        first = {(place.shard, place.document) for place in sequence.first.places}
        assert first
        if sequence.second is not None:
            second = {(place.shard, place.document) for place in sequence.second.places}
            assert second
            assert bool(first & second) == sequence.follows
        seen.add(sequence.follows)
    assert seen >= {True, False}


def test_the_lines_hold_the_documents(run: RunDir, steps: list[Step]) -> None:
    lines = find_lines(steps[0], run.shards)
    assert lines
    for text, places in lines.items():
        for place in places:
            path, _, rest = place.partition(".jsonl:")
            line = Path(f"{path}.jsonl").read_text().splitlines()[int(rest.partition(":")[0]) - 1]
            assert json.loads(line)["text"] == text
    all_lines = {text: places for step in steps for text, places in find_lines(step, run.shards).items()}
    twice = [text for text, places in all_lines.items() if len(places) == 2]
    assert all("number 29 " in text for text in twice)


def test_an_input_that_is_gone_is_noted(run: RunDir, steps: list[Step], tmp_path: Path) -> None:
    notes: list[str] = []
    progress = type("Notes", (), {"note": lambda _, message: notes.append(message), "update": lambda *_, **__: None})()
    path = run.root.parent / "corpus" / "b.jsonl"
    path.rename(tmp_path / "b.jsonl")
    try:
        lines = find_lines(steps[0], run.shards, progress)
    finally:
        (tmp_path / "b.jsonl").rename(path)
    assert notes == [f"{path}: is not there any more, so its lines are not known"]
    assert all("b.jsonl" not in place for places in lines.values() for place in places)


def test_rows_that_are_left_out_move_the_steps_after_them(run: RunDir) -> None:
    state = run.pretrain / "checkpoints" / "step-00000004" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"left_out": [[2, 64, 2 * ROWS]]}))
    try:
        before, after = rows_of_step(run, 3, left_out=True), rows_of_step(run, 3)
        assert rows_of_step(run, 2).rows[0].number == rows_of_step(run, 1).rows[0].number + ROWS
        assert [row.number for row in after.rows] == [row.number + 2 * ROWS for row in before.rows]
        assert after.skipped_rows == 2 * ROWS
        with pytest.raises(ConfigError, match="left out no rows that step 2 had read"):
            rows_of_step(run, 2, left_out=True)
    finally:
        state.unlink()


@pytest.mark.parametrize("step", [0, STEPS + 1])
def test_a_step_that_is_not_is_refused(run: RunDir, step: int) -> None:
    with pytest.raises(ConfigError, match="this training has the steps 1 to 6"):
        rows_of_step(run, step)


def test_other_text_shards_are_refused(run: RunDir, steps: list[Step], tmp_path: Path) -> None:
    other = write_run(tmp_path / "run", run.root.parent / "corpus" / "a.jsonl")
    with pytest.raises(ArtifactError, match="other text shards"):
        with_documents(steps[0], other.shards)


def test_rows_mixed_over_all_shards_are_found_in_any(run: RunDir, tmp_path: Path) -> None:
    mixed = write_run(tmp_path / "run", run.root.parent / "corpus", shuffle="global")
    steps = [with_documents(rows_of_step(mixed, step), mixed.shards) for step in range(1, STEPS + 1)]
    rows = [row for step in steps for row in step.rows]
    places = [segment.places for row in rows for s in row.sequences for segment in s.segments]
    assert all(places)
    assert len({place.shard for found in places for place in found}) == 2


def test_the_command_shows_it_as_text_and_json(
    run: RunDir, steps: list[Step], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def shown(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["kexue", "rows", str(run.root), "--step", "1", *options])
        monkeypatch.setenv("MIMALLOC_PURGE_DELAY", "10000")
        monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")
        capfd.readouterr()
        with pytest.raises(SystemExit):
            cli.main()
        return capfd.readouterr().out

    text = shown("--lines")
    assert text.startswith(f"step 1: 4 rows of {run.samples}\nrow ")
    assert "B, follows: " in text or "B, from another document: " in text
    assert ".jsonl:" in text
    values = json.loads(shown("--documents", "--json"))
    assert [row["row"] for row in values["rows"]] == [row.number for row in steps[0].rows]
    assert all(s["documents"] for row in values["rows"] for q in row["sequences"] for s in q["segments"])
