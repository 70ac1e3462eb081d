"""Two encoders that learned rows of 64 bytes, one of them with scores scaled by log n, read on longer rows."""

from __future__ import annotations

from functools import lru_cache

from claims.claim import Setting
from claims.training.byte_encoder import ByteTraining, heldout_loss, train
from claims.training.text import all_bytes
from kexue_train.model import RoFormerV2ForMaskedLM

TRAINED, LENGTHS = 64, (64, 128, 256, 512, 1024)
LOG_N = 512
"""Length at which the published scale is 1."""
_TASK = ByteTraining(lr=5e-3, steps=400, rows=16, length=TRAINED)
_READ_BYTES = 16_384


@lru_cache(maxsize=2)
def trained(setting: Setting, seed: int, log_n: bool) -> RoFormerV2ForMaskedLM:
    """Return the encoder, trained once for all claims that read it."""
    task = ByteTraining(**vars(_TASK) | {"model": {"log_n_scale": LOG_N if log_n else None}})
    return train(task, all_bytes(setting), seed)


def losses(
    setting: Setting,
    seed: int,
    *,
    trained_with_log_n: bool = False,
    log_n: int | None = None,
    window: int | None = None,
) -> dict[int, float]:
    """Return the held-out loss in nats by length of the rows, with the options that are set when reading."""
    model = trained(setting, seed, trained_with_log_n)
    model.config.log_n_scale, model.config.attention_window = log_n, window
    return {length: heldout_loss(model, all_bytes(setting), length, size=_READ_BYTES) for length in LENGTHS}
