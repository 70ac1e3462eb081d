"""The list of claims, in the order of the page."""

from __future__ import annotations

from claims.claim import Claim
from claims.posts import (
    adam_second_moment,
    drift_remedies,
    faster_than_roberta,
    fewer_updates,
    hidden_accumulation,
    increments,
    initial_losses,
    log_n,
    nsp_zero_shot,
    pmi_phrases,
    post_norm_finetuned,
    post_norm_gradients,
    recomputation,
    sign_drift,
    sign_steps_and_noise,
    tiger_and_adamw,
    whitening,
    window_mask,
)

CLAIMS: tuple[Claim, ...] = (
    initial_losses.CLAIM,
    increments.CLAIM,
    post_norm_gradients.CLAIM,
    post_norm_finetuned.CLAIM,
    faster_than_roberta.CLAIM,
    recomputation.CLAIM,
    hidden_accumulation.CLAIM,
    adam_second_moment.CLAIM,
    fewer_updates.CLAIM,
    tiger_and_adamw.CLAIM,
    sign_steps_and_noise.CLAIM,
    sign_drift.CLAIM,
    drift_remedies.CLAIM,
    window_mask.CLAIM,
    log_n.CLAIM,
    nsp_zero_shot.CLAIM,
    whitening.CLAIM,
    pmi_phrases.CLAIM,
)
