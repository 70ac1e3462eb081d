import pytest
import torch

from kexue_train.downstream.evaluate.masked_words import complete_sentences
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.tiny_artifacts import tiny_model


def test_predictions_are_the_most_probable_tokens_in_order(exported):
    [found] = complete_sentences(exported, ["word3 [MASK] word9"], num_predictions=60)
    with torch.no_grad():
        logits = tiny_model()(torch.tensor([[2, 8, 4, 14, 3]])).prediction_logits[0, 2]
    [guesses] = found["masks"]
    assert [guess["probability"] for guess in guesses] == pytest.approx(
        logits.softmax(-1).sort(descending=True)[0].tolist()
    )
    best = int(logits.argmax())
    assert guesses[0]["token"] == (f"word{best - 5}" if best >= 5 else guesses[0]["token"])
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)


def test_every_mask_gets_its_own_predictions(exported):
    [found] = complete_sentences(exported, ["[MASK] word1 word2 word3 [MASK] word4"], num_predictions=3)
    assert [len(guesses) for guesses in found["masks"]] == [3, 3]


def test_sentence_without_a_mask_is_refused(exported):
    with pytest.raises(EvaluationError, match="'word1 word2' holds no"):
        complete_sentences(exported, ["word1 word2"])


def test_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no tokenizer that can be loaded"):
        complete_sentences(tmp_path, ["[MASK]"])
