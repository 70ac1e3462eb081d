"""The claims that train run from text to figures; sizes are tiny here, so the figures say nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from claims.all_claims import CLAIMS
from claims.claim import Bars, Setting, at
from claims.posts import (
    fewer_updates,
    log_n,
    nsp_zero_shot,
    post_norm_finetuned,
    sign_steps_and_noise,
    tiger_and_adamw,
    whitening,
)
from claims.posts import window_mask as window
from claims.training import length_models, pretrained, text, tuned
from claims.training.byte_encoder import ByteTraining, heldout_loss, train
from claims.training.exchanged_words import exchange_words
from claims.training.text import all_bytes, documents
from claims.training.topics import find_topics

TOPICS = ["garden", "engine", "planet", "market"]


def shown_names(claim) -> set[str]:
    picture = claim.picture
    drawn = picture.figures if isinstance(picture, Bars) else [at(s, x) for s in picture.series for x in picture.xs]
    return {*claim.shown, *drawn}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A hundred documents of made-up words; each repeats one of four topic words."""
    folder, generator = tmp_path_factory.mktemp("claims"), np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghiklmnoprstu"), 6)) for _ in range(200)]
    lines = []
    for number in range(100):
        sentences = [
            " ".join([*generator.choice(words, 8), TOPICS[number % 4] if place % 3 == 0 else "", "ends."])
            for place in range(18)
        ]
        lines.append(json.dumps({"text": " ".join(sentence.capitalize() for sentence in sentences)}))
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Setting(folder / "cache", folder / "documents.jsonl")


@pytest.mark.slow
def test_a_byte_encoder_learns_and_its_seed_decides(setting: Setting) -> None:
    learned = all_bytes(setting)
    assert len(documents(setting)) == 100
    first, again, other = (
        heldout_loss(train(ByteTraining(lr=5e-3, steps=6, rows=4), learned, seed), learned, 64, size=4096)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first < math.log(257)


@pytest.mark.slow
def test_claims_about_lengths_measure_every_figure_they_show(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_models, "_TASK", replace(length_models._TASK, steps=1, rows=2))
    monkeypatch.setattr(length_models, "_READ_BYTES", 1024)
    for post in (window, log_n):
        figures = post.measure(0, setting)
        assert shown_names(post.CLAIM) <= figures.keys()
        assert all(map(math.isfinite, figures.values()))
    # At the length of training the window hides nothing, and a model that is read as it was trained is itself.
    plain = window.measure(0, setting)
    assert plain[at("plain", 64)] == plain[at("window of 64", 64)]


@pytest.mark.slow
def test_claims_about_pretrained_encoders_measure_every_figure_they_show(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_STEPS", 10)
    monkeypatch.setattr(text, "_VOCAB_SIZE", 700)  # made-up words have few pieces
    for post in (nsp_zero_shot, whitening):
        figures = post.measure(0, setting)
        assert shown_names(post.CLAIM) <= figures.keys()
        assert all(map(math.isfinite, figures.values()))


@pytest.mark.slow
def test_the_claim_about_fine_tuning_measures_every_figure_it_shows(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"steps": 2, "length": 128, "layers": 2}
    monkeypatch.setattr(post_norm_finetuned, "_PRETRAINING", small)
    monkeypatch.setattr(post_norm_finetuned, "_FINETUNING", {"steps": 2, "rows": 4, "length": 128})
    monkeypatch.setattr(post_norm_finetuned, "_RATES", (1e-3,))
    monkeypatch.setattr(post_norm_finetuned, "_FINETUNING_RATES", (1e-3,))
    figures = post_norm_finetuned.measure(0, setting)
    assert shown_names(post_norm_finetuned.CLAIM) == figures.keys()
    assert all(map(math.isfinite, figures.values()))


def test_two_neighbouring_words_change_places_and_nothing_else() -> None:
    text, generator, seen = b"of the one two three end", np.random.default_rng(0), set()
    for _ in range(50):
        row = np.frombuffer(text, np.uint8).copy()
        assert exchange_words(row, generator)
        seen.add(row.tobytes())
    words = text.split()
    swapped = [[*words[:n], words[n + 1], words[n], *words[n + 2 :]] for n in range(1, 4)]  # neither first nor last
    assert seen == {b" ".join(some) for some in swapped}
    for unchanged in (b"no second space", b"a same same b"):
        row = np.frombuffer(unchanged, np.uint8).copy()
        assert not exchange_words(row, generator)
        assert row.tobytes() == unchanged


def test_topics_are_the_words_that_documents_repeat() -> None:
    texts = [f"{word} is here and {word} is there, {word} again, {word}." for word in TOPICS for _ in range(5)]
    topics = find_topics(texts + ["nothing of the kind is written in this one"] * 40)
    assert set(topics.words) == set(TOPICS)
    assert [topics.words[answer] in passage for answer, passage in zip(topics.answers, topics.passages, strict=True)]
    assert not any(word in passage for passage in topics.without_words() for word in TOPICS)


def test_the_best_rate_is_searched_until_both_neighbours_are_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def loss(setting: Setting, optimizer: str, lr: float, seed: int, fields: Any) -> float:
        tried.append(lr)
        return abs(math.log2(lr / 0.08)) + seed

    monkeypatch.setattr(tuned, "_loss", loss)
    assert tuned.final_loss(Setting(), "Tiger", 2, rows=4) == pytest.approx(2.0)  # of the rate 0.08
    assert max(tried) == pytest.approx(0.16)


@pytest.mark.parametrize("post", [fewer_updates, tiger_and_adamw, sign_steps_and_noise])
def test_claims_about_optimizers_measure_every_figure_they_show(post, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    def final_loss(setting: Setting, optimizer: str, seed: int, **shape: int) -> float:
        asked.append(shape)
        ByteTraining(lr=1.0, **shape)  # the fields are there
        return 2.0

    monkeypatch.setattr(post, "final_loss", final_loss)
    assert shown_names(post.CLAIM) <= post.measure(0, Setting()).keys()
    if post is fewer_updates:
        assert len({shape["steps"] * shape["accumulation_steps"] for shape in asked}) == 1  # the same micro-batches


def test_claims_that_train_say_so() -> None:
    trained = {"window-mask", "log-n", "nsp-zero-shot", "whitening", "fewer-updates", "tiger-and-adamw",
               "sign-steps-and-noise", "post-norm-finetuned"}  # fmt: skip
    assert {claim.name for claim in CLAIMS if claim.trains} == trained
