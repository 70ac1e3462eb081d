import math

import numpy as np
import pytest
import torch

from kexue_train.downstream.evaluate.masked_words import Cloze, masked_word_scores, pseudo_perplexities, read_sentences
from kexue_train.downstream.load_model import load_masked_lm
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import VOCABULARY, export_roformer, make_bert, random_roformer

SENTENCES = ["这是一则新闻", "abc", "好"]


@pytest.fixture(scope="module", params=["bert", "roformer"])
def loaded(request, tmp_path_factory):
    make = {"bert": make_bert, "roformer": export_roformer}[request.param]
    return load_masked_lm(make(tmp_path_factory.mktemp("models") / request.param))


def log_probabilities(loaded, ids):
    """[S, V] of one sequence alone; rows of the word table beyond the vocabulary are no words."""
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids])).logits[0, :, : len(VOCABULARY)]
    return logits.double().log_softmax(-1)


def test_scores_are_summed_over_the_masks_of_each_cloze_alone(loaded):
    clozes = [
        Cloze(np.array([2, 4, 4, 50, 3]), np.array([1, 2]), np.array([[10, 11], [12, 13], [10, 13]])),
        Cloze(np.array([2, 40, 41, 42, 43, 44, 4, 3]), np.array([6]), np.array([[9], [8]])),
    ]
    found = masked_word_scores(loaded, clozes)
    first, second = (log_probabilities(loaded, cloze.ids.tolist()) for cloze in clozes)
    expected = [first[1, a] + first[2, b] for a, b in ((10, 11), (12, 13), (10, 13))]
    assert found[0] == pytest.approx(torch.stack(expected).numpy(), abs=1e-4)  # fp32
    assert found[1] == pytest.approx(second[6, [9, 8]].numpy(), abs=1e-4)


def test_the_probabilities_of_all_words_sum_to_one(loaded):
    words = np.arange(len(VOCABULARY))[:, None]
    [found] = masked_word_scores(loaded, [Cloze(np.array([2, 4, 3]), np.array([1]), words)])
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-6)


def test_pseudo_perplexity_masks_every_token_once(loaded):
    found = pseudo_perplexities(loaded, SENTENCES)
    for entry, sentence in zip(found, SENTENCES, strict=True):
        ids = loaded.tokenizer(sentence)["input_ids"]
        total = 0.0
        for place in range(1, len(ids) - 1):
            masked = [*ids[:place], 4, *ids[place + 1 :]]
            total += float(log_probabilities(loaded, masked)[place, ids[place]])
        assert entry.tokens == len(ids) - 2
        assert entry.pseudo_perplexity == pytest.approx(math.exp(-total / (len(ids) - 2)), rel=1e-4)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(tmp_path):
    model = random_roformer()
    torch.nn.init.zeros_(model.roformer.embeddings.word_embeddings.weight)
    [entry] = pseudo_perplexities(load_masked_lm(export_roformer(tmp_path / "hf", model)), ["这是一则"])
    assert entry.pseudo_perplexity == pytest.approx(len(VOCABULARY), rel=1e-6)


def test_sentences_without_tokens_or_too_long_are_refused(tmp_path):
    loaded = load_masked_lm(make_bert(tmp_path / "hf", max_position_embeddings=16))
    assert pseudo_perplexities(loaded, ["好" * 14])[0].tokens == 14
    for sentence in (" ", "好" * 15):
        with pytest.raises(EvaluationError, match=r"has \d+ tokens; expected at least one and"):
            pseudo_perplexities(loaded, [sentence])


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = random_roformer()
    model.roformer.embeddings.word_embeddings.weight.data[60] = float("nan")
    with pytest.raises(EvaluationError, match="not finite at masks"):
        pseudo_perplexities(load_masked_lm(export_roformer(tmp_path / "hf", model)), ["好"])


def test_sentences_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_bytes("一 二\r\n\n three \n".encode())
    assert read_sentences(path) == ["一 二", "three"]
    path.write_text("\n")
    with pytest.raises(EvaluationError, match="holds no sentence"):
        read_sentences(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_sentences(tmp_path / "none.txt")
