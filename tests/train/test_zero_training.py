"""A whole training that changes its ZeRO stage and number of workers on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kexue_train.train import data
from kexue_train.train.job import read_samples
from kexue_train.train.phases import plan_phases
from tests.train.tiny_training import (
    SECONDS,
    curve,
    final_tensors,
    make_config,
    start_worker,
    train_by_ranks,
    train_here,
)

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("ranks", [3, 7, 30])
def test_ranks_have_as_many_held_out_batches_and_label_together_what_one_does(samples, monkeypatch, ranks):
    """Else the ranks of ZeRO 3, which compute together, would wait for each other for ever."""
    config = make_config(micro_batch_size=1, global_batch_size=1)
    (dataset,) = read_samples(samples, config)
    (phase,) = plan_phases(config.train, [dataset.seq_len], [1])
    assert len(dataset.heldout_rows) % ranks  # so that some are short of rows

    def labels_of(rank: int, ranks: int) -> list[torch.Tensor]:
        monkeypatch.setattr(data.dist, "get_rank", lambda: rank)
        monkeypatch.setattr(data.dist, "get_world_size", lambda: ranks)
        return [batch["prediction_labels"] for batch in data.heldout_batches(config, phase, dataset)]

    shares = [labels_of(rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    ours = torch.cat([labels for share in shares for labels in share]).sort().values
    expected = torch.cat(labels_of(0, 1)).sort().values
    assert torch.equal(ours[ours >= 0], expected[expected >= 0])


@pytest.mark.slow
def test_a_training_goes_on_at_another_zero_stage_with_another_number_of_workers(samples, tmp_path):
    pytest.importorskip("deepspeed")
    out, whole = tmp_path / "out", tmp_path / "whole"
    train_here(make_config(STILL), samples, whole)
    script = Path(__file__).with_name("kill_after_step.py")
    killed = start_worker(make_config(STILL, engine="deepspeed", zero_stage=1), samples, out, script=f"{script} 5")
    output, _ = killed.communicate(timeout=SECONDS)
    assert curve(out, "train"), output
    config = make_config(STILL, engine="deepspeed", zero_stage=3, num_workers=2, recompute="full")
    train_by_ranks(config, samples, out)

    starts = curve(out, "start", "resume")
    assert [(line["zero_stage"], line["world_size"], line["step"]) for line in starts] == [(1, 1, 0), (3, 2, 4)]
    assert len({line["parameters"] for line in starts}) == 1
    for ours, plain in zip(curve(out), curve(whole), strict=True):
        assert ours.keys() <= plain.keys()  # norms are measured where the tensors are whole
        names = [name for name in ("mlm_loss", "nsp_loss", "embedding_max", "predictions") if name in plain]
        assert [ours[name] for name in names] == pytest.approx([plain[name] for name in names], rel=1e-4)
    ours, plain = final_tensors(out), final_tensors(whole)
    assert ours.keys() == plain.keys()
    off = torch.cat([(ours[name] - plain[name]).abs().flatten() for name in plain]) > 1e-6
    assert off.float().mean() < 0.01  # where a gradient is almost zero its sign depends on the order of additions
