"""The reference of the Python API: which modules a user imports, by topic; mkdocstrings shows their docstrings."""

from __future__ import annotations

_TOPICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "runs": (
        "Runs and configuration",
        "A whole run from Python: load a configuration, open its run folder, run its stages.",
        ("pipeline.run_config", "pipeline.run", "pipeline.plan", "foundation.errors"),
    ),
    "data": (
        "Data",
        "Text to shards in random order, a tokenizer, rows of samples, and what a step of training reads.",
        (
            "shuffle.shuffle_corpus",
            "samples.tokenizer",
            "samples.build_samples",
            "samples.mlm",
            "batches.open_samples",
            "batches.order",
        ),
    ),
    "model": (
        "Model",
        "RoFormerV2 for `transformers`; an exported folder carries the same code.",
        ("model.configuration_roformer_v2", "model.modeling_roformer_v2", "export.import_weights"),
    ),
    "optimizer": (
        "Optimizer",
        "Tiger in a training loop of your own.",
        ("optim.tiger", "optim.param_groups", "optim.tiger_update"),
    ),
    "training": (
        "Training and export",
        "Training from samples, its metrics, and the Hugging Face folder.",
        ("train.pretrain", "metrics.file", "metrics.fields", "export.export_hf"),
    ),
    "results": (
        "Results",
        "Scores, the report, and what the checkpoints of a run say.",
        (
            "downstream.evaluate.evaluate_model",
            "downstream.load_model",
            "downstream.results.files",
            "report.build_report",
        ),
    ),
}


def python_reference() -> dict[str, str]:
    """Return the pages by their place on the site."""
    pages = {}
    for name, (title, about, modules) in _TOPICS.items():
        directives = [f"::: kexue_train.{module}" for module in modules]
        pages[f"reference/python/{name}.md"] = "\n\n".join([f"# {title}", about, *directives, ""])
    return pages
