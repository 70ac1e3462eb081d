"""Models of a few kilobytes with a vocabulary of letters, and one that knows the answers."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kexue_train.downstream.load_model import LoadedHead
from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import write_hf_folder

CHINESE = "这是一则新闻好坏差大小天地人不也说了的他她它在上文中指体育财经甲乙丙丁"
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits, *CHINESE,
    *(f"##{letter}" for letter in string.ascii_lowercase),
]  # fmt: skip


def make_tokenizer(folder: Path) -> Any:
    """A BERT tokenizer whose words are letters, digits and characters; saved in ``folder``."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(VOCABULARY)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_bert(folder: Path, kind: str = "BertForPreTraining", **options: Any) -> Path:
    """A random BERT of transformers, large enough in its weights for answers to differ."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(VOCABULARY), **{"initializer_range": 0.5} | sizes | options)
    getattr(transformers, kind)(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def random_roformer() -> RoFormerV2ForPreTraining:
    """A random two-layer encoder with both heads."""
    torch.manual_seed(0)
    config = RoFormerV2Config(
        vocab_size=128, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return RoFormerV2ForPreTraining(config).eval()


def export_roformer(folder: Path, model: RoFormerV2ForPreTraining | None = None) -> Path:
    """What the export stage writes, its word table larger than the vocabulary."""
    folder.mkdir(parents=True)
    make_tokenizer(folder)
    write_hf_folder(model or random_roformer(), folder, None)
    return folder


class KnowingModel:
    """In place of a model with an NSP head: its logits come from the two segments, as text without spaces."""

    device = torch.device("cpu")
    config = SimpleNamespace(model_type="oracle", max_position_embeddings=512, vocab_size=len(VOCABULARY))

    def __init__(self, tokenizer: Any, log_odds: Callable[[str, str], float]) -> None:
        self.tokenizer, self.log_odds = tokenizer, log_odds

    def parameters(self) -> list[torch.Tensor]:
        """None."""
        return []

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        **_positions: torch.Tensor,
    ) -> Any:
        """Logits (B, 2), class 0 = is next; positions tell it nothing."""
        odds = []
        for ids, mask, types in zip(input_ids, attention_mask.bool(), token_type_ids, strict=True):
            first, second = (self.read(ids[mask & (types == segment)]) for segment in (0, 1))
            odds.append(self.log_odds(first, second))
        return SimpleNamespace(logits=torch.tensor([[value, 0.0] for value in odds]))

    def read(self, ids: torch.Tensor) -> str:
        """The words of ``ids`` without special tokens."""
        return "".join(self.tokenizer.convert_ids_to_tokens(ids.tolist(), skip_special_tokens=True)).replace("##", "")


def load_knowing(folder: Path, log_odds: Callable[[str, str], float]) -> LoadedHead:
    """The same as a loaded model."""
    tokenizer = make_tokenizer(folder)
    return LoadedHead(KnowingModel(tokenizer, log_odds), tokenizer, folder)
