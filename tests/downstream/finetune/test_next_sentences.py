"""A few records learnt by the head of next sentences, and the controls."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import TaskData
from kexue_train.downstream.evaluate.zero_shot.questions import Questions, next_sentence_questions
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask, load_zero_shot_tasks
from kexue_train.downstream.finetune.next_sentences.controls import permute_prompts
from kexue_train.downstream.finetune.next_sentences.problem import Asked, NextSentenceProblem
from kexue_train.downstream.finetune.next_sentences.tune_tasks import tune_next_sentences
from kexue_train.downstream.results.few_shot import FewShotResults
from kexue_train.downstream.results.files import read_result
from kexue_train.downstream.settings import FewShotSettings
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import load_knowing, make_bert
from tests.downstream.finetune.tasks.tiny_tasks import letters, write_records

COMMON = {"title": "which letter?", "text": "{sentence}", "answer": "label", "order": "prefix"}
FILES = {"test": "letter/test.jsonl", "few_shot": {"train": "letter/{split}.jsonl", "dev": "letter/dev.jsonl"}}
LETTER = COMMON | FILES | {"labels": {"yes": "x", "no": "y"}, "prompt": "z {label}"}
OWN = COMMON | FILES | {"candidates": "choices", "answer": "place", "prompt": "{label}", "blank": None}
PAIR = COMMON | {
    "labels": {"0": "no", "1": "some", "2": "yes"}, "contrast": "samples", "prompt": "{other}",
    "test": "pair/test.jsonl", "dev": "pair/dev.jsonl", "answer": "grade",
    "few_shot": {"train": "pair/few.jsonl", "dev": "pair/dev.jsonl", "published": {"Someone": 71.5}},
}  # fmt: skip


def task(values, **others):
    return ZeroShotTask.parse(values | others, where="test")


def says_a_letter(random):
    """Label ``yes`` if the text begins with an x; its place among two or three choices of its own."""
    label = str(random.choice(["yes", "no"]))
    choices = ["x", "y", "q"][: int(random.integers(2, 4))]
    text = ["x" if label == "yes" else "y", *letters(random, 3)]
    return {"sentence": " ".join(text), "label": label, "choices": choices, "place": int(label == "no")}


def grades(random):
    """Grade k has k letters x in the other text."""
    grade = int(random.integers(0, 3))
    other = ["x"] * grade + letters(random, 2 - grade)
    return {"sentence": "a", "other": " ".join(other), "grade": grade}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("few_shot")
    make_bert(root / "model", "BertForPreTraining", initializer_range=0.1, hidden_dropout_prob=0.0)
    for number, (name, make) in enumerate({"letter": says_a_letter, "pair": grades}.items()):
        for part, (split, size) in enumerate({"few_all": 120, "few": 90, "0": 16, "dev": 30, "test": 80}.items()):
            random = np.random.default_rng([number, part])
            write_records(root / name / f"{split}.jsonl", [make(random) for _ in range(size)])
    same = [{"sentence": f"x {i}", "label": "yes"} for i in range(8)]
    write_records(root / "letter" / "same.jsonl", same)
    write_records(root / "letter" / "empty.jsonl", [])
    return root


def settings(**values):
    fit = {"lr": 5e-2, "epochs": 8, "batch_size": 8} | values.pop("fit", {})
    return FewShotSettings.parse({"seeds": 1, "max_length": 32, "fit": fit, **values}, where="test")


def make_problem(folder, tmp_path, values, split="few", log_odds=lambda _first, _second: 0.0):
    """A problem on the training records alone, for a model that says what ``log_odds`` says."""
    one = task(values)
    path = one.few_shot.train.replace("{split}", split)
    data = TaskData.read(one.model_copy(update={"test": path}), folder)
    questions = next_sentence_questions(one, data.records, data.labels)
    loaded = load_knowing(tmp_path, log_odds)
    asked = {"train": Asked(questions, data.answers)}
    return NextSentenceProblem.make(one, loaded, len(data.names), 32, asked), data


def odds(first, second):
    """Some number for every pair."""
    return (sum(map(ord, first)) * 7 + sum(map(ord, second)) * 3) % 11 / 4 - 1.3


def cross_entropy(odd, target):
    probability = 1 / (1 + np.exp(-odd))
    return -target * np.log(probability) - (1 - target) * np.log(1 - probability)


def test_every_prompt_of_a_record_is_learnt_the_right_one_as_next(folder, tmp_path):
    problem, data = make_problem(folder, tmp_path, LETTER, log_odds=odds)
    places = np.array([3, 0, 11])
    expected = [
        cross_entropy(odds(f"z{word}", data.records[place].text("sentence").replace(" ", "")), label == name)
        for place in places
        for name, word in {"yes": "x", "no": "y"}.items()
        for label in [data.records[place].text("label")]
    ]
    assert problem.loss(problem.loaded.model, places).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_candidates_of_ones_own_are_learnt_where_there_are_any(folder, tmp_path):
    problem, data = make_problem(folder, tmp_path, OWN, log_odds=odds)
    expected = [
        cross_entropy(odds(word, record.text("sentence").replace(" ", "")), number == record.value("place"))
        for record in data.records[:5]
        for number, word in enumerate(record.value("choices"))
    ]
    assert problem.loss(problem.loaded.model, np.arange(5)).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_grade_is_learnt_as_a_probability_and_answered_by_the_nearest(folder, tmp_path):
    problem, data = make_problem(folder, tmp_path, PAIR, log_odds=odds)
    expected = [
        cross_entropy(odds(record.text("other").replace(" ", ""), "a"), record.value("grade") / 2)
        for record in data.records[:6]
    ]
    assert problem.loss(problem.loaded.model, np.arange(6)).item() == pytest.approx(np.mean(expected), rel=1e-5)
    found = SimpleNamespace(scores=np.array([[-900.0], [-1.2], [-1.0], [1.0], [1.2], [900.0]]))
    assert problem.answer(found).tolist() == [0, 0, 1, 1, 2, 2]


def test_permuted_prompts_are_the_same_ones_elsewhere():
    labels = Questions([("a", "", "")] * 300, ["p", "q", "r"], np.tile([0, 1, 2], (300, 1)))
    labels.prompt_of[100:, 2] = -1
    found = permute_prompts(labels).prompt_of
    assert (np.sort(found) == np.sort(labels.prompt_of)).all()
    assert (found[100:, 2] == -1).all()
    assert abs((found[:, 0] == 0).mean() - (1 / 3 + 2 * 1 / 2) / 3) < 0.09
    assert (permute_prompts(labels).prompt_of == found).all()
    single = Questions([("a", "", "")] * 50, list(map(str, range(50))), np.arange(50)[:, None])
    moved = permute_prompts(single).prompt_of[:, 0]
    assert sorted(moved.tolist()) == list(range(50))
    assert (moved == np.arange(50)).mean() < 0.2


def knows(first, second):
    """Likely if the prompt names the letter that the text begins with; for grades the number of letters x, centred."""
    if not first.startswith("z"):
        return 4.0 * (first.count("x") - 1)
    return 5.0 if second.startswith(first[1]) else -5.0


@pytest.mark.parametrize(("values", "chance", "number"), [(LETTER, 1 / 2, 120), (PAIR, 1 / 3, 90)])
def test_a_model_that_knows_is_right_and_falls_to_chance_with_permuted_prompts(
    folder, tmp_path, values, chance, number
):
    problem, data = make_problem(folder, tmp_path, values, split="few_all", log_odds=knows)
    asked = problem.asked["train"]
    assert len(data.records) == number
    found = [problem.answer(problem.ask(problem.loaded.model, questions)) for questions in
             (asked.questions, permute_prompts(asked.questions))]  # fmt: skip
    assert (found[0] == asked.answers).all()
    assert near_chance((found[1] == asked.answers).mean(), chance, number)


def near_chance(share, chance, number):
    return abs(share - chance) < 4 * (chance * (1 - chance) / number) ** 0.5


def test_what_is_learnt_falls_to_chance_with_permuted_prompts(folder):
    results = tune_next_sentences(folder / "model", folder, {"letter": task(LETTER), "pair": task(PAIR)}, settings())
    letter, pair = results.tasks
    assert letter.failures + pair.failures == []
    assert letter.records == {"train": 120, "dev": 30, "test": 80}
    assert (letter.split, pair.split, letter.zero_shot.decision, pair.zero_shot.decision) == (
        "few_all", None, "candidates", "thresholds",
    )  # fmt: skip
    assert letter.after["test"]["accuracy"].mean > 0.95
    assert pair.after["test"]["accuracy"].mean > 0.8
    assert near_chance(letter.permuted.zero_shot, 1 / 2, 80)
    assert near_chance(letter.permuted.tuned, 1 / 2, 80)
    assert near_chance(pair.permuted.tuned, 1 / 3, 80)
    assert pair.permuted.zero_shot is None


def test_seeds_repeat_to_the_bit_and_differ_and_both_tasks_are_told(folder):
    tasks = {"lost": task(LETTER, few_shot={"train": "nowhere", "dev": "nowhere"}), "pair": task(PAIR)}
    chosen = settings(seeds=2, max_eval=20, fit={"epochs": 1, "dropout": 0.1})
    first, again = (tune_next_sentences(folder / "model", folder, tasks, chosen) for _ in range(2))
    assert first == again
    lost, pair = first.tasks
    assert "nowhere" in lost.failures[0].error
    assert pair.runs[0].losses != pair.runs[1].losses
    assert pair.records["test"] == 20
    assert first.scores()[0].value == pair.after["test"]["accuracy"].mean
    assert pair.published == {"Someone": 0.715}


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (LETTER | {"few_shot": None}, {}, "names no records to learn from"),
        (LETTER, {"split": "same"}, "every record has the label 'yes'"),
        (LETTER, {"split": "empty"}, "holds no record"),
        (LETTER, {"split": "17"}, "letter/17.jsonl: cannot be read"),
        (PAIR, {"split": "0"}, "one training file only; leave out --split 0"),
    ],
)
def test_what_cannot_be_learnt_is_refused(folder, values, options, words):
    [result] = tune_next_sentences(folder / "model", folder, {"t": task(values)}, settings(**options)).tasks
    assert words in result.failures[0].error
    assert result.runs == []


def test_a_damaged_training_is_a_failure_of_its_seed(folder):
    chosen = settings(fit={"lr": 1e20, "epochs": 1})
    [result] = tune_next_sentences(folder / "model", folder, {"t": task(LETTER)}, chosen).tasks
    assert [failure.what for failure in result.failures] == ["seed 0"]
    assert result.zero_shot is not None


def test_the_command_writes_shows_and_saves(folder, tmp_path):
    (tmp_path / "my.yaml").write_text(json.dumps({"pair": PAIR}))
    out = tmp_path / "few_shot.json"
    command = ["finetune", "nsp", str(folder / "model"), str(folder), "--task", str(tmp_path / "my.yaml")]
    options = ["-o", str(out), "--seeds", "1", "--epochs", "1", "--max-eval", "30", "--save", str(tmp_path / "saved")]
    ended = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    results = read_result(out)
    assert isinstance(results, FewShotResults)
    jsonschema.validate(json.loads(out.read_text()), FewShotResults.model_json_schema())
    rows = [line.split() for line in ended.stdout.splitlines() if line.startswith("pair ")]
    assert rows[0][1:4] == ["90", "30", "33.3"]
    assert rows[1] == ["pair", "71.5"]
    from transformers import AutoModelForNextSentencePrediction

    saved = AutoModelForNextSentencePrediction.from_pretrained(tmp_path / "saved" / "pair")
    given = AutoModelForNextSentencePrediction.from_pretrained(folder / "model")
    assert not torch.equal(saved.cls.seq_relationship.weight, given.cls.seq_relationship.weight)
    with pytest.raises(EvaluationError, match="no such folder"):
        tune_next_sentences(folder / "model", folder / "nowhere", {}, settings())


def test_the_nine_tasks_have_splits_and_the_published_means():
    tasks = load_zero_shot_tasks()
    means = {
        name: np.mean([one.few_shot.published[name] for one in tasks.values()])
        for name in ("PET", "P-tuning", "LM-BFF", "EFL", "ADAPET", "fine-tuned BERT", "fine-tuned RoBERTa", "human")
    }
    assert {name: round(mean, 1) for name, mean in means.items()} == {
        "PET": 57.4, "P-tuning": 59.9, "LM-BFF": 55.8, "EFL": 56.5, "ADAPET": 50.9, "fine-tuned BERT": 39.3,
        "fine-tuned RoBERTa": 42.8, "human": 82.5,
    }  # fmt: skip
    assert all("{split}" in path for one in tasks.values() for path in (one.few_shot.train, one.few_shot.dev))
