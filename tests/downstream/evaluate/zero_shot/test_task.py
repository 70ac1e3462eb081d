from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import TaskData
from kexue_train.downstream.evaluate.zero_shot.questions import (
    masked_word_questions,
    next_sentence_questions,
    read_labels,
)
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask, load_zero_shot_tasks
from kexue_train.foundation.errors import ConfigError, EvaluationError

MINE = """
mine:
  title: which letter?
  test: mine.json
  labels: {A: aa, B: bb}
  text: "{sentence}"
  prompt: it is {label}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_means_are_those_of_the_table():
    tasks = load_zero_shot_tasks()
    means = {name: np.mean([task.published[name] for task in tasks.values()]) for name in ("NSP-BERT", "PET-zero")}
    assert means == {"NSP-BERT": pytest.approx(55.96, abs=0.01), "PET-zero": pytest.approx(45.10, abs=0.01)}


def test_the_nine_tasks_have_the_published_numbers_of_labels():
    sizes = {name: len(task.labels) for name, task in load_zero_shot_tasks().items()}
    assert sizes == {
        "eprstmt": 2, "csldcp": 0, "tnews": 15, "iflytek": 119, "ocnli": 3, "bustm": 2, "csl": 2,
        "chid": 0, "cluewsc": 2,
    }  # fmt: skip
    assert len(load_zero_shot_tasks()["csldcp"].pet.labels) == 67


def test_samples_contrast_is_for_the_tasks_of_the_paper():
    assert {name for name, task in load_zero_shot_tasks().items() if task.contrast == "samples"} == {
        "ocnli", "bustm", "csl", "cluewsc",
    }  # fmt: skip
    assert {name for name, task in load_zero_shot_tasks().items() if task.order == "suffix"} == {
        "csl",
        "chid",
        "cluewsc",
    }


def test_words_for_masks_are_equally_long_and_all_different():
    patterns = {name: task.pet.labels or task.labels for name, task in load_zero_shot_tasks().items() if name != "chid"}
    assert all(len({len(word) for word in words.values()}) == 1 for words in patterns.values())
    assert all(len(set(words.values())) == len(words) for words in patterns.values())


def test_tasks_of_ones_own_stand_beside_the_built_in_ones(tmp_path):
    tasks = load_zero_shot_tasks(["tnews", str(write(tmp_path, MINE))])
    assert list(tasks) == ["tnews", "mine"]
    assert tasks["mine"].labels == {"A": "aa", "B": "bb"}


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="no task 'tnew'; give a YAML file, or one of eprstmt, csldcp"):
        load_zero_shot_tasks(["tnew"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompt:", "promt:", r"my\.yaml, mine:7: unknown key 'promt', did you mean 'prompt'\?"),
        ("  title: which letter?\n", "", r"my\.yaml, mine: 'title' is missing"),
        (" {label}", "", r"holds no \{label\}, so it is the same for all labels"),
        ("{sentence}", "{label}", r"my\.yaml, mine:6: text=.*belongs in the prompt"),
        ("labels: {A: aa, B: bb}", "answer: x", "give one of labels, labels_file and candidates; found none"),
        ("labels: {A: aa, B: bb}", "labels: {A: aa, A: bb}", r"my\.yaml:5.*key 'A' is given twice"),
        ("labels: {A: aa, B: bb}", "labels: {A: aa}", "a choice needs at least two"),
        ("labels: {A: aa, B: bb}", "labels: {A: aa, B: bb}\n  candidates: c", "found labels, candidates"),
        ("prompt: it", "contrast: samples\n  prompt: it", "one prompt per record"),
        ("text:", "pet: {text: 'x [MASK]', labels: {A: a, C: c}}\n  text:", "pet.labels and labels differ in B, C"),
    ],
)
def test_a_wrong_task_is_refused_by_line_and_key(old, new, message, tmp_path):
    assert old in MINE
    with pytest.raises(ConfigError, match=message):
        load_zero_shot_tasks([str(write(tmp_path, MINE.replace(old, new, 1)))])


@pytest.mark.parametrize(("text", "message"), [("{}", "holds no task"), ("mine: 3", "my.yaml:1: 'mine' is not a task")])
def test_a_file_without_tasks_is_refused(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_zero_shot_tasks([str(write(tmp_path, text))])


def labels_file_task(**values):
    given = {"title": "t", "test": "t.json", "labels_file": "labels.txt", "text": "{a}", "prompt": "{label}"}
    return ZeroShotTask.parse(given | values, where="test")


def test_labels_come_from_a_file_one_per_line(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeff体育\r\n财经\n\n".encode())
    assert read_labels(labels_file_task(), tmp_path) == {"体育": "体育", "财经": "财经"}


def test_a_missing_or_empty_file_of_labels_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"labels\.txt: the file of labels cannot be read"):
        read_labels(labels_file_task(), tmp_path)
    (tmp_path / "labels.txt").write_text("one\n")
    with pytest.raises(EvaluationError, match=r"labels\.txt: holds 1 labels"):
        read_labels(labels_file_task(), tmp_path)


TO_LEARN_FROM = [("train", "0"), ("dev", "0"), ("train", "few_all"), ("dev", "few_all")]


@pytest.fixture(scope="module")
def fewclue(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with tarfile.open(shared_data / "fewclue" / "fewclue.tar.gz") as archive:
        kept = ["test_public.json", "labels_all.txt", *(f"{use}_{split}.json" for use, split in TO_LEARN_FROM)]
        members = [member for member in archive if Path(member.name).name in kept]
        archive.extractall(folder, members, filter="data")
    return folder / "fewclue"


@pytest.mark.parametrize(
    ("name", "records", "labels"),
    [
        ("eprstmt", 610, 2), ("csldcp", 1784, 67), ("tnews", 2010, 15), ("iflytek", 1749, 119), ("ocnli", 2520, 3),
        ("bustm", 1772, 2), ("csl", 2838, 2), ("chid", 2002, 7), ("cluewsc", 976, 2),
    ],
)  # fmt: skip
def test_every_record_of_fewclue_becomes_a_question_with_a_known_answer(name, records, labels, fewclue):
    task = load_zero_shot_tasks()[name]
    data = TaskData.read(task, fewclue)
    assert (len(data.records), len(data.names)) == (records, labels)
    asked = next_sentence_questions(task, data.records, data.labels)
    assert asked.prompt_of.shape == (records, 1 if task.contrast == "samples" else labels)
    assert len(masked_word_questions(task, data.records, data.labels).texts) == records
    assert data.chance == pytest.approx(1 / labels)


@pytest.mark.parametrize("name", load_zero_shot_tasks())
def test_every_split_of_fewclue_can_be_learnt_from(name, fewclue):
    task = load_zero_shot_tasks()[name]
    sizes = {}
    for use, split in TO_LEARN_FROM:
        path = getattr(task.few_shot, use).replace("{split}", split)
        data = TaskData.read(task.model_copy(update={"test": path}), fewclue)
        assert len(set(data.answers.tolist())) > 1
        sizes[use, split] = len(data.records)
    assert 30 < sizes["train", "0"] < sizes["train", "few_all"]
    assert 30 < sizes["dev", "0"] < sizes["dev", "few_all"]


def test_the_answers_of_chid_fit_their_candidates(fewclue):
    data = TaskData.read(load_zero_shot_tasks()["chid"], fewclue)
    assert np.bincount(data.answers).tolist() == [286] * 7
