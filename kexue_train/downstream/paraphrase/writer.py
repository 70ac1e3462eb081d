"""A masked language model with a prefix mask as a writer: the probabilities of the next token of a second segment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kexue_train.downstream.load_model import LoadedHead, open_with, require_weights, with_tokenizer
from kexue_train.downstream.paraphrase.written import LogProbs
from kexue_train.downstream.sequences import Ids, encode, tokens_at_once
from kexue_train.foundation.errors import EvaluationError
from kexue_train.model import RoFormerV2ForMaskedLM

_CJK = "\u3000-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
_SPACE_BESIDE_CJK = re.compile(f"(?<=[{_CJK}]) | (?=[{_CJK}])")


def load_writer(model_dir: Path) -> LoadedHead:
    """Load a folder of ``kexue finetune paraphrase``.

    Raises:
        EvaluationError: If it holds no RoFormerV2 with an MLM head and a tokenizer, or it was not trained to write.
    """
    loaded = _load(model_dir)
    if not loaded.model.config.prefix_lm:
        raise EvaluationError(
            f"{model_dir}: was not trained to write (its configuration has no prefix_lm); train it with "
            "'kexue finetune paraphrase' first"
        )
    return loaded


def load_with_prefix_mask(model_dir: Path, **settings: Any) -> LoadedHead:
    """Load any RoFormerV2 with an MLM head, to be trained to write; ``settings`` replace those of its configuration.

    Raises:
        EvaluationError: If the folder holds no such model or no tokenizer.
    """
    return _load(model_dir, prefix_lm=True, **settings)


def _load(model_dir: Path, **settings: Any) -> LoadedHead:
    model, missing = open_with(RoFormerV2ForMaskedLM, model_dir, "a RoFormerV2 with an MLM head", **settings)
    require_weights(model_dir, missing)
    return with_tokenizer(model_dir, model, ("cls_token", "sep_token"))


@dataclass(frozen=True)
class Writer:
    """Writes second segments for one text."""

    loaded: LoadedHead
    source: Ids
    """[CLS] text [SEP]."""

    @classmethod
    def of(cls, loaded: LoadedHead, text: str, room: int) -> Writer:
        """Read ``text``, for which ``room`` tokens must be left to write.

        Raises:
            EvaluationError: If it has no token, only unknown ones, or too many.
        """
        tokenizer, [body] = loaded.tokenizer, encode(loaded.tokenizer, [text])
        if not len(body):
            raise EvaluationError(f"{text!r} has no token to paraphrase; give a sentence")
        if (body == tokenizer.unk_token_id).all():
            raise EvaluationError(f"{text!r} is unknown to the tokenizer of {loaded.folder}: it has no token for it")
        longest = loaded.fitting(len(body) + 2 + room) - room
        if len(body) + 2 > longest:
            raise EvaluationError(
                f"the text has {len(body)} tokens; the model was made for {loaded.longest_input} in all, so with "
                f"--max-tokens {room} it may have {max(0, longest - 2)}. Give a shorter text, or fewer tokens to write"
            )
        return cls(loaded, np.concatenate(([tokenizer.cls_token_id], body, [tokenizer.sep_token_id])))

    @property
    def end(self) -> int:
        """[SEP], which ends a text."""
        return int(self.loaded.tokenizer.sep_token_id)

    @torch.inference_mode()
    def next_tokens(self, written: Ids) -> LogProbs:
        """Return the log-probabilities (n, V) of the next token of each of (n, t); see ``NextTokens``.

        Special tokens other than [SEP] are never written.
        """
        length = len(self.source) + written.shape[1]
        at_once = max(1, tokens_at_once(self.loaded.device) // length)
        pieces = [self._logits(written[start : start + at_once]) for start in range(0, len(written), at_once)]
        logits = torch.cat(pieces)
        never = sorted(set(self.loaded.tokenizer.all_special_ids) - {self.end})
        logits[:, never] = -torch.inf
        logits[:, len(self.loaded.tokenizer) :] = -torch.inf  # rows that only fill the word table up
        return logits.log_softmax(-1).cpu().numpy()

    def _logits(self, written: Ids) -> torch.Tensor:
        """Return fp64 logits (n, V) of the token after each row of (n, t)."""
        rows = np.concatenate([np.tile(self.source, (len(written), 1)), written], axis=1)
        types = np.repeat([[0] * len(self.source) + [1] * written.shape[1]], len(rows), axis=0)
        ids, segments = (torch.from_numpy(array).to(self.loaded.device) for array in (rows, types))
        states = self.loaded.model.roformer(ids, token_type_ids=segments, return_dict=True).last_hidden_state
        logits: torch.Tensor = self.loaded.model.cls.predictions(states[:, -1])
        return logits.double()


def spell(tokenizer: Any, ids: tuple[int, ...]) -> str:
    """Return the text of tokens; without spaces beside Chinese and Japanese characters, which texts do not have."""
    return _SPACE_BESIDE_CJK.sub("", tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
