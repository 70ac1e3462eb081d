"""A small encoder pretrained on masked words and next sentences, and the texts that it is tried on."""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from claims.claim import Setting
from claims.training.text import SEQ_LEN, samples
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.model import RoFormerV2Config, RoFormerV2ForNextSentencePrediction, RoFormerV2ForPreTraining
from kexue_train.optim.build import build_optimizer, set_learning_rate
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.schedule import Knots
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import to_tensors
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import PretrainingObjective, mean_scores

_STEPS, _ROWS, _LR = 500, 8, 3e-3
_HELDOUT_ROWS = 128


@lru_cache(maxsize=3)
def pretrained(setting: Setting, seed: int) -> tuple[LoadedHead, dict[str, float]]:
    """Return an encoder with its head of next sentences, trained once for all claims, and its held-out scores."""
    folder, tokenizer = samples(setting)
    dataset = SampleDataset(folder)
    torch.manual_seed(seed)
    config = RoFormerV2Config(
        vocab_size=dataset.vocab_size,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=SEQ_LEN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = RoFormerV2ForPreTraining(config)
    objective = PretrainingObjective(model, pretraining_heads(ObjectiveConfig(nsp_weight=0.5)))
    objective.scale_to(dataset, _ROWS)
    _train(objective, dataset, seed)
    head = RoFormerV2ForNextSentencePrediction(config).eval()
    head.load_state_dict({name: value for name, value in model.state_dict().items() if ".predictions." not in name})
    return LoadedHead(head, _tokenizer(tokenizer), folder), _scores(objective.eval(), dataset)


def _train(objective: PretrainingObjective, dataset: SampleDataset, seed: int) -> None:
    schedule = Knots({_STEPS // 10: 1.0, _STEPS: 0.05})
    settings = OptimizerConfig(name="adamw", lr=_LR, accumulate="gradient", schedule=schedule)
    optimizer = build_optimizer(settings, objective.model, accumulation_steps=1, seed=seed)
    plan = Plan(seed=seed, rank=0, world_size=1, micro_batch_size=_ROWS, accumulation_steps=1, global_batch_size=_ROWS)
    objective.train()
    for step, batch in enumerate(islice(iter_batches(dataset, plan, start_step=0), _STEPS), 1):
        set_learning_rate(optimizer, schedule.multiplier(step))
        objective(to_tensors(batch))[0].backward()
        optimizer.step()


@torch.no_grad()
def _scores(objective: PretrainingObjective, dataset: SampleDataset) -> dict[str, float]:
    rows = dataset.heldout_rows[:_HELDOUT_ROWS]
    batch = to_tensors(make_batch(dataset, rows, 0, seed=0))
    return mean_scores(objective(batch)[1].tolist(), objective.heads)


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))
