import numpy as np
import pytest
import torch

from kexue_train.downstream.evaluate.zero_shot.prompt_scores import score_next_sentences
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.downstream.load_model import load_next_sentence_model
from kexue_train.downstream.task_files import Text
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, make_bert, random_roformer

TEXTS = ["一则新闻", "a b c d e f g", "好", "天地人 w x y z 大小"]
PROMPTS = ["体育", "财经 abc", "上文中指"]


@pytest.fixture(scope="module", params=["bert", "roformer"])
def loaded(request, tmp_path_factory):
    make = {"bert": make_bert, "roformer": export_roformer}[request.param]
    return load_next_sentence_model(make(tmp_path_factory.mktemp("models") / request.param))


def questions(texts=TEXTS, prompts=PROMPTS):
    choices = np.tile(np.arange(len(prompts)), (len(texts), 1))
    choices[0, -1] = -1  # the first text has one prompt less
    return Questions([Text("", text, "") for text in texts], list(prompts), choices)


def score(loaded, order="prefix", max_length=64, **options):
    return score_next_sentences(loaded, questions(), order=order, has_blank=False, max_length=max_length, **options)


def log_odds_of_one(loaded, first, second, **inputs):
    """The oracle: transformers' own pair encoding, one pair at a time, through probabilities in double precision."""
    encoded = loaded.tokenizer(first, second, return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**{**encoded, **inputs}).logits[0]
    probability = logits.double().softmax(-1)
    return float((probability[0] / probability[1]).log())


@pytest.mark.parametrize("order", ["prefix", "suffix"])
def test_scores_are_those_of_each_pair_alone(loaded, order):
    found = score(loaded, order).scores
    for i, text in enumerate(TEXTS):
        for j, prompt in enumerate(PROMPTS):
            if (i, j) != (0, 2):
                pair = (prompt, text) if order == "prefix" else (text, prompt)
                assert found[i, j] == pytest.approx(log_odds_of_one(loaded, *pair), abs=1e-4)  # fp32
    assert found[0, 2] == -np.inf


def test_the_scores_differ_enough_for_the_tests_to_mean_something(loaded):
    found = score(loaded).scores[1:]
    assert found.std() > 1e-2


def test_batches_do_not_change_the_scores(loaded):
    assert score(loaded, tokens_per_batch=1).scores == pytest.approx(score(loaded).scores, abs=1e-4)


def test_soft_positions_reach_the_model(loaded):
    asked = Questions([Text("天地", "", "大小")], ["好人"], np.array([[0]]))
    found = score_next_sentences(loaded, asked, order="suffix", has_blank=True, max_length=64).scores[0, 0]
    positions = torch.tensor([[0, 1, 2, 5, 6, 7, 3, 4, 8]])
    assert found == pytest.approx(log_odds_of_one(loaded, "天地大小", "好人", position_ids=positions), abs=1e-4)
    plain = log_odds_of_one(loaded, "天地大小", "好人")
    assert abs(found - plain) > 1e-3


def test_flipped_classes_flip_the_scores(tmp_path):
    straight, flipped = random_roformer(), random_roformer()
    weight = flipped.cls.next_sentence.classifier.weight
    weight.data = weight.data.flip(0)
    scores = [
        score(load_next_sentence_model(export_roformer(tmp_path / name, model))).scores[1:]
        for name, model in (("straight", straight), ("flipped", flipped))
    ]
    assert scores[1] == pytest.approx(-scores[0], abs=1e-5)


def test_long_texts_are_cut_and_counted(loaded):
    found = score(loaded, max_length=12)
    assert found.num_cut == 2  # of 7 and 9 tokens, beside a prompt of up to 5 and three special tokens
    assert np.isfinite(found.scores[1:]).all()


def test_unknown_tokens_are_counted(loaded):
    asked = Questions([Text("", "天龙", "")], ["地虎"], np.array([[0]]))
    found = score_next_sentences(loaded, asked, order="prefix", has_blank=False, max_length=64)
    assert found.unknown_rate == 0.5


def test_a_model_whose_scores_are_no_numbers_is_refused(tmp_path):
    model = random_roformer()
    model.cls.next_sentence.classifier.weight.data[0, 0] = float("nan")
    loaded = load_next_sentence_model(export_roformer(tmp_path / "hf", model))
    with pytest.raises(EvaluationError, match="11 of 11 scores are not finite"):
        score(loaded)


def test_progress_ends_with_all_tokens(loaded):
    seen = []
    score(loaded, tokens_per_batch=20, on_tokens=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("BertForMaskedLM", r"has no weights for an NSP head .*'kexue evaluate mlm'"),
        ("RobertaForMaskedLM", r"cannot be loaded as a model with an NSP head .*--method pet, or 'kexue evaluate mlm'"),
    ],
)
def test_a_model_without_nsp_head_is_refused_and_another_evaluation_offered(kind, message, tmp_path):
    import transformers

    folder = make_bert(tmp_path / "hf", "BertForMaskedLM")
    if kind.startswith("Roberta"):
        config = transformers.RobertaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=200)
        transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    with pytest.raises(EvaluationError, match=message):
        load_next_sentence_model(folder)


def test_a_roformer_trained_without_pairs_is_refused_too(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = export_roformer(tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "next_sentence" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match="has no weights for an NSP head"):
        load_next_sentence_model(folder)


def test_a_model_that_lacks_a_layer_is_damaged_not_headless(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_bert(tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match="1 weights are missing"):
        load_next_sentence_model(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    folder = make_bert(tmp_path / "hf")
    from transformers import BertTokenizer

    BertTokenizer(
        vocab={f"{i}" if i > 4 else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"][i]: i for i in range(300)}
    ).save_pretrained(folder)
    with pytest.raises(EvaluationError, match="the tokenizer has 300 tokens, the model only"):
        load_next_sentence_model(folder)
