"""STAGE 5: checkpoint -> Hugging Face folder, reloaded with ``AutoModel`` and compared before it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForPreTraining
from transformers.utils import logging as transformers_logging

from kexue_train.export.model_card import write_model_card
from kexue_train.export.stage import recipe_of
from kexue_train.foundation.artifacts import (
    Manifest,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
    read_manifest,
    verify_artifact,
)
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import write_hf_folder
from kexue_train.samples.tokenizer import load_tokenizer
from kexue_train.train.checkpoint import load_checkpoint

TOLERANCE = 1e-5
"""Largest difference of a logit between the checkpoint and the exported folder, fp32."""


def export_hf(checkpoint: Path, out_dir: Path, *, replace: bool = False, progress: Progress = SILENT) -> Manifest:
    """Write ``out_dir`` from a checkpoint; ``from_pretrained(out_dir, trust_remote_code=True)`` opens it.

    Raises:
        ArtifactError: If the checkpoint is damaged, or the exported folder computes other logits.
    """
    source = read_manifest(checkpoint)
    if source.kind != "checkpoint" or not (checkpoint / "trainer_state.json").exists():
        raise ArtifactError(f"{checkpoint}: not a checkpoint; give one such as pretrain/checkpoints/step-00001000")
    recipe = recipe_of(source)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    verify_artifact(checkpoint)
    partial = open_partial(out_dir, recipe)
    model = _read_model(checkpoint)
    write_hf_folder(model, partial, checkpoint)
    write_model_card(partial, source, model.config)
    difference = compare_logits(model, partial)
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"{out_dir}: the exported model's logits differ from the checkpoint's by {difference:g} (allowed: "
            f"{TOLERANCE:g}), so it is not published; please report this with the versions of torch and transformers"
        )
    statistics = {
        "max_logit_difference": difference,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": source.settings["step"],
    }
    return publish(partial, out_dir, build_manifest(recipe, describe_files(partial), statistics=statistics))


@torch.no_grad()
def compare_logits(model: RoFormerV2ForPreTraining, folder: Path) -> float:
    """Return the largest difference of any logit between ``model`` and what ``AutoModel`` loads from ``folder``."""
    transformers_logging.disable_progress_bar()
    exported = AutoModelForPreTraining.from_pretrained(folder.absolute(), trust_remote_code=True).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (2, 32), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    ours, theirs = (m(ids, attention_mask=mask) for m in (model.eval(), exported))
    pairs = [
        (ours.prediction_logits, theirs.prediction_logits),
        (ours.seq_relationship_logits, theirs.seq_relationship_logits),
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


def _read_model(checkpoint: Path) -> RoFormerV2ForPreTraining:
    values: dict[str, Any] = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if "num_tokens" not in values:  # written by an older version
        values["num_tokens"] = load_tokenizer(checkpoint).get_vocab_size()
    model = RoFormerV2ForPreTraining(RoFormerV2Config.from_dict(values))
    load_checkpoint(checkpoint, model)
    return model
