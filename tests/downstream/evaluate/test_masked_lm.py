import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.downstream.evaluate.masked_lm import evaluate_masked_lm
from kexue_train.foundation.errors import ArtifactError, EvaluationError
from tests.batches.dense import dense
from tests.downstream.evaluate.tiny_artifacts import (
    HELDOUT,
    SEQ_LEN,
    VOCAB,
    Pack,
    export_model,
    make_packs,
    tiny_model,
    write_samples,
)


@pytest.fixture(scope="module")
def result(exported, samples):
    return evaluate_masked_lm(exported, samples, seed=3, batch_size=5)


@pytest.fixture(scope="module")
def heldout(samples):
    return dense(make_batch(SampleDataset(samples), np.arange(HELDOUT), 0, seed=3))


def one_sequence_at_a_time(model, batch):
    """The oracle: every sequence of every row alone, without packing, through the model's own forward."""
    losses, right, nsp_losses, nsp_right = [], [], [], []
    for row in range(HELDOUT):
        for number in range(1, batch["sequence_ids"][row].max() + 1):
            slots = batch["sequence_ids"][row] == number
            ids, labels, types, pair = (
                torch.from_numpy(batch[name][row, slots])[None]
                for name in ("input_ids", "labels", "token_type_ids", "pairs")
            )
            with torch.no_grad():
                output = model(ids, token_type_ids=types)
            logits = output.prediction_logits[labels != -100]
            losses += F.cross_entropy(logits, labels[labels != -100], reduction="none").tolist()
            right += (logits.argmax(-1) == labels[labels != -100]).tolist()
            if pair[0, 0] != -100:
                nsp_losses.append(float(F.cross_entropy(output.seq_relationship_logits, pair[:, 0])))
                nsp_right.append(bool(output.seq_relationship_logits.argmax() == pair[0, 0]))
    return losses, right, nsp_losses, nsp_right


def test_packed_rows_score_as_their_sequences_do_alone(result, heldout):
    losses, right, nsp_losses, nsp_right = one_sequence_at_a_time(tiny_model(), heldout)
    assert (result.predictions, result.pairs) == (len(losses), len(nsp_losses))
    # fp32 with another order of summation
    assert result.mlm_loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert result.nsp_loss == pytest.approx(np.mean(nsp_losses), abs=1e-5)
    assert result.mlm_accuracy == np.mean(right)
    assert result.nsp_accuracy == np.mean(nsp_right)


def test_entropy_is_that_of_the_held_out_targets(result, heldout):
    targets = heldout["labels"][heldout["labels"] != -100]
    share = np.unique(targets, return_counts=True)[1] / len(targets)
    assert result.baselines.unigram_entropy == pytest.approx(-(share * np.log(share)).sum())
    assert result.baselines.most_frequent_token_accuracy == pytest.approx(share.max())
    assert result.gain_over_unigram_nats == pytest.approx(result.baselines.unigram_entropy - result.mlm_loss)


def test_hidden_tokens_are_those_whose_input_is_the_mask(result, heldout):
    hidden = (heldout["labels"] != -100) & (heldout["input_ids"] == 4)
    assert 0 < result.hidden_only.predictions == hidden.sum() < result.predictions


def test_where_every_token_is_a_word_words_score_as_tokens(result):
    for scores in (result, result.hidden_only):
        assert (scores.words, scores.word_accuracy) == (scores.predictions, scores.mlm_accuracy)


class PairedPack(Pack):
    """Two slots to a word."""

    def columns(self):
        starts = np.arange(SEQ_LEN) % 2 == 0
        return super().columns() | {"word_starts": list(np.packbits(starts, bitorder="little"))}


def test_a_word_of_two_tokens_is_right_if_both_are(tmp_path, exported):
    samples = write_samples(tmp_path / "samples", [PairedPack(pack.sequences) for pack in make_packs(14)])
    batch = dense(make_batch(SampleDataset(samples), np.arange(HELDOUT), 0, seed=3))
    words: dict[tuple[int, int], list[bool]] = {}
    with torch.no_grad():
        for row in range(HELDOUT):
            for number in range(1, batch["sequence_ids"][row].max() + 1):
                slots = np.flatnonzero(batch["sequence_ids"][row] == number)
                ids, types = (
                    torch.from_numpy(batch[name][row, slots])[None] for name in ("input_ids", "token_type_ids")
                )
                best = tiny_model()(ids, token_type_ids=types).prediction_logits[0].argmax(-1).numpy()
                labels = batch["labels"][row, slots]
                for slot, right in zip(slots[labels != -100], (best == labels)[labels != -100], strict=True):
                    words.setdefault((row, slot // 2), []).append(bool(right))
    result = evaluate_masked_lm(exported, samples, seed=3)
    assert max(map(len, words.values())) == 2
    assert (result.words, result.word_accuracy) == (len(words), np.mean([all(word) for word in words.values()]))


def test_bands_add_up_to_all_hidden_tokens(result):
    bands, hidden = result.frequency_bands, result.hidden_only
    assert sum(band.predictions for band in bands) == hidden.predictions
    assert sum(band.tokens for band in bands) == VOCAB
    loss = sum(band.mlm_loss * band.predictions for band in bands if band.predictions)
    assert loss / hidden.predictions == pytest.approx(hidden.mlm_loss)


def test_batch_size_does_not_change_the_result(exported, samples, result):
    other = evaluate_masked_lm(exported, samples, seed=3, batch_size=HELDOUT)
    assert other.mlm_loss == pytest.approx(result.mlm_loss, abs=1e-6)
    assert other.nsp_accuracy == result.nsp_accuracy


def test_constant_logits_have_the_loss_of_uniform_guessing(tmp_path, samples):
    model = tiny_model()
    torch.nn.init.zeros_(model.roformer.embeddings.word_embeddings.weight)
    torch.nn.init.zeros_(model.cls.next_sentence.classifier.weight)
    result = evaluate_masked_lm(export_model(model, tmp_path / "hf"), samples, seed=0)
    assert result.mlm_loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result.mlm_perplexity == pytest.approx(VOCAB, rel=1e-5)
    assert result.nsp_loss == pytest.approx(math.log(2), rel=1e-6)
    assert result.baselines.uniform == pytest.approx(math.log(VOCAB))


def test_model_without_nsp_weights_is_scored_on_masked_words_alone(tmp_path, samples):
    from safetensors.torch import load_file, save_file

    folder = export_model(tiny_model(), tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "next_sentence" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    notes = []
    progress = type("Notes", (), {"update": lambda *_, **__: None, "note": lambda _, text: notes.append(text)})()
    result = evaluate_masked_lm(folder, samples, seed=3, progress=progress)
    assert (result.nsp_accuracy, result.has_nsp_head) == (None, False)
    assert "no weights for next-sentence" in notes[0]


def test_model_with_other_missing_weights_is_refused(tmp_path, samples):
    from safetensors.torch import load_file, save_file

    folder = export_model(tiny_model(), tmp_path / "hf")
    weights = load_file(folder / "model.safetensors")
    del weights["roformer.encoder.layer.1.intermediate.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match=r"1 weights are missing, first 'roformer\.encoder\.layer\.1"):
        evaluate_masked_lm(folder, samples, seed=0)


def test_weights_that_are_not_numbers_are_refused(tmp_path, samples):
    model = tiny_model()
    model.roformer.embeddings.word_embeddings.weight.data[7] = float("nan")
    with pytest.raises(EvaluationError, match=r"rows 0 to 11 of .*not finite"):
        evaluate_masked_lm(export_model(model, tmp_path / "hf"), samples, seed=0)


def test_samples_of_another_vocabulary_are_refused(tmp_path, exported):
    other = write_samples(tmp_path / "samples", make_packs(14), vocab_size=300)
    with pytest.raises(EvaluationError, match=r"vocabulary of 60 tokens, but .* was tokenized with 300"):
        evaluate_masked_lm(exported, other, seed=0)


def test_samples_without_held_out_rows_are_refused(tmp_path, exported):
    with pytest.raises(EvaluationError, match="no held-out row"):
        evaluate_masked_lm(exported, write_samples(tmp_path / "samples", make_packs(2), heldout_rows=0), seed=0)


def test_folder_without_a_model_is_refused(tmp_path, samples):
    with pytest.raises(EvaluationError, match=r"no config\.json"):
        evaluate_masked_lm(tmp_path, samples, seed=0)


def test_damaged_weights_are_refused(tmp_path, samples):
    folder = export_model(tiny_model(), tmp_path / "hf")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(EvaluationError, match="cannot be loaded"):
        evaluate_masked_lm(folder, samples, seed=0)


def test_text_shards_are_no_samples(tmp_path, exported):
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        evaluate_masked_lm(exported, tmp_path, seed=0)


def test_rows_of_the_fixture_are_full_rows(heldout):
    assert heldout["input_ids"].shape == (HELDOUT, SEQ_LEN)
