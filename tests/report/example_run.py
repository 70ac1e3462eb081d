"""A run folder written by hand: every file that the report reads, with numbers that look like a small run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from kexue_train.artifacts import (
    MANIFEST_NAME,
    Manifest,
    Recipe,
    RowsChecksum,
    build_manifest,
    describe_files,
    write_atomic,
)

CONFIG = """\
name: demo
seed: 0
corpus:
  source: installed_docs
model:
  num_hidden_layers: 4
  hidden_size: 256
train:
  steps: 1000
"""
_STATISTICS = {
    "corpus": {"documents": 21_307, "duplicates_dropped": 412, "bytes_per_document": 748.2},
    "shards": {
        "rank_correlation": {"coefficient": -0.0031, "standard_deviation": 0.00685},
        "source_mixing": {
            "chi_square": 9.2,
            "degrees_of_freedom": 8,
            "worst_shard": {"shard": 3, "chi_square": 4.1, "degrees_of_freedom": 2},
        },
    },
    "tokenizer": {"vocab_size": 8192, "unknown_rate": 0.00012},
    "samples": {
        "seq_len": 256,
        "vocab_size": 8192,
        "heldout_rows": 320,
        "documents": 21_307,
        "sequences": 48_211,
        "pairs": 47_950,
        "negative_pairs": 23_811,
        "negative_share": 0.496580,
        "word_lengths": {"1": 2_611_020, "2": 502_117, "8 or more": 1_204},
        "real_tokens": 4_102_334,
        "fill": 0.9887,
        "special_token_ids": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    },
    "hf": {"parameters": 5_310_464, "max_logit_difference": 0.0},
    "evaluate": {},
}
_KINDS = {
    "corpus": "corpus",
    "shards": "text_shards",
    "tokenizer": "tokenizer",
    "samples": "sample_shards",
    "hf": "hf_model",
    "evaluate": "evaluation",
}


def write_artifact(folder: Path, files: dict[str, str], parents: dict[str, Manifest]) -> Manifest:
    """An artifact with the given files and made-up statistics."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    kind = _KINDS[folder.name]
    recipe = Recipe(kind=kind, settings={}, parents={k: m.content_digest for k, m in parents.items()})
    rows = RowsChecksum(input="0" * 30 + "2a", dropped="0" * 31 + "2", output="0" * 30 + "28")
    manifest = build_manifest(
        recipe,
        describe_files(folder),
        rows=21_307,
        statistics=_STATISTICS[folder.name],
        rows_checksum=rows if folder.name == "shards" else None,
    )
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json())
    return manifest


def metric_lines(steps: int, *, resumed_at: int | None = None) -> list[dict[str, object]]:
    """Metrics of a training that learns along an exponential, logged every 10 steps and validated every 100."""
    noise = np.random.default_rng(0)
    event = {"world_size": 2, "zero_stage": 0, "engine": "deepspeed", "device": "cpu", "parameters": 5_310_464}
    lines: list[dict[str, object]] = [{"kind": "start", "step": 0, "time": 1.8e9, **event}]
    for step in range(10, steps + 1, 10):
        loss = 4.6 + 2.1 / (1 + math.exp((step - 350) / 60)) + 2.3 * math.exp(-step / 40)
        scores = {
            "mlm_loss": loss + noise.normal(0, 0.06),
            "mlm_accuracy": max(0.0, 0.32 - 0.045 * loss + noise.normal(0, 0.004)),
            "nsp_loss": 0.69 - 0.1 * step / 1000,
            "nsp_accuracy": 0.5 + 0.2 * step / 1000 + noise.normal(0, 0.02),
        }
        progress = {"epoch": step / 400, "rows": 64 * step, "tokens": 16_200 * step, "seconds": 0.31 * step}
        speed = {
            "lr": 1e-3 * min(1, step / 100) * (1 - step / 1100),
            "tokens_per_second": 52_000 + noise.normal(0, 900),
        }
        lines.append({"kind": "train", "step": step, "micro_step": 2 * step, **progress, **scores, **speed})
        if step % 100 == 0:
            smooth = {**scores, "mlm_loss": loss - 0.05, "predictions": 11_000, "pairs": 900}
            lines.append({"kind": "validation", "step": step, **smooth})
        if step == resumed_at:
            lines.append({"kind": "resume", "step": step, "time": 1.8e9 + 200, **event})
    return lines


def write_metrics(run_dir: Path, lines: list[dict[str, object]]) -> None:
    """Write ``metrics.jsonl``."""
    folder = run_dir / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


MLM = {
    "predictions": 11_310,
    "mlm_loss": 4.5512,
    "mlm_accuracy": 0.2713,
    "mlm_perplexity": 94.7,
    "gain_over_unigram_nats": 2.05,
    "hidden_only": {
        "predictions": 9_062,
        "mlm_loss": 4.9034,
        "mlm_accuracy": 0.2181,
        "unigram_entropy": 6.583,
        "gain_over_unigram_nats": 1.6796,
    },
    "nsp_loss": 0.5911,
    "nsp_accuracy": 0.6921,
    "pairs": 903,
    "has_nsp_head": True,
    "baselines": {
        "uniform": 9.0109,
        "unigram_entropy": 6.6012,
        "unigram_cross_entropy": 6.7344,
        "most_frequent_token": 17,
        "most_frequent_token_text": ".",
        "most_frequent_token_accuracy": 0.0514,
        "nsp_majority": 0.5083,
    },
    "frequency_bands": [
        {"tokens": n, "training_share": 0.25, "predictions": 2800, "mlm_loss": 4.0, "mlm_accuracy": accuracy}
        for n, accuracy in ((12, 0.5213), (121, 0.3122), (804, 0.1731), (7255, 0.0712))
    ],
    "rows": 320,
    "seq_len": 256,
    "vocab_size": 8192,
    "parameters": 5_310_464,
    "seed": 0,
}
PREDICTIONS = [
    {
        "sentence": sentence,
        "masks": [
            [{"token": t, "probability": p} for t, p in zip(tokens, (0.31, 0.14, 0.08, 0.05, 0.031), strict=True)]
        ],
    }
    for sentence, tokens in (
        ("This function returns a [MASK] of strings.", ("list", "tuple", "string", "set", "##s")),
        ("If the file does not [MASK], an error is raised.", ("exist", "match", "have", "be", "contain")),
        ("The default value of this [MASK] is None.", ("parameter", "option", "value", "argument", "function")),
    )
]


def write_finished_run(run_dir: Path) -> Path:
    """A run folder in which every stage has finished, training after one restart."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(CONFIG, encoding="utf-8")
    manifests: dict[str, Manifest] = {}
    before: dict[str, Manifest] = {}
    for name in ("corpus", "shards", "tokenizer", "samples"):
        manifests[name] = write_artifact(run_dir / name, {"data.txt": name * 100}, before)
        before = {manifests[name].kind: manifests[name]}
    np.save(run_dir / "samples" / "token_counts.npy", 1_000_000 // np.arange(5, 8197))
    manifests["hf"] = write_artifact(run_dir / "hf", {"config.json": "{}"}, {})
    files = {"mlm.json": json.dumps(MLM), "predictions.json": json.dumps(PREDICTIONS)}
    write_artifact(run_dir / "evaluate", files, {"hf_model": manifests["hf"], "sample_shards": manifests["samples"]})
    write_metrics(run_dir, [*metric_lines(1000, resumed_at=430), {"kind": "end", "step": 1000, "time": 1.8e9 + 420}])
    facts = [("corpus", 14, 16e6), ("shuffle", 6, 15.8e6), ("tokenizer", 5, 4e5), ("samples", 21, 9.1e6)]
    facts += [("train", 322, 21e6), ("export", 4, 21e6), ("evaluate", 9, 7e3)]
    lines = [
        {"stage": s, "started": 1.8e9 + i, "seconds": t, "rows": 21_307, "bytes": int(b), "status": "made"}
        for i, (s, t, b) in enumerate(facts)
    ]
    (run_dir / "stages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run_dir


def write_young_run(run_dir: Path) -> Path:
    """A run folder in the middle of its training."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(CONFIG.replace("demo", "young"), encoding="utf-8")
    write_artifact(run_dir / "samples", {"data.txt": "rows"}, {})
    write_metrics(run_dir, metric_lines(300))
    return run_dir
