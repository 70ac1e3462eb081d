"""Whole evaluations with models whose right answers are known."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kexue_train.downstream.evaluate.zero_shot import evaluate_tasks
from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import evaluate_zero_shot, mean_accuracies
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask, load_zero_shot_tasks
from kexue_train.downstream.results.zero_shot import ZeroShotResults, ZeroShotTaskResult
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, load_knowing, make_bert

NUMBER = 240
LETTERS = "abcdefgh"


def task(**values: object) -> ZeroShotTask:
    common = {"title": "which letter?", "text": "x {sentence}", "prompt": "it is {label}", "answer": "letter"}
    return ZeroShotTask.parse(common | values, where="test")


TASKS = {
    "letters": task(test="letters.json", labels={letter: f"the{letter}" for letter in LETTERS}),
    "suffix": task(test="letters.json", labels={letter: f"the{letter}" for letter in LETTERS}, order="suffix"),
    "own": task(test="letters.json", candidates="choices", answer="place", prompt="it is the{label}"),
    "blank": task(
        test="letters.json", candidates="choices", answer="place", prompt="it is the{label}",
        text="{sentence} _ end", blank="_",
    ),
    "size": task(
        test="size.json", dev="size_dev.json", contrast="samples", text="x {sentence}", prompt="y",
        answer="size", labels={"0": "small", "1": "medium", "2": "large"},
    ),
}  # fmt: skip


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences that say their letter, and sentences whose size is how many q they hold; every label equally often."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(3)
    letters = np.repeat(list(LETTERS), NUMBER // len(LETTERS))
    random.shuffle(letters)
    records = []
    for number, letter in enumerate(letters.tolist()):
        choices = random.permutation(list(LETTERS))[:3].tolist()
        choices = choices if letter in choices else [*choices[:2], letter]
        record = {"sentence": f"no{number} says{letter}", "letter": letter, "choices": choices}
        records.append(record | {"place": choices.index(letter)})
    write_lines(folder / "letters.json", records)
    for name, number in (("size.json", NUMBER), ("size_dev.json", 30)):
        sizes = np.repeat([0, 1, 2], number // 3).tolist()  # sorted by label, as some files are
        write_lines(
            folder / name, [{"sentence": f"no{i} " + "q" * (3 * s + i % 3), "size": s} for i, s in enumerate(sizes)]
        )
    return folder


def knows(first: str, second: str) -> float:
    """Whether the pair says the same letter; how many q there are, if it is about sizes."""
    pair = first + second
    if "says" not in pair:
        return float(pair.count("q"))
    return 5.0 if f"the{pair[pair.index('says') + 4]}" in pair else -5.0


Evaluate = Callable[..., ZeroShotResults]


@pytest.fixture
def evaluate(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    def run(
        log_odds: Callable[[str, str], float], tasks: dict[str, ZeroShotTask] = TASKS, folder: Path = data
    ) -> ZeroShotResults:
        monkeypatch.setitem(evaluate_tasks._LOAD, "nsp", lambda _path: load_knowing(tmp_path, log_odds))
        return evaluate_zero_shot(tmp_path, folder, tasks, methods=["nsp"])

    return run


def accuracies(results: ZeroShotResults) -> dict[tuple[str, str], float]:
    return {(task.task, score.decision): score.accuracy for task in results.tasks for score in task.scores}


def test_a_model_that_knows_answers_everything_right(evaluate):
    found = accuracies(evaluate(knows))
    assert found == {
        ("letters", "candidates"): 1.0, ("suffix", "candidates"): 1.0, ("own", "candidates"): 1.0,
        ("blank", "candidates"): 1.0, ("size", "thresholds"): 1.0, ("size", "transductive"): 1.0,
    }  # fmt: skip


def test_a_model_that_guesses_is_at_chance(evaluate):
    random = np.random.default_rng(0)
    results = evaluate(lambda _first, _second: float(random.normal()))
    for result in results.tasks:
        margin = 5 * math.sqrt(result.chance * (1 - result.chance) / NUMBER)
        assert [score.accuracy for score in result.scores] == pytest.approx(
            [result.chance] * len(result.scores), abs=margin
        )
    assert {result.task: result.chance for result in results.tasks} == {
        "letters": 1 / 8, "suffix": 1 / 8, "own": pytest.approx(1 / 3), "blank": pytest.approx(1 / 3), "size": 1 / 3,
    }  # fmt: skip


def test_a_model_with_flipped_classes_is_always_wrong(evaluate):
    found = accuracies(evaluate(lambda first, second: -knows(first, second)))
    assert {value for (name, _), value in found.items() if name != "size"} == {0.0}
    assert found["size", "transductive"] == pytest.approx(1 / 3)  # the middle third stays in the middle


def test_a_model_that_says_the_same_of_all_is_at_chance_though_the_file_is_sorted(evaluate):
    found = accuracies(evaluate(lambda _first, _second: 1.0))
    assert found["size", "transductive"] == pytest.approx(1 / 3, abs=5 * math.sqrt(2 / 9 / NUMBER))
    assert found["size", "thresholds"] == pytest.approx(1 / 3)  # all in the top part


def test_only_samples_contrast_assumes_something_and_says_so(evaluate):
    [size] = [result for result in evaluate(knows).tasks if result.task == "size"]
    assert [score.decision for score in size.scores] == ["thresholds", "transductive"]
    assert all("equally frequent" in score.assumption for score in size.scores)
    assert size.scores[1].predicted == {"0": 80, "1": 80, "2": 80}
    assert {score.assumption for score in evaluate(knows, {"letters": TASKS["letters"]}).tasks[0].scores} == {None}


BROKEN = {
    "no_file": (task(test="none.json", labels={"a": "x", "b": "y"}), r"none\.json: cannot be read"),
    "no_labels": (task(test="letters.json", labels_file="labels.txt"), r"labels\.txt: the file of labels cannot be"),
    "unknown": (
        task(test="letters.json", labels={letter: letter for letter in "abcdefg"}),
        r"letters\.json:\d+: letter='h' is not a known label \(in 30 records the label is unknown\); the labels are a",
    ),
    "no_answer": (
        task(test="letters.json", labels={"a": "x", "b": "y"}, answer="label"),
        r"letters\.json:1: no value 'label'; the record has sentence, letter",
    ),
    "empty": (task(test="empty.json", labels={"a": "x", "b": "y"}), r"empty\.json: holds no record"),
    "no_key": (
        task(test="letters.json", labels={letter: letter for letter in LETTERS}, text="{words}"),
        r"letters\.json:1: no value 'words'",
    ),
}  # fmt: skip


def test_a_task_that_fails_says_why_and_hides_no_other(evaluate, data):
    (data / "empty.json").write_text("\n")
    tasks = {name: broken for name, (broken, _) in BROKEN.items()}
    results = evaluate(knows, {"letters": TASKS["letters"], **tasks, "size": TASKS["size"]})
    found = {result.task: result for result in results.tasks}
    assert (found["letters"].scores[0].accuracy, found["size"].scores[0].accuracy) == (1.0, 1.0)
    for name, (_, message) in BROKEN.items():
        [failure] = found[name].failures
        assert re.search(message, failure.error)
    assert results.means == {}


def test_a_missing_dev_set_costs_only_the_thresholds(evaluate, data):
    few = {"sentence": "q", "size": 0}
    write_lines(data / "few.json", [few, few])
    without = {
        "none": TASKS["size"].model_copy(update={"dev": None}),
        "missing": TASKS["size"].model_copy(update={"dev": "none.json"}),
        "few": TASKS["size"].model_copy(update={"dev": "few.json"}),
    }
    results = evaluate(knows, without)
    assert [[score.decision for score in result.scores] for result in results.tasks] == [["transductive"]] * 3
    errors = [result.failures[0].error for result in results.tasks]
    assert "the task names no dev file" in errors[0]
    assert "none.json: cannot be read" in errors[1]
    assert "few.json: 2 records cannot be cut into 3 parts" in errors[2]


def test_a_lack_of_memory_in_one_task_hides_no_other(evaluate):
    def fails(first: str, second: str) -> float:
        if "q" in first + second:
            raise RuntimeError("CUDA out of memory")
        return knows(first, second)

    results = evaluate(fails, {"size": TASKS["size"], "letters": TASKS["letters"]})
    assert results.tasks[0].failures[0].error == "CUDA out of memory"
    assert results.tasks[1].scores[0].accuracy == 1.0


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(EvaluationError, match="none: no such folder"):
        evaluate_zero_shot(tmp_path, tmp_path / "none", TASKS)


@pytest.mark.parametrize("make", [make_bert, export_roformer])
def test_a_real_model_answers_by_both_methods_and_the_file_is_read_back(make, data, tmp_path):
    pet = {"text": "it is [MASK] {sentence}", "labels": {letter: letter for letter in LETTERS}}
    tasks = {"letters": task(test="letters.json", labels=TASKS["letters"].labels, pet=pet), "size": TASKS["size"]}
    results = evaluate_zero_shot(make(tmp_path / "hf"), data, tasks, max_length=16)
    letters, size = results.tasks
    assert [(score.method, score.decision) for score in letters.scores] == [
        ("nsp", "candidates"),
        ("pet", "candidates"),
    ]
    assert [score.method for score in size.scores] == ["nsp", "nsp"]
    assert all(sum(score.predicted.values()) == result.records for result in results.tasks for score in result.scores)
    assert letters.readings[0].cut > 0
    assert ZeroShotResults.model_validate_json(results.model_dump_json()) == results
    assert (results.schema_version, results.max_length) == (1, 16)


def test_inputs_are_no_longer_than_the_model_was_made_for(data, tmp_path):
    folder = make_bert(tmp_path / "hf", max_position_embeddings=20)
    results = evaluate_zero_shot(folder, data, {"letters": TASKS["letters"]}, methods=["nsp"])
    assert results.max_length == 20


def published_results() -> list[ZeroShotTaskResult]:
    return [
        ZeroShotTaskResult(task=name, title="", published={key: value / 100 for key, value in task.published.items()})
        for name, task in load_zero_shot_tasks().items()
    ]


def test_means_of_the_published_columns_are_those_of_the_paper():
    assert mean_accuracies(published_results())["NSP-BERT"] == pytest.approx(0.5596, abs=1e-4)


def test_the_table_has_a_row_per_task_and_notes_on_what_to_know(evaluate):
    results = evaluate(knows, TASKS | {"unknown": BROKEN["unknown"][0]})
    [table] = results.tables()
    assert table.header == ["task", "records", "chance", "NSP", "NSP\ntransductive"]
    rows = table.rows
    assert rows[0] == ["letters", "240", "12.5", "100.0", ""]
    assert rows[-2] == ["unknown", "0", "", "", ""]
    assert rows[-1] == ["mean", "", "", "", ""]
    units, failed, *assumed = results.notes()
    assert units == "Accuracy in percent."
    assert failed.startswith("unknown: no score: ")
    assert [note.partition(":")[0] for note in assumed] == ["thresholds", "transductive"]
