"""The cheap claims give the figures that are known, and every claim can be judged both ways."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from claims.all_claims import CLAIMS
from claims.claim import Setting
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
from claims.training.two_tokens import NONE, REMEDIES, largest_of_rare_row, sum_of_rates_to_half
from claims.verdict import Verdict

NOTHING = Setting(Path("/nonexistent"))


def test_fresh_networks_have_the_known_losses() -> None:
    # Measured from outside with weights of their own: 9.47, 4.34, 0.92 and 9.95, 9.21, 0.06.
    assert initial_losses.start("depth_n", 0) == pytest.approx((9.47, 4.34, 0.92), abs=0.15)
    hidden, unchanged, cosine = initial_losses.start("released", 0)
    assert (hidden, unchanged) == pytest.approx((9.95, 9.21), abs=0.3)
    assert abs(cosine) < 0.3


def test_folded_gradients_give_the_same_steps() -> None:
    assert max(hidden_accumulation.measure(0, NOTHING).values()) < 1e-14


@pytest.mark.parametrize(("parts", "known"), [(2, 1.997), (8, 8.012)])
def test_v_grows_by_the_number_of_micro_batches(parts: int, known: float) -> None:
    folded, whole = (adam_second_moment.second_moment(parts, "noise", 1, folds=folds) for folds in (True, False))
    assert (folded.mean() / whole.mean()).item() == pytest.approx(known, rel=0.01)


def test_a_rare_row_is_on_its_way_to_the_limit_and_a_lazy_one_is_not() -> None:
    # 600 steps of 8e-3 are e^4.8 = 120-fold growth, less where a sign must turn first.
    assert largest_of_rare_row(NONE, 0, steps=600) > 10 * largest_of_rare_row(REMEDIES["lazy rows"], 0, steps=600)


def test_growth_is_logistic() -> None:
    assert sum_of_rates_to_half(2e-2) == pytest.approx(math.log(9999), rel=0.02)


def test_unscaled_branches_explode() -> None:
    figures = increments.measure(0, NOTHING)
    assert figures["ε = 1"] > 1e3
    assert figures["ε = 1/√N"] == pytest.approx(1, rel=0.5)


def test_first_layers_of_a_fresh_post_norm_encoder_have_gradients() -> None:
    norms = post_norm_gradients.gradient_norms({"norm_placement": "post", "init": "released"}, 0)
    assert norms[0] / norms[-1] > 0.1


JUDGED = [
    (
        initial_losses,
        {
            "[MASK], scaled": 9.45, "unchanged, scaled": 4.3, "cos, scaled": 0.92, "unchanged, unscaled": 9.2,
            "cos, unscaled": 0.06,
        },
        {"unchanged, scaled": 9.0},
    ),
    (hidden_accumulation, {"weights, whole batch": 1e-16}, {"weights, whole batch": 1e-3}),
    (
        adam_second_moment,
        {f"noise, k = {k}": float(k) for k in (2, 4, 8)} | {f"equal, k = {k}": 1.0 for k in (2, 4, 8)},
        {"noise, k = 8": 1.0},
    ),
    (sign_drift, {"rare row": 99.9, "Σα to half of 1/λ": 9.21}, {"rare row": 0.1}),
    (
        drift_remedies,
        {"lazy rows": 0.1, "tied": 0.1, "half-swapped": 0.1, "AdamW rows": 0.1},
        {"tied": 99.0},
    ),
    (increments, {"ε = 1": 1e9, "ε = 1/√N": 1.1, "Tiger, scaled weights": 0.9}, {"ε = 1/√N": 20.0}),
    (post_norm_gradients, {"post, unscaled at 1": 1e-7}, {"post, unscaled at 1": 0.7}),
    (
        post_norm_finetuned,
        {"post-norm, fine-tuned": 80.0, "pre-norm, fine-tuned": 77.0},
        {"post-norm, fine-tuned": 75.0},
    ),
    (recomputation, {"batch": 3.0, "time": 1.25}, {"time": 2.0}),
    (
        faster_than_roberta,
        {"RoBERTa / ours at 128": 1.3, "RoBERTa / ours at 512": 1.2},
        {"RoBERTa / ours at 512": 1.0},
    ),
    (
        pmi_phrases,
        {"planted phrases found, %": 99.0, "found that were planted, %": 95.0, "found in mixed characters": 0.0},
        {"planted phrases found, %": 10.0},
    ),
    (fewer_updates, {"every 1": 2.5, "every 4": 2.4}, {"every 4": 2.6}),
    (tiger_and_adamw, {"AdamW": 2.5, "LAMB": 2.5, "Lion": 2.5, "Tiger": 2.45}, {"Tiger": 2.6}),
    (
        sign_steps_and_noise,
        {"Lion at 2": 0.2, "Tiger at 2": 0.3, "Lion at 16": 0.1, "Tiger at 16": 0.1},
        {"Lion at 16": 0.3, "Tiger at 16": 0.4},
    ),
    (
        window_mask,
        {"plain at 64": 2.2, "plain at 1024": 2.9, "window of 64 at 1024": 2.2},
        {"window of 64 at 1024": 3.0},
    ),
    (
        log_n,
        {
            "plain at 64": 2.2, "plain at 256": 2.6, "trained with log n at 64": 2.2, "trained with log n at 256": 2.4,
        },
        {"trained with log n at 256": 2.8},
    ),
    (nsp_zero_shot, {"zero-shot": 60.0, "prompts permuted": 15.0}, {"zero-shot": 20.0}),
    (whitening, {"as they are": 30.0, "whitened": 40.0}, {"whitened": 25.0}),
]  # fmt: skip


@pytest.mark.parametrize(("post", "good", "change"), JUDGED, ids=[post.CLAIM.name for post, _, _ in JUDGED])
def test_figures_as_claimed_confirm_and_others_refute(post, good: dict[str, float], change: dict[str, float]) -> None:
    def judged(figures: dict[str, float]) -> Verdict:
        return post.CLAIM.judge({name: [value * (1 + 1e-4 * n) for n in range(3)] for name, value in figures.items()})

    assert judged(good) == "confirmed"
    assert judged(good | change) == "refuted"


def test_every_claim_is_judged_here() -> None:
    assert {post.CLAIM.name for post, _, _ in JUDGED} == {claim.name for claim in CLAIMS}


def test_nothing_of_the_product_imports_claims(repository: Path) -> None:
    importing = [
        path
        for folder in ("kexue_train", "flows", "benchmarks")
        for path in (repository / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "claims")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "claims" for alias in node.names))
    ]
    assert importing == []
