"""What comes of a training: exported, loaded, and scored alike on the CPU and on the device."""

from __future__ import annotations

from unittest import mock

import torch

from benchmarks.gpu.check import Bench, Check, Figures, require
from benchmarks.gpu.watched_training import checkpoint_of, make_job, train
from kexue_train.downstream.evaluate.masked_lm import evaluate_masked_lm
from kexue_train.export.export_hf import export_hf

_TOLERANCE = 1e-3
"""Relative, of the loss, in fp32 on both."""


def check_export(bench: Bench) -> Figures:
    """Train, export, and evaluate the held-out rows twice."""
    checkpoint = checkpoint_of(train(bench, make_job(bench), "exported-training"))
    folder = bench.fresh_folder("exported")
    manifest = export_hf(checkpoint, folder)
    here = evaluate_masked_lm(folder, bench.samples, seed=0, batch_size=bench.sizes.rows)
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        host = evaluate_masked_lm(folder, bench.samples, seed=0, batch_size=bench.sizes.rows)
    figures: Figures = {
        "logits_off": manifest.statistics["max_logit_difference"],
        "device_loss": here.mlm_loss,
        "cpu_loss": host.mlm_loss,
    }
    off = abs(here.mlm_loss - host.mlm_loss) / host.mlm_loss
    require(off <= _TOLERANCE, f"evaluation differs by {off:.2g} between CPU and device", figures)
    return figures


CHECKS = (Check(name="export and evaluate", minutes=0.4, run=check_export),)
