"""Tasks as YAML: the known ones, one's own, and what is refused."""

from __future__ import annotations

import pytest

from kexue_train.downstream.finetune.harness import make_problem
from kexue_train.downstream.finetune.tasks.task import (
    KINDS,
    ChoiceTask,
    ClassificationTask,
    ReadingTask,
    TaggingTask,
    load_supervised_tasks,
    parse_supervised_task,
)
from kexue_train.downstream.sequences import Reader
from kexue_train.downstream.task_files import read_catalogue
from kexue_train.foundation.errors import ConfigError
from tests.downstream.evaluate.zero_shot.tiny_models import make_tokenizer

KNOWN = read_catalogue("kexue_train.downstream.finetune.tasks", "nlu.yaml", parse_supervised_task)


@pytest.mark.parametrize(
    ("kind", "max_length", "records_per_step", "epochs"),
    [
        (ClassificationTask, 128, 32, 10),
        (TaggingTask, 256, 32, 10),
        (ReadingTask, 512, 32, 10),
        (ChoiceTask, 512, 16, 10),
    ],
)
def test_defaults_are_those_of_roformer_v2(kind, max_length, records_per_step, epochs):
    fields = {name: field.default for name, field in kind.model_fields.items()}
    assert (fields["max_length"], fields["batch_size"], fields["epochs"]) == (max_length, records_per_step, epochs)
    assert ReadingTask.model_fields["stride"].default == 128


def test_there_are_known_tasks_of_every_kind():
    assert {task.kind for task in KNOWN.values()} == set(KINDS)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_task_has_its_files(name, shared_data):
    task = KNOWN[name]
    folder = shared_data / ("sts" if task.kind == "similarity" else "nlu")
    assert all((folder / path).is_file() for path in (task.train, task.dev, task.test) if path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["finre", "trec", "cluener", "resume_ner", "snips_slots", "wnut17", "cmrc2018", "xquad_en", "c3"]
)
def test_every_form_of_record_can_be_read(name, shared_data, tmp_path):
    reader = Reader(make_tokenizer(tmp_path), max_length=64)
    problem, splits = make_problem(KNOWN[name], shared_data / "nlu", reader, max_train=50, max_eval=20)
    assert problem.num_examples >= 20
    assert {len(records) for records in splits.scored.values()} == {20}


def test_a_file_of_ones_own_and_a_known_name_together(tmp_path):
    (tmp_path / "my.yaml").write_text("mine: {title: t, kind: classification, train: a.jsonl, text: '{subject}'}")
    tasks = load_supervised_tasks([str(tmp_path / "my.yaml"), "c3"])
    assert list(tasks) == ["mine", "c3"]
    assert tasks["mine"].text == "{subject}"


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("mine: 3", "'mine' has no 'kind'; expected a task of kind classification, tagging, reading, choice"),
        ("mine: {kind: clasification}", "the kind 'clasification'"),
        ("mine: {title: t, kind: choice}", "'train' is missing"),
        ("mine: {title: t, kind: tagging, train: a, text: b, tokens: c}", "one of the two"),
        ("mine: {title: t, kind: tagging, train: a}", "one of the two"),
        ("mine: {title: t, kind: classification, train: a, labels: [b]}", "at least two labels"),
        ("mine: {title: t, kind: classification, train: a, labels: [b, b]}", "each once"),
        ("mine: {title: t, kind: reading, train: a, scoring: bleu}", "'squad', 'squad_zh' or 'cmrc'"),
        (
            "mine:\n  title: t\n  kind: reading\n  train: a\n  strid: 3",
            ":5: unknown key 'strid', did you mean 'stride'?",
        ),
    ],
)
def test_a_wrong_task_is_refused_by_line_and_key(yaml, words, tmp_path):
    (tmp_path / "my.yaml").write_text(yaml)
    with pytest.raises(ConfigError) as caught:
        load_supervised_tasks([str(tmp_path / "my.yaml")])
    assert words in str(caught.value)


def test_unknown_names_and_no_names_are_refused():
    with pytest.raises(ConfigError, match="no task 'trek'; give a YAML file, or one of chnsenti_hotel"):
        load_supervised_tasks(["trek"])
    with pytest.raises(ConfigError, match="no task is chosen"):
        load_supervised_tasks([])
