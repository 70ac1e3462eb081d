"""What the model would write at [MASK]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kexue_train.downstream.evaluate.config import MASK
from kexue_train.downstream.evaluate.load_model import LoadedModel, load_model, load_tokenizer
from kexue_train.foundation.errors import EvaluationError


def complete_sentences(model_dir: Path, sentences: Sequence[str], num_predictions: int = 5) -> list[dict[str, Any]]:
    """The most probable tokens at every [MASK] of every sentence.

    Returns:
        Per sentence ``{"sentence": str, "masks": [[{"token": str, "probability": float}, ...] per mask]}``, the most
        probable first.

    Raises:
        EvaluationError: If the model or its tokenizer cannot be loaded, or a sentence holds no mask.
    """
    tokenizer, loaded = load_tokenizer(model_dir), load_model(model_dir)
    return [_complete(tokenizer, loaded, sentence, num_predictions) for sentence in sentences]


@torch.inference_mode()
def _complete(tokenizer: Any, loaded: LoadedModel, sentence: str, num_predictions: int) -> dict[str, Any]:
    # The tokenizer's own mask token may be spelt differently from the one users write.
    encoded = tokenizer(sentence.replace(MASK, tokenizer.mask_token), return_tensors="pt")
    input_ids = encoded["input_ids"].to(loaded.device)
    places = input_ids[0] == tokenizer.mask_token_id
    if not bool(places.any()):
        raise EvaluationError(f"the sentence {sentence!r} holds no {MASK}; write {MASK} where a word is to be guessed")
    states = loaded.model.roformer(input_ids).last_hidden_state[0, places]
    logits = loaded.model.cls.predictions(states).float()[:, : len(tokenizer)]
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            f"the model gives values that are not finite for the sentence {sentence!r}; its weights are damaged"
        )
    top = logits.softmax(-1).topk(min(num_predictions, logits.shape[-1]))
    masks = [
        [
            {"token": str(tokenizer.convert_ids_to_tokens(int(token))), "probability": float(probability)}
            for probability, token in zip(probabilities, tokens, strict=True)
        ]
        for probabilities, tokens in zip(top.values, top.indices, strict=True)
    ]
    return {"sentence": sentence, "masks": masks}
