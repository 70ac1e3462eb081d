"""What a run made, where, how good it is against guessing, and how long it took: for the page, terminal and Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.downstream.results.result import confidence
from kexue_train.foundation.runtime import format_seconds
from kexue_train.metrics.fields import PARAMETERS, Kind, head_metrics
from kexue_train.metrics.heads import HEADS, Head
from kexue_train.report.run_data import RunData, load_run

_MIN_GAIN_NATS = 0.05  # smaller differences to guessing are called none


@dataclass(frozen=True)
class Summary:
    """A run in a few lines."""

    name: str
    state: str
    """``complete``, or how far it is."""
    is_complete: bool
    model: str
    parameters: int | None
    quality: str
    """How good the model is against guessing, in one or two honest sentences."""
    losses: str
    """What of the corpus could not be used, in a sentence; empty if all could."""
    seconds: float
    """Time of all finished stages."""
    model_dir: Path | None
    """The exported model, if it is there."""
    report: Path
    snippet: str
    """Python that loads the model."""

    def to_markdown(self) -> str:
        """Return a short Markdown text with the snippet."""
        where = f"`{self.model_dir}`" if self.model_dir else "not exported yet"
        lines = [
            f"# {self.name}: {self.state}",
            "",
            f"{self.quality}",
            "",
            *([self.losses, ""] if self.losses else []),
            "| | |",
            "|---|---|",
            f"| Model | {self.model} |",
            f"| Where | {where} |",
            f"| Time | {format_seconds(self.seconds)} |",
            f"| Report | `{self.report}` |",
        ]
        if self.model_dir:
            lines += ["", "```python", self.snippet, "```"]
        return "\n".join(lines) + "\n"


def summarise(run_dir: Path) -> Summary:
    """Summarise the run in ``run_dir``, finished or not.

    Raises:
        ArtifactError: If it is not a run folder.
    """
    return summarise_run(load_run(run_dir))


def summarise_run(run: RunData) -> Summary:
    """Summarise what was read of a run."""
    parameters = _count_parameters(run)
    model_dir = run.folder / "hf"
    return Summary(
        name=run.name,
        state=_state(run),
        is_complete=run.is_complete,
        model=_describe_model(run, parameters),
        parameters=parameters,
        quality=describe_quality(run),
        losses=_describe_losses(run),
        seconds=total_seconds(run),
        model_dir=model_dir if "hf" in run.manifests else None,
        report=run.folder / "report" / "index.html",
        snippet=_snippet(model_dir),
    )


def describe_quality(run: RunData) -> str:
    """Say how good the model is against guessing without context, in one or two sentences."""
    mlm = run.mlm
    if not mlm:
        return _describe_progress(run)
    # Where a token is shown it can be copied; only hidden ones compare fairly with guessing.
    scores: dict[str, Any] = mlm.get("hidden_only") or {}
    words, *others = HEADS
    loss, entropy = scores.get(words.loss_key), scores.get("unigram_entropy")
    if loss is None or entropy is None:
        return "The held-out text holds no hidden token, so nothing can be said about how good the model is."
    gain = entropy - loss
    if gain >= _MIN_GAIN_NATS:
        verdict = (
            f"On held-out text the model finds {scores[words.accuracy_key]:.1%} of the hidden tokens at first guess. "
            f"Its loss on them is {loss:.2f} nats, {gain:.2f} below {entropy:.2f}, the best that is possible without "
            "looking at the context."
        )
    else:
        verdict = (
            f"The model has not learnt to use the context: its loss on hidden tokens of held-out text is {loss:.2f}, "
            f"and knowing only how often each token occurs reaches {entropy:.2f}. "
            "It needs more steps, more text or another learning rate."
        )
    return " ".join(filter(None, [verdict, *(_describe_head(mlm, head) for head in others)]))


def _describe_losses(run: RunData) -> str:
    found = {name: manifest.describe_rejected() for name, manifest in run.manifests.items()}
    return " ".join(f"{text}: see {run.folder / name / 'rejected'}." for name, text in found.items() if text)


def total_seconds(run: RunData) -> float:
    """Add up the seconds of all stages; training counts by its metrics, which include the parts before a restart."""
    stages = {str(record.get("stage")): float(record.get("seconds") or 0.0) for record in run.stages}
    stages["train"] = max(stages.get("train", 0.0), run.training_seconds)
    return sum(stages.values())


def _count_parameters(run: RunData) -> int | None:
    """Return the number of weights, from whatever part of the run knows it."""
    exported = run.manifests["hf"].statistics if "hf" in run.manifests else {}
    started = next(filter(None, map(PARAMETERS.amount, reversed(run.of_kind(Kind.START, Kind.RESUME)))), None)
    found = exported.get("parameters") or run.mlm.get("parameters") or started
    return int(found) if found else None


def _describe_head(mlm: dict[str, Any], head: Head) -> str:
    """Compare a head with guessing the more frequent answer, in a sentence; empty if it was not evaluated."""
    accuracy, number = mlm.get(head.accuracy_key), int(mlm.get(head.counted) or 0)
    majority = (mlm.get("baselines") or {}).get(f"{head.name}_majority")
    if accuracy is None or majority is None:
        return ""
    margin = confidence(accuracy, number)
    if accuracy - margin > majority:
        return (
            f"On {head.subject} it is right for {accuracy:.1%} of {number:,} {head.counted} (guessing: {majority:.1%})."
        )
    return (
        f"On {head.subject} it is not reliably better than guessing: {accuracy:.1%} ± {margin:.1%} of {number:,} "
        f"{head.counted} (guessing: {majority:.1%})."
    )


def _describe_progress(run: RunData) -> str:
    validation = run.curve(Kind.VALIDATION)
    if not validation:
        return "Not evaluated yet, and no validation so far."
    (loss, accuracy), last = head_metrics(HEADS[0]), validation[-1]
    against = f"; guessing by frequency alone reaches {run.training_entropy:.2f}" if run.training_entropy else ""
    return (
        f"Not evaluated yet. The last validation, at step {last['step']:,}, gives a loss of {loss.text(last)} nats and "
        f"{accuracy.text(last)} of the predicted tokens right{against}."
    )


def _state(run: RunData) -> str:
    if run.is_complete:
        return "complete"
    if run.metrics:
        step = max(record["step"] for record in run.metrics)
        total = f" of {run.total_steps:,}" if run.total_steps else ""
        return (
            "trained, not evaluated yet" if "hf" in run.manifests else f"in progress, training at step {step:,}{total}"
        )
    made = [name for name in ("samples", "tokenizer", "shards", "corpus") if name in run.manifests]
    return f"in progress, {made[0]} ready" if made else "in progress, nothing finished yet"


def _describe_model(run: RunData, parameters: int | None) -> str:
    model = run.config.get("model") or {}
    size = (
        f", {model['num_hidden_layers']} layers of width {model['hidden_size']}"
        if {"num_hidden_layers", "hidden_size"} <= model.keys()
        else ""
    )
    return f"RoFormerV2{size}" + (f", {parameters / 1e6:.3g} M parameters" if parameters else "")


def _snippet(model_dir: Path) -> str:
    return (
        "from transformers import AutoModel, AutoTokenizer\n\n"
        f"folder = {str(model_dir)!r}\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)\n"
        "model = AutoModel.from_pretrained(folder, trust_remote_code=True)\n"
        'inputs = tokenizer("Some text to encode.", return_tensors="pt")\n'
        "vectors = model(**inputs).last_hidden_state  # [1, tokens, width]"
    )
