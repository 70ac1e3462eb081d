"""``train.precision: auto``: bf16 where a layer of this training is faster with it on every worker, measured once.

Only a trial can tell. AMX makes matrix products of bf16 six to ten times as fast as those of fp32, AVX-512 BF16 twice,
and a CPU without either takes longer for them; and what is won has to pay for the casts, which weigh more in a narrow
model. What was chosen is kept in the checkpoints, so a resume computes as before, also on another machine.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import NamedTuple

import torch

from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.modeling_roformer_v2 import RoFormerV2Model
from kexue_train.train.config import Precision, TrainConfig
from kexue_train.train.data import synchronize
from kexue_train.train.distributed import max_over_ranks

_MOST_SHARE = 0.9
"""bf16 must take at most this share of the time of fp32: less gain is within what two measurements differ by."""
_MOST_SLOTS = 512
"""Of the trial: many enough that products take what they take in training, few enough for a wide model on a CPU."""
_WORDS = 64
_SECONDS, _FEWEST_ROUNDS = 0.5, 2


class ChosenPrecision(NamedTuple):
    """What a training computes in."""

    name: Precision
    reason: str | None = None
    """One line on why, where it was measured just now."""

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32


def choose_precision(
    train: TrainConfig, model: ModelConfig, seq_len: int, device: torch.device, kept: Precision | None
) -> ChosenPrecision:
    """Return the precision of a training, the same on every rank. A collective call if it is measured.

    Args:
        train: The section; what it names is taken.
        model: The section, for the shape of a layer.
        seq_len: Slots of a row.
        device: Of this rank.
        kept: What the training was begun with, if it resumes.
    """
    if train.precision != "auto":
        return ChosenPrecision(train.precision)
    if kept is not None:
        return ChosenPrecision(kept)
    share = torch.tensor(bf16_share(model, _trial_rows(train, seq_len), min(seq_len, _MOST_SLOTS), device))
    slowest = float(max_over_ranks(share.to(device)))
    name: Precision = "bf16" if takes_bf16(slowest) else "fp32"
    return ChosenPrecision(
        name, f"train.precision=auto: {name}, since a layer in bf16 takes {slowest:.2f} of the time of fp32 here"
    )


def takes_bf16(share: float) -> bool:
    """Return whether bf16 pays where it takes this share of the time of fp32."""
    return share <= _MOST_SHARE


def _trial_rows(train: TrainConfig, seq_len: int) -> int:
    size = train.phase_settings[0].micro_batch_size
    most = max(1, _MOST_SLOTS // seq_len)
    return most if size == "auto" else min(size, most)


def bf16_share(model: ModelConfig, rows: int, slots: int, device: torch.device) -> float:
    """Measure how long forward and backward of one layer take in bf16, as a share of the time in fp32.

    Both run in turn, and the best time of each counts. Draws from no generator that others use.
    """
    shape = model.model_copy(update={"num_hidden_layers": 1})
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        layer = RoFormerV2Model(build_hf_config(shape, _WORDS)).to(device)
        ids = torch.randint(_WORDS, (rows, slots), device=device)
        best: dict[Precision, float] = {}
        rounds, started = 0, time.perf_counter()
        while rounds <= _FEWEST_ROUNDS or time.perf_counter() - started < _SECONDS:
            for name in ("fp32", "bf16"):
                taken = _seconds(layer, ids, name, device)
                if rounds:  # the first warms up
                    best[name] = min(taken, best.get(name, taken))
            rounds += 1
    return best["bf16"] / best["fp32"]


def _seconds(layer: RoFormerV2Model, ids: torch.Tensor, precision: Precision, device: torch.device) -> float:
    """Return the seconds of one forward and backward: of the processor on a CPU, which others may be using too."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    before = clock()
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
        hidden = layer(ids, sequence_ids=torch.ones_like(ids)).last_hidden_state
    hidden.float().square().sum().backward()
    layer.zero_grad(set_to_none=True)
    synchronize(device)
    return clock() - before
