import numpy as np
import pytest
import torch

from kexue_train.downstream.evaluate.zero_shot.prompt_scores import score_masked_words
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.downstream.load_model import load_masked_lm
from kexue_train.downstream.task_files import Text
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import VOCABULARY, export_roformer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_masked_lm(export_roformer(tmp_path_factory.mktemp("models") / "hf"))


def ask(texts, words, choices):
    return Questions([Text(before, "", after) for before, after in texts], words, np.array(choices))


def test_a_label_is_as_probable_as_its_words_at_the_blank(loaded):
    found = score_masked_words(loaded, ask([("这是", "新闻")], ["体育", "财经"], [[0, 1]]), max_length=32)
    encoded = loaded.tokenizer("这是[MASK][MASK]新闻", return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**encoded).logits[0, [3, 4], : len(VOCABULARY)]
    sure = logits.double().log_softmax(-1)
    ids = [loaded.tokenizer.convert_tokens_to_ids(list(word)) for word in ("体育", "财经")]
    expected = [float(sure[0, a] + sure[1, b]) for a, b in ids]
    assert found.scores[0] == pytest.approx(expected, abs=1e-4)  # fp32
    assert abs(expected[0] - expected[1]) > 1e-3


def test_records_may_have_fewer_candidates(loaded):
    found = score_masked_words(loaded, ask([("天", ""), ("地", "人")], ["好", "坏"], [[0, 1], [1, -1]]), max_length=32)
    assert np.isfinite(found.scores).tolist() == [[True, True], [True, False]]


def test_long_texts_keep_the_words_around_the_blank(loaded):
    plain = score_masked_words(loaded, ask([("天" * 6 + "这是", "新闻")], ["好"], [[0]]), max_length=32)
    longer = score_masked_words(loaded, ask([("好" * 90 + "天" * 6 + "这是", "新闻")], ["好"], [[0]]), max_length=13)
    assert (plain.num_cut, longer.num_cut) == (0, 1)
    assert longer.scores == pytest.approx(plain.scores, abs=1e-5)


def test_words_of_unequal_sizes_are_refused(loaded):
    with pytest.raises(EvaluationError, match="the words '好' are 1 tokens and '体育' 2"):
        score_masked_words(loaded, ask([("天", "")], ["体育", "好"], [[0, 1]]), max_length=32)


def test_words_without_tokens_or_too_long_are_refused(loaded):
    with pytest.raises(EvaluationError, match="the words '' have no token"):
        score_masked_words(loaded, ask([("天", "")], ["", "好"], [[0, 1]]), max_length=32)
    with pytest.raises(EvaluationError, match="40 tokens, too many for 32"):
        score_masked_words(loaded, ask([("天", "")], ["好" * 40], [[0]]), max_length=32)
