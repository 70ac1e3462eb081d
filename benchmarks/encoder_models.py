"""The encoders that are compared: ours on packed rows, transformers' on padded batches; each with its own losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, RoFormerConfig, RoFormerForMaskedLM

from benchmarks.encoder_data import MicroBatch
from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of an encoder, the same for all; heads are 64 wide."""

    layers: int
    hidden: int

    @property
    def intermediate(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.hidden


SIZES = {"tiny": Size(2, 128), "small": Size(6, 384), "base": Size(12, 768), "large": Size(24, 1024)}


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model to measure: how to make it, and the loss of a micro-batch."""

    name: str
    title: str
    build: Callable[[Size, int, int, float], nn.Module]
    """(size, vocabulary, longest sequence, dropout) -> model."""
    loss: Callable[[nn.Module, MicroBatch], Tensor]


def _ours(size: Size, vocab: int, seq_len: int, dropout: float) -> nn.Module:
    return RoFormerV2ForPreTraining(RoFormerV2Config(**_common(size, vocab, seq_len, dropout)))


def _our_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    packed = batch.packed
    inputs = {name: packed[name] for name in ("input_ids", "sequence_ids", "position_ids", "token_type_ids")}
    hidden = model.roformer(**inputs).last_hidden_state.flatten(0, 1)
    words, relation = model.cls.predictions, model.cls.next_sentence
    states = words.features(hidden[packed["prediction_slots"]])
    scores = linear_cross_entropy(states, words.decoder.weight, packed["prediction_labels"])
    pairs = F.cross_entropy(relation(hidden[packed["pair_slots"]]).float(), packed["pair_labels"], reduction="sum")
    return scores.loss / max(1, batch.num_predictions) + pairs / max(1, len(packed["pair_labels"]))


def _bert(kind: type[nn.Module]) -> Callable[[Size, int, int, float], nn.Module]:
    return lambda *shape: kind(BertConfig(**_common(*shape)))


def _roformer(size: Size, vocab: int, seq_len: int, dropout: float) -> nn.Module:
    return RoFormerForMaskedLM(RoFormerConfig(embedding_size=size.hidden, **_common(size, vocab, seq_len, dropout)))


def _masked_lm_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    return model(**{name: tensor for name, tensor in batch.padded.items() if name != "next_sentence_label"}).loss


def _pretraining_loss(model: nn.Module, batch: MicroBatch) -> Tensor:
    return model(**batch.padded).loss


def _common(size: Size, vocab: int, seq_len: int, dropout: float) -> dict[str, int | float]:
    return {
        "vocab_size": vocab,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.hidden // 64,
        "intermediate_size": size.intermediate,
        "max_position_embeddings": seq_len,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


OURS = Encoder("ours", "kexue_train, packed rows", _ours, _our_loss)
ENCODERS = (
    OURS,
    Encoder("bert", "BertForPreTraining", _bert(BertForPreTraining), _pretraining_loss),
    Encoder("bert-mlm", "BertForMaskedLM", _bert(BertForMaskedLM), _masked_lm_loss),
    Encoder("roformer", "RoFormerForMaskedLM", _roformer, _masked_lm_loss),
)


def make(encoder: Encoder, size: Size, vocab: int, seq_len: int, dropout: float, device: torch.device) -> nn.Module:
    """The model with random weights, in training mode, its gradients allocated."""
    torch.manual_seed(0)
    model = encoder.build(size, vocab, seq_len, dropout).to(device).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model
