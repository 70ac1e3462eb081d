"""Held-out loss and accuracy of both heads, summed over tokens, on packed rows with fixed masks.

The masks are those of epoch 0, a pure function of (seed, row), so every model of a run is asked the same questions.
A word that is predicted is hidden behind [MASK] four times out of five; else it is shown, or another is shown in its
place. Where it is shown a model may copy, so the comparison with context-free guessing is made on hidden tokens alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads

from kexue_train.batches.collate import Batch, make_batch, used_slots
from kexue_train.batches.dataset import SampleDataset
from kexue_train.downstream.evaluate.baselines import (
    Counts,
    TokenSums,
    WordSums,
    frequency_bands,
    unigram_cross_entropy,
    unigram_entropy,
)
from kexue_train.downstream.load_model import LoadedModel, load_model
from kexue_train.downstream.results.held_out import HeldOutResults
from kexue_train.foundation.artifacts import Manifest, read_manifest
from kexue_train.foundation.errors import ArtifactError, EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

_MAX_LOGITS = 1 << 25  # computed at once: 128 MiB in fp32
_VOCAB_MULTIPLE = 128  # a model's word table may be rounded up to a multiple of this


@dataclass
class _Sums:
    everything: TokenSums
    hidden: TokenSums
    words: WordSums = field(default_factory=WordSums)
    hidden_words: WordSums = field(default_factory=WordSums)
    pairs: Counts = field(default_factory=lambda: np.zeros(2, np.int64))
    """Pairs by true label."""
    nsp_loss: float = 0.0
    nsp_correct: int = 0
    rows: int = 0


def evaluate_masked_lm(
    model_dir: Path, samples: Path, *, seed: int, batch_size: int = 32, progress: Progress = SILENT
) -> HeldOutResults:
    """Score an exported model on the held-out rows of ``samples``; losses are means over tokens (pairs), in nats.

    Args:
        model_dir: Exported model or checkpoint.
        samples: Sample shards.
        seed: Of the masks, ``0 <= seed < 2**32``.
        batch_size: Rows at once.
        progress: Receives rows done.

    Raises:
        EvaluationError: If the model cannot be loaded, has another vocabulary, or gives logits that are not finite.
        ArtifactError: If the samples are no sample shards, or hold no held-out row.
    """
    manifest = read_manifest(samples)
    heldout_rows, vocab_size = _heldout_rows(samples, manifest), int(manifest.statistics["vocab_size"])
    training_counts = _read_training_counts(samples)
    loaded = load_model(model_dir)
    _require_same_vocabulary(model_dir, loaded, samples, vocab_size)
    if not loaded.has_nsp_head:
        progress.note("the model has no weights for next-sentence prediction: only the masked words are scored")
    sums = _Sums(TokenSums.zeros(vocab_size), TokenSums.zeros(vocab_size))
    mask_id = int(manifest.statistics["special_token_ids"]["mask"])
    dataset = SampleDataset(samples)
    for start in range(0, heldout_rows, batch_size):
        rows = np.arange(start, min(start + batch_size, heldout_rows))
        batch = make_batch(dataset, rows, 0, seed=seed)
        words = np.cumsum(dataset.take(rows)["word_starts"])
        _add_batch(sums, loaded, batch, words, mask_id, f"{model_dir}: rows {start} to {rows[-1]} of {samples}")
        sums.rows += len(rows)
        progress.update(sums.rows, heldout_rows, "rows")
    return _results(sums, loaded, manifest, training_counts, seed)


@torch.inference_mode()
def _add_batch(sums: _Sums, loaded: LoadedModel, batch: Batch, words: Counts, mask_id: int, where: str) -> None:
    """Add a batch to ``sums``; ``words`` (B·S,) holds the number of the word of every slot."""
    inputs = {
        "input_ids": batch["input_ids"],
        "sequence_ids": batch["sequence_ids"],
        "position_ids": batch["position_ids"],
        "token_type_ids": batch["token_type_ids"],
    }
    inputs_on_device = {name: torch.from_numpy(array).to(loaded.device) for name, array in inputs.items()}
    states = loaded.model.roformer(**inputs_on_device).last_hidden_state.flatten(0, 1)
    slots, targets = used_slots(batch["prediction_slots"], batch["prediction_labels"])
    hidden = batch["input_ids"].ravel()[slots] == mask_id
    losses, correct = _score(loaded.model.cls.predictions, states, slots, targets, where)
    sums.everything.add(targets, losses, correct)
    sums.hidden.add(targets[hidden], losses[hidden], correct[hidden])
    sums.words.add(words[slots], correct)
    sums.hidden_words.add(words[slots[hidden]], correct[hidden])
    firsts, labels = used_slots(batch["pair_slots"], batch["pair_labels"])
    if loaded.has_nsp_head and len(firsts):
        losses, correct = _score(loaded.model.cls.next_sentence, states, firsts, labels, where)
        sums.pairs += np.bincount(labels, minlength=2)
        sums.nsp_loss += float(losses.sum())
        sums.nsp_correct += int(correct.sum())


def _score(
    head: Any, states: torch.Tensor, slots: npt.NDArray[np.int64], targets: npt.NDArray[np.int64], where: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the loss (n,), and whether the most probable class is the target (n,), at slots (n,) of ``states``."""
    losses, correct = np.zeros(len(targets)), np.zeros(len(targets), np.bool_)
    step = max(1, _MAX_LOGITS // _num_classes(head))
    for start in range(0, len(targets), step):
        piece = slice(start, start + step)
        logits = head(states[torch.from_numpy(slots[piece]).to(states.device)]).float()
        target = torch.from_numpy(targets[piece]).to(logits.device)
        loss = F.cross_entropy(logits, target, reduction="none")
        if not bool(torch.isfinite(loss).all()):
            raise EvaluationError(
                f"{where}: the model gives values that are not finite, so it is damaged or training diverged; "
                "export an earlier checkpoint and evaluate that one"
            )
        losses[piece] = loss.double().cpu().numpy()
        correct[piece] = (logits.argmax(-1) == target).cpu().numpy()
    return losses, correct


def _num_classes(head: Any) -> int:
    last = head.decoder if hasattr(head, "decoder") else head.classifier
    return int(last.out_features)


def _results(
    sums: _Sums, loaded: LoadedModel, manifest: Manifest, training_counts: Counts, seed: int
) -> HeldOutResults:
    scores, hidden, counts = sums.everything.scores(), sums.hidden.scores(), sums.everything.count
    scores |= sums.words.scores()
    hidden |= sums.hidden_words.scores()
    if not scores["predictions"]:
        raise EvaluationError(
            f"the {sums.rows} held-out rows have no token to predict; "
            "use a larger corpus or a larger samples.heldout_fraction"
        )
    entropy = unigram_entropy(counts)
    if hidden["predictions"]:
        hidden["unigram_entropy"] = unigram_entropy(sums.hidden.count)
        hidden["gain_over_unigram_nats"] = hidden["unigram_entropy"] - hidden["mlm_loss"]
    pairs = int(sums.pairs.sum())
    found = {
        **scores,
        "mlm_perplexity": math.exp(min(scores["mlm_loss"], 700.0)),
        "gain_over_unigram_nats": entropy - scores["mlm_loss"],
        "hidden_only": hidden,
        "nsp_loss": sums.nsp_loss / pairs if pairs else None,
        "nsp_accuracy": sums.nsp_correct / pairs if pairs else None,
        "pairs": pairs,
        "has_nsp_head": loaded.has_nsp_head,
        "baselines": {
            "uniform": math.log(len(counts)),
            "unigram_entropy": entropy,
            "unigram_cross_entropy": unigram_cross_entropy(counts, training_counts),
            "most_frequent_token": int(counts.argmax()),
            "most_frequent_token_accuracy": float(counts.max() / counts.sum()),
            "nsp_majority": float(sums.pairs.max() / pairs) if pairs else None,
        },
        "frequency_bands": _score_bands(sums.hidden, training_counts),
        "rows": sums.rows,
        "seq_len": int(manifest.statistics["seq_len"]),
        "vocab_size": len(counts),
        "parameters": loaded.parameters,
        "seed": seed,
    }
    return HeldOutResults.model_validate(found)


def _score_bands(sums: TokenSums, training_counts: Counts) -> list[dict[str, Any]]:
    """Score by frequency of the target, on hidden tokens only, since rare ones would mostly be right by copying."""
    bands = frequency_bands(training_counts)
    share = [training_counts[band].sum() / max(1, training_counts.sum()) for band in bands]
    return [
        {"tokens": len(band), "training_share": float(part), **sums.scores(band)}
        for band, part in zip(bands, share, strict=True)
    ]


def _heldout_rows(samples: Path, manifest: Manifest) -> int:
    if manifest.kind != "sample_shards":
        raise ArtifactError(
            f"{samples}: holds {manifest.kind}, not sample_shards; give a folder made by 'kexue samples'"
        )
    rows = int(manifest.statistics.get("heldout_rows", 0))
    if rows < 1:
        raise EvaluationError(
            f"{samples}: has no held-out row to score on; use a larger corpus or a larger samples.heldout_fraction"
        )
    return rows


def _read_training_counts(samples: Path) -> Counts:
    path = samples / "token_counts.npy"
    try:
        counts: Counts = np.load(path, allow_pickle=False).astype(np.int64)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error}); delete the folder {samples} and run 'kexue samples' again"
        ) from None
    return counts


def _require_same_vocabulary(model_dir: Path, loaded: LoadedModel, samples: Path, vocab_size: int) -> None:
    if not vocab_size <= loaded.vocab_size < vocab_size + _VOCAB_MULTIPLE:
        raise EvaluationError(
            f"{model_dir}: the model has a vocabulary of {loaded.vocab_size} tokens, "
            f"but {samples} was tokenized with {vocab_size}; "
            "give the samples made with the model's own tokenizer"
        )
