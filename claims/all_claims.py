"""The list of claims, in the order of the page."""

from __future__ import annotations

from claims.claim import Claim
from claims.posts import (
    adam_second_moment,
    drift_remedies,
    hidden_accumulation,
    increments,
    initial_losses,
    pmi_phrases,
    post_norm_gradients,
    sign_drift,
)

CLAIMS: tuple[Claim, ...] = (
    initial_losses.CLAIM,
    increments.CLAIM,
    post_norm_gradients.CLAIM,
    hidden_accumulation.CLAIM,
    adam_second_moment.CLAIM,
    sign_drift.CLAIM,
    drift_remedies.CLAIM,
    pmi_phrases.CLAIM,
)
