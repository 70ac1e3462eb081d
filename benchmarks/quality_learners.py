"""The encoders whose learning is compared: how each takes a micro-batch, what it minimises, how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
)

from benchmarks.padded_batches import padded
from kexue_train.batches.dataset import SampleDataset
from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.linear_cross_entropy import LabelScores
from kexue_train.samples.mlm import IGNORE_INDEX
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import Tensors
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import PretrainingObjective

NSP_WEIGHT = 0.5
"""Of our loss; BertForPreTraining adds both losses as they are."""


@dataclass(frozen=True)
class Task:
    """What every encoder has to learn: its size, the text read, the precision."""

    layers: int = 3
    hidden: int = 256
    rows: int = 16
    """Of a step; a single micro-batch."""
    steps: int = 600
    precision: str = "fp32"
    """fp32, or bf16: matrix products under autocast."""
    heldout_rows: int = 256
    points: int = 12
    """Times that an encoder is scored during a training."""

    def autocast(self) -> torch.autocast:
        """Return the context that forwards run in."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


class Learner(Protocol):
    """An encoder with its losses."""

    model: nn.Module

    def prepare(self, batch: Tensors) -> Tensors:
        """Return a packed micro-batch in the form that the encoder takes."""
        ...

    def loss(self, prepared: Tensors) -> Tensor:
        """Return what is minimised."""
        ...

    def scores(self, prepared: Tensors) -> Tensor:
        """Return sums of loss, hits and number over hidden tokens and over pairs: [2, 3]; 0 for pairs without head."""
        ...


class Ours:
    """RoFormerV2 as a training run has it."""

    def __init__(
        self,
        task: Task,
        dataset: SampleDataset,
        *,
        nsp_weight: float = NSP_WEIGHT,
        change: Callable[[RoFormerV2ForPreTraining], None] = lambda _: None,
        prepare: Callable[[Tensors], Tensors] = lambda batch: batch,
    ) -> None:
        self.model = RoFormerV2ForPreTraining(RoFormerV2Config(**_shape(task, dataset)))
        change(self.model)
        self.prepare = prepare
        self._objective = PretrainingObjective(self.model, pretraining_heads(ObjectiveConfig(nsp_weight=nsp_weight)))
        self._objective.scale_to(dataset, task.rows)

    def loss(self, prepared: Tensors) -> Tensor:
        """See ``Learner``."""
        loss: Tensor = self._objective(prepared)[0]
        return loss

    def scores(self, prepared: Tensors) -> Tensor:
        """See ``Learner``."""
        sums: Tensor = self._objective(prepared)[1]
        return sums


class Peer:
    """A model of transformers with the loss that it computes itself."""

    prepare = staticmethod(padded)

    def __init__(self, model: nn.Module, inputs: tuple[str, ...]) -> None:
        self.model, self._inputs = model, inputs

    def loss(self, prepared: Tensors) -> Tensor:
        """See ``Learner``."""
        loss: Tensor = self.model(**{name: prepared[name] for name in self._inputs}).loss
        return loss

    def scores(self, prepared: Tensors) -> Tensor:
        """See ``Learner``."""
        wanted = ("labels", "next_sentence_label")
        output = self.model(**{name: prepared[name] for name in self._inputs if name not in wanted})
        words = output.prediction_logits if "prediction_logits" in output else output.logits
        sums = [_scores(words.flatten(0, 1), prepared["labels"].flatten()), torch.zeros(3)]
        if "seq_relationship_logits" in output:
            sums[1] = _scores(output.seq_relationship_logits, prepared["next_sentence_label"])
        return torch.stack(sums)


def bert(task: Task, dataset: SampleDataset) -> Peer:
    """Return BERT of the task's size, for hidden tokens and next sentences."""
    inputs = ("input_ids", "attention_mask", "token_type_ids", "labels", "next_sentence_label")
    return Peer(BertForPreTraining(BertConfig(**_shape(task, dataset))), inputs)


def roformer(task: Task, dataset: SampleDataset) -> Peer:
    """Return RoFormer of the task's size, for hidden tokens; transformers has no head for next sentences."""
    config = RoFormerConfig(embedding_size=task.hidden, **_shape(task, dataset))
    return Peer(RoFormerForMaskedLM(config), ("input_ids", "attention_mask", "token_type_ids", "labels"))


def modernbert(task: Task, dataset: SampleDataset) -> Peer:
    """Return ModernBERT with as many weights in its layers, for hidden tokens; it scores these alone in training."""
    shape = _shape(task, dataset)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        del shape[name]  # it has none by default
    shape["intermediate_size"] = round(8 * task.hidden / 3 / 32) * 32  # gated: three matrices instead of two
    ids = {f"{name}_token_id": dataset.special_token_ids[name] for name in ("pad", "cls", "sep")}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    config = ModernBertConfig(**shape, **ids, sparse_prediction=True)
    return Peer(ModernBertForMaskedLM(config), ("input_ids", "attention_mask", "labels"))


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    used = labels != IGNORE_INDEX
    logits, labels = logits[used].float(), labels[used]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    hits = (logits.argmax(-1) == labels).sum().float()
    return torch.stack(LabelScores(loss, hits, used.sum().float())).detach()


def _shape(task: Task, dataset: SampleDataset) -> dict[str, int | float]:
    return {
        "vocab_size": dataset.vocab_size,
        "hidden_size": task.hidden,
        "num_hidden_layers": task.layers,
        "num_attention_heads": task.hidden // 64,
        "intermediate_size": 4 * task.hidden,
        "max_position_embeddings": dataset.seq_len,
        "hidden_dropout_prob": 0.0,  # no row is seen twice
        "attention_probs_dropout_prob": 0.0,
    }
