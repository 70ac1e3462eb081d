"""Every kind of task with models that know the answers, and with records that cannot be used."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from kexue_train.downstream.finetune.harness import make_problem
from kexue_train.downstream.finetune.tasks.reading import best_span
from kexue_train.downstream.finetune.tasks.tagging import Entity
from kexue_train.downstream.finetune.tasks.task import KINDS, load_supervised_tasks
from kexue_train.downstream.sequences import Reader
from kexue_train.downstream.task_files import read_data_file
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import VOCABULARY, make_tokenizer
from tests.downstream.finetune.tasks.tiny_tasks import (
    choice_of_options,
    make_files,
    pair_with_a_label,
    question_with_an_answer,
    text_with_a_label,
    text_with_entities,
    write_records,
)

X, Y, Z = (VOCABULARY.index(letter) for letter in "xyz")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def task(kind, **values):
    files = {"train": "train.jsonl", "dev": "dev.jsonl"}
    return KINDS[kind].parse({"title": "t", "kind": kind, **files, **values}, where="test")


@pytest.fixture
def make(tmp_path, tokenizer):
    """A problem from records, or from a function that makes one."""

    def make_from(source, kind, max_length=64, **values):
        if callable(source):
            make_files(tmp_path, source, train=60, dev=40)
        else:
            write_records(tmp_path / "train.jsonl", source)
            write_records(tmp_path / "dev.jsonl", source)
        return make_problem(task(kind, **values), tmp_path, Reader(tokenizer, max_length))[0]

    return make_from


class Knowing:
    """In place of a model: logits from the tokens."""

    device = CPU

    def __init__(self, logits_of):
        self.logits_of = logits_of

    def __call__(self, input_ids, attention_mask, **_segments):
        rows = [
            row[mask.bool()].tolist()
            for row, mask in zip(input_ids.flatten(0, -2), attention_mask.flatten(0, -2), strict=True)
        ]
        return self.logits_of(rows, input_ids.shape[-1])


def classifier(sign):
    def logits_of(rows, _slots):
        return SimpleNamespace(logits=torch.tensor([[0.0, sign * (1.0 if X in row else -1.0)] for row in rows]))

    return Knowing(logits_of)


@pytest.mark.parametrize(
    ("source", "values"), [(text_with_a_label, {}), (pair_with_a_label, {"text": "{text_a}", "text_b": "{text_b}"})]
)
def test_who_knows_the_label_gets_all_and_who_swaps_labels_gets_none(make, source, values):
    problem = make(source, "classification", **values)
    assert problem.label_names == ["no", "yes"]
    assert problem.score(classifier(1), "dev") == {"accuracy": 1.0, "macro_f1": 1.0}
    assert problem.score(classifier(-1), "dev") == {"accuracy": 0.0, "macro_f1": 0.0}


def test_the_loss_of_a_classifier_is_the_cross_entropy_of_its_logits(make):
    problem = make(text_with_a_label, "classification")
    places = np.array([3, 0, 7])
    loss = problem.loss(classifier(1), places)  # every right logit is ahead by one
    assert float(loss) == pytest.approx(np.log(1 + np.exp(-1.0)))
    assert float(problem.loss(classifier(-1), places)) == pytest.approx(np.log(1 + np.exp(1.0)))


def test_baselines_of_a_classification(make):
    records = [{"text": "x", "label": "yes"}] * 3 + [{"text": "y", "label": "no"}]
    problem = make(records, "classification")
    assert problem.baselines() == {"chance": {"dev": {"accuracy": 0.5}}, "majority": {"dev": {"accuracy": 0.75}}}


def test_macro_f1_is_the_mean_over_labels(make):
    records = [{"text": "x", "label": "yes"}] * 3 + [{"text": "y", "label": "no"}]
    always_yes = Knowing(lambda rows, _: SimpleNamespace(logits=torch.tensor([[0.0, 1.0]] * len(rows))))
    scores = make(records, "classification").score(always_yes, "dev")
    assert scores == {"accuracy": 0.75, "macro_f1": pytest.approx((2 * 3 / 7 + 0) / 2)}


def tagger(problem):
    numbers = {name: number for number, name in enumerate(problem.label_names)}

    tag_of = {X: "B-person", Y: "B-place", Z: "I-place"}

    def logits_of(rows, slots):
        logits = torch.zeros(len(rows), slots, len(numbers))
        for number, row in enumerate(rows):
            for slot, token in enumerate(row):
                logits[number, slot, numbers[tag_of.get(token, "O")]] = 9.0
        return SimpleNamespace(logits=logits)

    return Knowing(logits_of)


def test_who_knows_the_tags_finds_every_entity(make):
    problem = make(text_with_entities, "tagging", tokens="tokens", joined_by=" ")
    assert problem.label_names == ["O", "B-person", "I-person", "B-place", "I-place"]
    assert problem.score(tagger(problem), "dev") == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert float(problem.loss(tagger(problem), np.arange(60))) < 0.01


def remembering(problem):
    """Gives back the tags that were to be learnt."""
    tags_of = {tuple(piece.sequence.ids): piece.tags for piece in problem.pieces["dev"]}

    def logits_of(rows, slots):
        logits = torch.zeros(len(rows), slots, problem.num_labels)
        for number, row in enumerate(rows):
            logits[number, np.arange(len(row)), np.maximum(tags_of[tuple(row)], 0)] = 1.0
        return SimpleNamespace(logits=logits)

    return Knowing(logits_of)


@pytest.mark.parametrize("max_length", [16, 64])
def test_entities_survive_the_way_into_tokens_and_back_whatever_the_pieces(make, max_length):
    records = [
        {"text": f"东京 abc 的大学在日本 {number}。" * 3, "entities": [
            {"start": 0, "end": 2, "type": "place"},
            {"start": 7, "end": 10, "type": "school"},
            {"start": 11, "end": 13, "type": "place"},
            {"start": 16 + len(str(number)) + 7, "end": 16 + len(str(number)) + 9, "type": "school"},
        ]}
        for number in range(20)
    ]  # fmt: skip
    problem = make(records, "tagging", text="text", max_length=max_length)
    assert len(problem.pieces["dev"]) >= len(records) * (3 if max_length == 16 else 1)
    assert problem.score(remembering(problem), "dev")["f1"] == 1.0
    assert (problem.reader.num_cut > 0) == (max_length == 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weibo_ner", "resume_ner", "wnut17", "cluener"])
def test_nearly_all_real_entities_can_be_said_in_tokens(name, shared_data):
    task, folder = load_supervised_tasks([name])[name], shared_data / "nlu"
    texts = [json.dumps(record.values, ensure_ascii=False) for record in read_data_file(folder / task.dev)]
    letters = sorted(set("".join(texts).lower()))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    problem, _ = make_problem(task, folder, Reader(tokenizer, 128), max_train=10, max_eval=300)
    # The memory confuses a few equal texts that are marked in different ways.
    assert problem.score(remembering(problem), "dev")["f1"] > 0.98


def test_cluener_spans_include_their_end(make):
    record = {"text": "东京 abc", "entities": {"place": {"东京": [[0, 1]]}, "name": {"abc": [[3, 5]]}}}
    [marked] = make([record], "tagging", text="text").texts["dev"]
    assert marked.entities == [Entity(0, 2, "place"), Entity(3, 6, "name")]


def reader_of_z(rows, slots):
    """Points at the last z of each row, less surely if there is only the question's."""
    start = torch.zeros(len(rows), slots)
    for number, row in enumerate(rows):
        places = [slot for slot, token in enumerate(row) if token == Z]
        start[number, places[-1]] = 5.0 if len(places) > 1 else 1.0
    return SimpleNamespace(start_logits=start, end_logits=start.clone())


@pytest.mark.parametrize(("max_length", "stride"), [(64, 128), (16, 3), (16, 8)])
def test_who_knows_where_the_answer_is_finds_it_in_any_window(make, max_length, stride):
    problem = make(question_with_an_answer, "reading", max_length=max_length, stride=stride)
    assert problem.score(Knowing(reader_of_z), "dev") == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize(("max_length", "stride"), [(16, 1), (16, 3), (16, 100), (64, 128)])
def test_windows_cover_every_token_and_point_at_the_answer(make, max_length, stride):
    problem = make(question_with_an_answer, "reading", max_length=max_length, stride=stride)
    for number, question in enumerate(problem.questions["dev"]):
        windows = [window for window in problem.windows["dev"] if window.question == number]
        covered = {tuple(span) for window in windows for span in window.spans.tolist()}
        assert covered == {(2 * place, 2 * place + 1) for place in range(8)}
        assert all(len(window.sequence.ids) <= max_length for window in windows)
        for window in windows:
            start, end = window.answer
            has_answer = tuple(question.span) in {tuple(span) for span in window.spans.tolist()}
            assert (start, end) != (0, 0) if has_answer else (start, end) == (0, 0)
            assert not has_answer or window.sequence.ids[start] == window.sequence.ids[end] == Z
    learnt = [window.answer != (0, 0) for window in problem.windows["train"]]
    assert 2 * sum(learnt) >= len(learnt)


def test_an_answer_at_a_wrong_place_is_looked_for_and_one_that_is_nowhere_is_not_learnt(make):
    records = [
        {"context": "a b z", "question": "q", "answers": [{"text": "z", "start": 0}]},
        {"context": "a b c", "question": "q", "answers": [{"text": "z", "start": 0}]},
    ]
    problem = make(records, "reading")
    assert [question.span for question in problem.questions["train"]] == [(4, 5), None]
    assert problem.num_examples == 1


def test_the_best_span_is_that_of_trying_all():
    random = np.random.default_rng(3)
    for size in (1, 2, 7, 100):
        starts, ends = random.normal(size=(2, size)).astype(np.float32)
        sums = {(i, j): starts[i] + ends[j] for i in range(size) for j in range(i, min(size, i + 64))}
        best = max(sums, key=sums.__getitem__)
        score, start, end = best_span(starts, ends)
        assert (start, end) == best
        assert score == pytest.approx(float(sums[best]))


def chooser(sign):
    return Knowing(lambda rows, _: SimpleNamespace(logits=torch.tensor([[sign * float(X in row)] for row in rows])))


def test_who_knows_the_option_gets_all_however_many_there_are(make):
    problem = make(choice_of_options, "choice")
    assert {len(options) for options in problem.options["dev"]} == {2, 3}
    assert problem.score(chooser(1), "dev") == {"accuracy": 1.0}
    assert problem.score(chooser(-1), "dev") == {"accuracy": 0.0}
    sizes = np.array([len(options) for options in problem.options["dev"]])
    assert problem.baselines()["chance"]["dev"]["accuracy"] == pytest.approx((1 / sizes).mean())


def test_the_loss_of_a_choice_leaves_out_options_that_are_not_there(make):
    problem = make(choice_of_options, "choice")
    sizes = np.array([len(options) for options in problem.options["train"][:5]])
    expected = np.log(1 + (sizes - 1) * np.exp(-1.0)).mean()  # the right option is ahead by one
    assert float(problem.loss(chooser(1), np.arange(5))) == pytest.approx(expected)


BAD_RECORDS = [
    ("classification", {"label": "a"}, {"labels": ["a", "b"]}, "no value 'text'"),
    ("classification", {"text": "x", "label": ["a", 3]}, {}, "'label' is"),
    ("tagging", {"tokens": ["a"], "tags": ["O", "O"]}, {"tokens": "tokens"}, "1 tokens, but 2 tags"),
    ("tagging", {"tokens": ["a"], "tags": ["PER"]}, {"tokens": "tokens"}, "not in a known scheme"),
    ("tagging", {"text": "abc", "entities": [{"start": 1, "end": 4, "type": "t"}]}, {"text": "text"}, "not inside"),
    ("tagging", {"text": "abc", "entities": [{"start": 2, "end": 2, "type": "t"}]}, {"text": "text"}, "not inside"),
    ("tagging", {"text": "abc", "entities": [3]}, {"text": "text"}, "holds no spans"),
    ("tagging", {"text": "abc", "entities": "no"}, {"text": "text"}, "holds no spans"),
    ("tagging", {"text": "abc", "entities": []}, {"text": "text"}, "holds no entity"),
    ("reading", {"context": "a", "question": "q", "answers": []}, {}, "at least one answer"),
    ("reading", {"context": " ", "question": "q", "answers": [{"text": "a", "start": 0}]}, {}, "at least one answer"),
    ("reading", {"context": "a", "question": "q", "answers": [{"text": "b", "start": 0}]}, {}, "nothing to learn"),
    ("choice", {"context": "a", "question": "q", "options": ["b"], "label": 1}, {}, "a number from 0 to 0"),
    ("choice", {"context": "a", "question": "q", "options": ["b", "c"], "label": "1"}, {}, "a number from 0 to 1"),
    ("choice", {"context": "a", "question": "q", "options": [], "label": 0}, {}, "expected a list of candidates"),
]


@pytest.mark.parametrize(("kind", "record", "values", "words"), BAD_RECORDS)
def test_a_record_that_cannot_be_used_is_named(make, kind, record, values, words):
    with pytest.raises(EvaluationError) as caught:
        make([record], kind, **values)
    assert words in str(caught.value)
    assert "train.jsonl" in str(caught.value)


def test_a_label_or_type_that_training_never_saw_is_named(tmp_path, tokenizer):
    write_records(tmp_path / "train.jsonl", [{"text": "x", "label": "yes"}, {"text": "y", "label": "no"}])
    write_records(tmp_path / "dev.jsonl", [{"text": "x", "label": "yes"}, {"text": "y", "label": "maybe"}])
    with pytest.raises(
        EvaluationError, match=r"dev.jsonl:2: the label 'maybe' is not known; the training set has no, yes"
    ):
        make_problem(task("classification"), tmp_path, Reader(tokenizer, 64))
    write_records(tmp_path / "train.jsonl", [{"tokens": ["x"], "tags": ["B-a"]}])
    write_records(tmp_path / "dev.jsonl", [{"tokens": ["x"], "tags": ["B-b"]}])
    with pytest.raises(EvaluationError, match=r"dev.jsonl:1: the type 'b' is not known; the training set has a"):
        make_problem(task("tagging", tokens="tokens"), tmp_path, Reader(tokenizer, 64))


def test_one_label_is_no_choice(make):
    with pytest.raises(EvaluationError, match="every record has the label 'a'"):
        make([{"text": "x", "label": "a"}] * 3, "classification")


def test_spans_need_a_tokenizer_that_tells_places(tmp_path, tokenizer):
    write_records(tmp_path / "train.jsonl", [{"tokens": ["x"], "tags": ["B-a"]}])
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(EvaluationError, match=r"save the tokenizer with a tokenizer\.json"):
        make_problem(task("tagging", tokens="tokens", dev="train.jsonl"), tmp_path, Reader(slow, 64))
