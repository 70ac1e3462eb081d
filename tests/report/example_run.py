"""A run folder written by hand: every file that the report reads, with numbers that look like a small run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from kexue_train.downstream.results.zero_shot import MethodFailure, ZeroShotResults, ZeroShotScore, ZeroShotTaskResult
from kexue_train.foundation.artifacts import (
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


def write_young_run_with_torn_end(run_dir: Path) -> Path:
    """As ``write_young_run``, killed while it wrote a line."""
    write_young_run(run_dir)
    with (run_dir / "pretrain" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 310, "mlm_lo')
    return run_dir


ZERO_SHOT = ZeroShotResults(
    model_type="roformer_v2",
    parameters=5_310_464,
    max_length=128,
    tasks=[
        ZeroShotTaskResult(
            task="eprstmt",
            title="positive or negative review",
            records=610,
            num_labels=2,
            chance=0.5,
            majority=0.52,
            scores=[
                ZeroShotScore(
                    method="nsp", decision="candidates", accuracy=0.661, standard_error=0.019, predicted={"正": 400}
                ),
                ZeroShotScore(
                    method="pet", decision="candidates", accuracy=0.55, standard_error=0.02, predicted={"正": 300}
                ),
            ],
            published={"NSP-BERT": 0.869},
        ),
        ZeroShotTaskResult(
            task="bustm",
            title="do two questions ask the same",
            records=1772,
            num_labels=2,
            chance=0.5,
            majority=0.5,
            scores=[
                ZeroShotScore(
                    method="nsp",
                    decision="thresholds",
                    assumption="all labels are equally frequent",
                    accuracy=0.53,
                    standard_error=0.012,
                    predicted={"1": 800},
                )
            ],
            published={"NSP-BERT": 0.634},
        ),
        ZeroShotTaskResult(
            task="tnews",
            title="section of a headline",
            failures=[MethodFailure(method=None, error="tnews/test_public.json: cannot be read (No such file)")],
            published={"NSP-BERT": 0.51},
        ),
    ],
    means={"chance": 0.5, "nsp": 0.5955, "NSP-BERT": 0.671},
)
SENTENCE_VECTORS = {
    "schema_version": 1,
    "pooling": "mean",
    "sets": [
        {"set": "lcqmc", "pairs": 12_500, "spearman": {"plain": 0.412, "whitened": 0.533}},
        {"set": "stsb_zh", "pairs": 1361, "spearman": {"plain": 0.388, "whitened": 0.514}},
    ],
}
_CHINESE = [
    {
        "sentence": "北京是中国的[MASK]都，鲁迅原名周[MASK]人。",
        "masks": [
            [{"token": t, "probability": q} for t, q in (("首", 0.62), ("故", 0.11))],
            [{"token": t, "probability": q} for t, q in (("树", 0.44), ("作", 0.2))],
        ],
    }
]
_PHASES = (
    {"phase": 1, "seq_len": 128, "global_batch_size": 64, "micro_batch_size": 16, "accumulation_steps": 2},
    {"phase": 2, "seq_len": 512, "global_batch_size": 16, "micro_batch_size": 4, "accumulation_steps": 2},
)


def eventful_metrics() -> list[dict[str, object]]:
    """A training in two phases in which a lot happens."""
    lines = metric_lines(1000)
    lines[0] |= _PHASES[0] | {"peak_flops_per_second": 2e12}
    for line in lines:
        if line["kind"] == "train":
            speed = {"mfu": 0.31 if int(line["step"]) <= 800 else 0.42, "mfu_datasheet": 0.2, "data_wait": 0.01}
            line |= speed | {"memory_bytes": 3_200_000_000, "eta_seconds": 10.0}
            line |= {"embedding_max": 0.5, "embedding_rms_median": 0.1, "embedding_rms_max": 0.3}
    happened: list[tuple[int, dict[str, object]]] = [
        (200, {"kind": "checkpoint", "step": 200, "stall_seconds": 1.5}),
        (300, {"kind": "nonfinite", "step": 300, "tensors": {"roformer.encoder.layer.0.output.weight": 2}}),
        (400, {"kind": "resume", "step": 400, "time": 1.8e9 + 150}),
        (
            400,
            {
                "kind": "rollback",
                "step": 400,
                "spike_step": 412,
                "loss": "nan",
                "usual": 5.1,
                "left_out": [[400, 12, 64]],
            },
        ),
        (
            500,
            {
                "kind": "warning",
                "step": 500,
                "symptom": "loader",
                "message": "the device waits for data 30% of the time",
            },
        ),
        (600, {"kind": "checkpoint_failed", "step": 600, "failures_in_a_row": 1, "reason": "No space left on device"}),
        (700, {"kind": "resume", "step": 700, "time": 1.8e9 + 280}),
        (800, {"kind": "phase", "step": 800, "time": 1.8e9 + 300, **_PHASES[1]}),
    ]
    for step, event in happened:
        place = next(i for i, line in enumerate(lines) if line["step"] == step and line["kind"] == "train")
        lines.insert(place + 1, event)
    return lines


def write_eventful_run(run_dir: Path) -> Path:
    """A finished run with Chinese predictions, two phases, everything that can go wrong, and further evaluations."""
    write_finished_run(run_dir)
    (run_dir / "config.yaml").write_text(CONFIG.replace("name: demo", "name: 中文-small").replace("seed: 0", "seed: 7"))
    write_metrics(run_dir, eventful_metrics())
    folder = run_dir / "evaluate"
    (folder / "predictions.json").write_text(json.dumps(_CHINESE, ensure_ascii=False), encoding="utf-8")
    (folder / "zero_shot.json").write_text(ZERO_SHOT.model_dump_json(), encoding="utf-8")
    (folder / "sentence_vectors.json").write_text(json.dumps(SENTENCE_VECTORS), encoding="utf-8")
    manifest = json.loads((run_dir / "shards" / MANIFEST_NAME).read_text())
    manifest["inputs"] = [
        {"uri": "corpus/wiki.jsonl", "bytes": 9_000_000, "rows": 20_000, "rejected": {"not valid UTF-8": 3}},
        {"uri": "corpus/news.jsonl", "bytes": 7_000_000, "rows": 1_307, "dropped": {"min_chars": 41}},
    ]
    (run_dir / "shards" / MANIFEST_NAME).write_text(json.dumps(manifest))
    return run_dir
