"""Sentences -> token states of a model -> one vector per sentence, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.sequences import Ids, batches, encode, padded, tokens_at_once
from kexue_train.downstream.settings import Pooling
from kexue_train.foundation.errors import EvaluationError


def pool(hidden_states: Sequence[torch.Tensor], attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one vector per row: (B, E), in the dtype of the states.

    Args:
        hidden_states: (B, S, E) each: the embeddings, then the output of every layer.
        attention_mask: (B, S), 1 for tokens, [CLS] and [SEP] among them, 0 for padding, which counts for nothing.
        pooling: ``cls``: the last state of the first token. ``mean``: the mean of the last states. ``first-last``: the
            mean of the mean states of the first layer and of the last.

    Source: https://kexue.fm/archives/8069; its code takes the first layer's output, not the embeddings.
    """
    last = hidden_states[-1]
    if pooling == "cls":
        return last[:, 0]
    states = last if pooling == "mean" else (hidden_states[min(1, len(hidden_states) - 1)] + last) / 2
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


Vectors = npt.NDArray[np.float32]
OnTokens = Callable[[int, int], None]
"""Receives slots done and in all."""


@dataclass(frozen=True)
class Sentences:
    """Sentences as a model reads them."""

    ids: list[Ids]
    """Each with [CLS] and [SEP]."""
    num_cut: int
    """How many were too long and lost their end."""
    unknown_rate: float
    """Share of unknown tokens, special ones apart; near 1 the model cannot read the language."""

    @classmethod
    def read(cls, tokenizer: Any, texts: Sequence[str], max_length: int) -> Sentences:
        """Tokenize every text once."""
        bodies = encode(tokenizer, texts)
        room = max_length - 2
        first, last = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        ids = [np.concatenate((first, body[:room], last)) for body in bodies]
        tokens = np.concatenate(bodies) if bodies else np.empty(0)
        unknown = float(np.mean(tokens == tokenizer.unk_token_id)) if tokens.size else 0.0
        return cls(ids, sum(len(body) > room for body in bodies), unknown)


@torch.inference_mode()
def encode_sentences(
    loaded: LoadedHead,
    sentences: Sentences,
    poolings: Sequence[Pooling],
    *,
    tokens_per_batch: int | None = None,
    on_tokens: OnTokens = lambda _done, _total: None,
) -> dict[Pooling, Vectors]:
    """Return the vectors (n, E) of all sentences by each pooling, from one forward pass over them.

    Raises:
        EvaluationError: If a vector is not finite.
    """
    lengths = np.array([len(ids) for ids in sentences.ids], np.int64)
    total, done, indices = int(lengths.sum()), 0, []
    found: dict[Pooling, list[torch.Tensor]] = {pooling: [] for pooling in poolings}
    for batch in batches(lengths, tokens_per_batch or tokens_at_once(loaded.device)):
        states, mask = hidden_states(loaded.model, loaded.tokenizer, [sentences.ids[i] for i in batch])
        for pooling in poolings:  # not waited for, so that a GPU stays busy
            found[pooling].append(pool(states, mask, pooling).float())
        indices.append(batch)
        done += int(lengths[batch].sum())
        on_tokens(done, total)
    back = np.argsort(np.concatenate(indices))
    vectors = {pooling: torch.cat(rows).cpu().numpy()[back] for pooling, rows in found.items()}
    for pooling, rows in vectors.items():
        broken = np.count_nonzero(~np.isfinite(rows).all(axis=1))
        if broken:
            raise EvaluationError(
                f"{loaded.folder}: {broken} of {len(rows)} sentence vectors ({pooling}) are not finite, so the model "
                "is damaged or training diverged; evaluate an earlier checkpoint"
            )
    return vectors


def hidden_states(model: Any, tokenizer: Any, rows: Sequence[Ids]) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
    """Return the states (B, S, E) of embeddings and every layer of a body, and the mask (B, S) of real tokens."""
    lengths = np.array([len(ids) for ids in rows])
    mask = torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)).to(model.device)
    ids = torch.from_numpy(padded(rows, tokenizer.pad_token_id or 0)).to(model.device, non_blocking=True)
    return model(input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True).hidden_states, mask
