"""Time to quality: everybody gets the same tokens, only one part is exchanged, and the arithmetic of the race."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import quality_tables as tables
from benchmarks.padded_batches import one_sequence_per_row, padded
from benchmarks.quality_ablations import SinglePieces
from benchmarks.quality_contenders import ABLATIONS, EVERYBODY, OURS, PEERS
from benchmarks.quality_learners import Ours, Task
from benchmarks.quality_training import measure_speed, settings_of, train
from benchmarks.quality_walk import LOOP, TRAINER, walk
from benchmarks.run_store import OutOfTimeError
from benchmarks.sample_batches import heldout_batches, training_batches
from benchmarks.time_to_quality import app
from kexue_train.batches.dataset import SampleDataset
from tests.train.tiny_training import write_samples

TASK = Task(layers=1, hidden=64, rows=4, steps=4, heldout_rows=8, points=2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return SampleDataset(write_samples(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def batch(dataset):
    return next(training_batches(dataset, 1, 8, seed=0))


# --- the same tokens --------------------------------------------------------------------------------------------------


def sequences(batch):
    """Ids, segments, labels and the pair's label of every sequence, written as a loop over slots."""
    length = batch["input_ids"].shape[1]
    words = dict(zip(batch["prediction_slots"].tolist(), batch["prediction_labels"].tolist(), strict=True))
    pairs = dict(zip(batch["pair_slots"].tolist(), batch["pair_labels"].tolist(), strict=True))
    found = {}
    for slot in range(batch["input_ids"].numel()):
        row, column = divmod(slot, length)
        number = int(batch["sequence_ids"][row, column])
        if number:
            sequence = found.setdefault((row, number), ([], [], [], pairs.get(slot, -100)))
            for values, value in zip(
                sequence,
                (batch["input_ids"][row, column], batch["token_type_ids"][row, column], words.get(slot, -100)),
                strict=False,
            ):
                values.append(int(value))
    return list(found.values())


def test_padded_rows_hold_the_packed_sequences(batch):
    rows, expected = padded(batch), sequences(batch)
    assert len(rows["input_ids"]) == len(expected) > len(batch["input_ids"])
    for row, (ids, segments, labels, pair) in enumerate(expected):
        n = len(ids)
        assert rows["attention_mask"][row].tolist() == [1] * n + [0] * (rows["input_ids"].shape[1] - n)
        assert rows["input_ids"][row, :n].tolist() == ids
        assert rows["token_type_ids"][row, :n].tolist() == segments
        assert rows["labels"][row, :n].tolist() == labels
        assert (rows["labels"][row, n:] == -100).all()
        assert rows["next_sentence_label"][row] == pair


def test_one_sequence_per_row_is_the_same_to_our_model(dataset, batch):
    torch.manual_seed(0)
    ours, alone = Ours(TASK, dataset), one_sequence_per_row(batch)
    assert sequences(alone) == sequences(batch)
    for measure in (ours.loss, ours.scores):
        torch.testing.assert_close(measure(alone), measure(batch))
    given = alone["sequence_starts"]
    torch.testing.assert_close(ours.loss(alone | {"sequence_starts": None}), ours.loss(alone))
    assert given[-1] == alone["input_ids"].numel()


def test_hidden_pieces_are_no_longer_whole_words(dataset):
    whole, single = dataset.take(np.arange(8)), SinglePieces(dataset).take(np.arange(8))
    assert not whole["word_starts"].all()
    assert single["word_starts"].all()
    assert (whole["input_ids"] == single["input_ids"]).all()
    assert SinglePieces(dataset).seq_len == dataset.seq_len


# --- the encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contender", EVERYBODY.values(), ids=lambda contender: contender.name)
def test_everybody_learns(dataset, contender):
    lr = 0.02 if contender.rule.name == "tiger" else 4e-3
    outcome = train(dataset, replace(TASK, steps=16), contender, lr, 0)
    first, last = outcome["curve"]
    assert [first[0], last[0]] == [8, 16]
    assert first[1] < last[1]
    assert 0 < first[2] < last[2]
    assert last[3] < first[3] < math.log(dataset.vocab_size) + 0.5
    assert math.isnan(last[4]) == (contender.name in ("roformer", "modernbert"))


@pytest.mark.parametrize("contender", PEERS, ids=lambda contender: contender.name)
def test_scores_are_what_the_library_minimises(dataset, batch, contender):
    torch.manual_seed(0)
    learner = contender.make(TASK, dataset)
    rows = learner.prepare(batch)
    words, pairs = learner.scores(rows)
    expected = words[0] / words[2] + (pairs[0] / pairs[2] if pairs[2] else 0)
    torch.testing.assert_close(learner.loss(rows).detach(), expected)
    assert words[2] == len(batch["prediction_labels"])
    layers = sum(p.numel() for name, p in learner.model.named_parameters() if ".layer" in name and p.ndim == 2)
    assert layers == pytest.approx(12 * 64**2, rel=0.05)


def test_learnt_positions_take_the_place_of_rotations(dataset, batch):
    contender = EVERYBODY["positions"]
    torch.manual_seed(0)
    learner = contender.make(TASK, dataset)
    table = learner.model.roformer.embeddings.position_embeddings.weight
    before = learner.scores(batch)[0, 0]
    with torch.no_grad():
        table.zero_()
    without = learner.scores(batch)[0, 0]
    torch.manual_seed(0)
    ours = Ours(TASK, dataset)
    at_zero = ours.scores(batch | {"position_ids": batch["position_ids"] * 0})[0, 0]
    torch.testing.assert_close(without, at_zero)  # nothing else differs
    assert before != without
    learner.loss(batch).backward()
    assert table.grad.abs().sum() > 0


def test_weights_drawn_as_bert_draws_them(dataset):
    model = EVERYBODY["init"].make(TASK, dataset).model
    assert all(weight.detach().std() == pytest.approx(0.02, rel=0.15) for weight in model.parameters())
    assert model.cls.predictions.decoder.weight is model.roformer.embeddings.word_embeddings.weight


def test_the_loop_of_transformers_gives_the_same_bits(dataset):
    from benchmarks.quality_trainer import train_with_trainer

    bert = PEERS[0]
    plain, trainer = (run(dataset, TASK, bert, 1e-3, 0) for run in (train, train_with_trainer))
    for mine, its in zip(plain["curve"], trainer["curve"], strict=True):
        assert mine[:2] + mine[3:] == its[:2] + its[3:]
        assert its[2] > 0


def test_speeds_are_those_of_everybody(dataset):
    found = measure_speed(dataset, TASK, [OURS[0], PEERS[0]], rounds=2)
    assert {name: len(seconds) for name, seconds in found.items()} == {"ours": 2, "bert": 2}
    assert min(map(min, found.values())) > 0


# --- the order of runs, and tables ------------------------------------------------------------------------------------


class Trainings:
    """Losses that fall in a straight line, faster for one of the rates; ends after ``most`` runs."""

    def __init__(self, most: int = 1000) -> None:
        self.done, self.most = {}, most

    def __call__(self, loop, task, contender, lr, seed):
        key = loop, task, contender.name, lr, seed
        if key not in self.done:
            if len(self.done) == self.most:
                raise OutOfTimeError
            slope = {"ours": 0.04, "ours-adamw": 0.02}.get(contender.name, 0.01)
            slope *= 1 if lr in (contender.lrs[1:2] or [lr]) else 0.5
            points = [(s, 100 * s, 0.1 * s, 8 - slope * s - 0.01 * seed, 0.5) for s in range(10, task.steps + 1, 10)]
            self.done[key] = {"curve": points, "parameters": 1_000_000}
        return self.done[key]


SPEED = {name: [0.2, 0.1, 0.3] for name in EVERYBODY} | {"bert": [0.4, 0.4, 0.4]}


def test_everybody_runs_with_the_best_rate_and_ours_reach_the_peers_loss():
    trainings = Trainings()
    found = walk(replace(TASK, steps=100), 20, 2, trainings, lambda: SPEED)
    assert {name: found.lrs[name] for name in ("ours", "bert")} == {"ours": OURS[0].lrs[1], "bert": PEERS[0].lrs[1]}
    assert {name: len(runs) for name, runs in found.outcomes.items()} == dict.fromkeys(EVERYBODY, 2)
    assert found.trainer is trainings.done[TRAINER, replace(TASK, steps=100), "bert", PEERS[0].lrs[1], 0]
    assert sum(key[0] == LOOP for key in trainings.done) == 3 * 5 + 2 * len(EVERYBODY)
    assert found.seconds_per_step("ours") == 0.2
    race = rows_of(tables.race_table(found))
    assert race[0] == ["kexue_train, Tiger", "BERT, AdamW", "25, 25", "0.25, 0.25", "0.12, 0.12"]
    assert len(race) == 6
    assert [row[2] for row in rows_of(tables.ablation_table(found, 7.0))][:2] == ["+0.000 ± 0.000", "+2.000 ± 0.000"]
    first = rows_of(tables.contender_table(found, plateau=6.98))[0]
    assert first[1] == "0.005"
    assert [first[3], first[8]] == ["3.995 ± 0.007", "28, 28"]
    assert len(rows_of(tables.trainer_table(found))) == 2
    way = rows_of(tables.curve_table(found))
    assert len(way) == 10
    assert way[-1][:3] == ["100", "10,000", "3.995 / 50 / 20"]


@pytest.mark.parametrize("most", [0, 7, 15, 16, 21, 26])
def test_what_ends_early_is_shown_and_goes_on(most):
    task, whole, parts = replace(TASK, steps=100), Trainings(), Trainings(most)
    expected = walk(task, 100, 2, whole, lambda: SPEED)
    found = walk(task, 100, 2, parts, lambda: SPEED)
    assert len(parts.done) == min(most, len(whole.done))
    for make in (tables.contender_table, tables.ablation_table):
        make(found, 7.0)
    for make in (tables.race_table, tables.trainer_table, tables.curve_table):
        make(found)
    parts.most = 1000
    assert walk(task, 100, 2, parts, lambda: SPEED) == expected


def rows_of(table):
    return [list(row) for row in zip(*(list(column.cells) for column in table.columns), strict=True)]


@pytest.mark.parametrize(("loss", "step"), [(8.5, 10), (8.0, 10), (7.5, 15), (6.0, 40), (5.9, math.nan), (7.25, 17.5)])
def test_a_loss_is_reached_between_points(loss, step):
    curve = [(10, 0, 0, 8.0, 0), (20, 0, 0, 7.0, 0), (30, 0, 0, 7.2, 0), (40, 0, 0, 6.0, 0)]
    assert tables.reaches({"curve": curve}, loss) == pytest.approx(step, nan_ok=True)


def test_guessing_by_frequency_is_better_than_guessing(dataset):
    heldout = list(heldout_batches(dataset, 8))
    assert 0 < tables.unigram_loss(dataset, heldout) < math.log(dataset.vocab_size)


def test_settings_tell_all_runs_apart(dataset):
    tasks = (TASK, replace(TASK, steps=5), replace(TASK, precision="bf16"), replace(TASK, rows=2))
    keys = {
        str(sorted(settings_of(loop, dataset, task, contender, lr, seed).items(), key=str))
        for loop in (LOOP, TRAINER)
        for task in tasks
        for contender in (*OURS, *PEERS, *ABLATIONS)
        for lr in (1e-3, 2e-3)
        for seed in (0, 1)
    }
    assert len(keys) == 2 * 4 * 10 * 2 * 2


def test_bf16_products_are_used_when_asked_for(dataset):
    learner, batch = Ours(TASK, dataset), next(training_batches(dataset, 1, 4, 0))
    precise, coarse = (TASK, replace(TASK, precision="bf16"))
    losses = []
    for task in (precise, coarse):
        with task.autocast():
            losses.append(float(learner.loss(batch).detach()))
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_the_command_goes_on_with_its_file(tmp_path, dataset, monkeypatch):
    from benchmarks import time_to_quality

    done = []

    def quick(dataset, task, contender, lr, seed):
        done.append(contender.name)
        return Trainings()(LOOP, task, contender, lr, seed)

    for name in ("train", "train_with_trainer"):
        monkeypatch.setattr(time_to_quality, name, quick)
    monkeypatch.setattr(time_to_quality, "measure_speed", lambda *_: SPEED)
    command = [str(dataset.folders[0]), f"--json={tmp_path / 'runs.json'}", "--steps=20", "--seeds=1"]
    first = CliRunner().invoke(app, [*command, "--minutes=10"])
    assert first.exit_code == 0, first.output
    number = len(done)
    assert number == 15 + 1 + len(ABLATIONS)  # the best runs of the search are those of seed 0
    again = CliRunner().invoke(app, [*command, "--minutes=0"])
    assert len(done) == number
    assert "learnt positions for RoPE" in again.output
    assert next(islice((line for line in again.output.splitlines() if "BERT" in line), 1))
