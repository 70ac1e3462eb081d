"""Vectors do not depend on what else is in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences, pool
from kexue_train.downstream.load_model import LoadedHead, load_encoder
from kexue_train.downstream.settings import POOLINGS
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, make_bert

TEXTS = ["abc", "a b c d e f g h i j k", "新闻", "z", "a b c d e f g h 字 典", "abc"]


@pytest.fixture(scope="module", params=["roformer", "bert"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedHead:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    return load_encoder(export_roformer(folder) if request.param == "roformer" else make_bert(folder, "BertModel"))


@torch.no_grad()
def test_a_sentence_has_the_vectors_it_has_alone(loaded: LoadedHead) -> None:
    sentences = Sentences.read(loaded.tokenizer, TEXTS, 64)
    found = encode_sentences(loaded, sentences, POOLINGS)
    small = encode_sentences(loaded, sentences, POOLINGS, tokens_per_batch=1)
    for pooling in POOLINGS:
        assert found[pooling].dtype == np.float32
        np.testing.assert_allclose(found[pooling], small[pooling], atol=2e-6)
        for row, text in enumerate(TEXTS):
            inputs = loaded.tokenizer(text, return_tensors="pt")
            states = loaded.model(**inputs, output_hidden_states=True).hidden_states
            alone = pool(states, inputs["attention_mask"], pooling)[0]
            np.testing.assert_allclose(found[pooling][row], alone.numpy(), atol=2e-6)


def test_long_sentences_lose_their_end_and_unknown_tokens_are_counted(loaded: LoadedHead) -> None:
    sentences = Sentences.read(loaded.tokenizer, TEXTS, 6)
    cls, sep = loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id
    whole = Sentences.read(loaded.tokenizer, TEXTS, 64)
    assert (sentences.num_cut, whole.num_cut) == (2, 0)
    assert sentences.ids[1].tolist() == [cls, *whole.ids[1][1:5].tolist(), sep]
    tokens = sum(len(ids) - 2 for ids in whole.ids)
    assert whole.unknown_rate == pytest.approx(2 / tokens)


def test_progress_ends_with_everything_done(loaded: LoadedHead) -> None:
    seen: list[tuple[int, int]] = []
    sentences = Sentences.read(loaded.tokenizer, TEXTS, 64)
    encode_sentences(loaded, sentences, ["cls"], tokens_per_batch=8, on_tokens=lambda *done: seen.append(done))
    assert len(seen) > 2
    assert seen[-1] == (sum(map(len, sentences.ids)),) * 2
