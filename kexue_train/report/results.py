"""What the evaluations found: tables for the page and the model card, and the scores that runs are compared by."""

from __future__ import annotations

import math

from kexue_train.report.run_data import Record, RunData
from kexue_train.report.score import Score
from kexue_train.report.summary import confidence
from kexue_train.report.tables import EMPTY, Table
from kexue_train.report.task_results import read_results

_HELDOUT = "held-out text"


def evaluation_tables(run: RunData) -> list[Table]:
    """Every table of results that there is, with baselines and published rows."""
    own = [table for table in (_mlm_table(run), _next_sentence_table(run)) if table]
    return own + [table for name, record in run.evaluations.items() for table in read_results(name, record).tables]


def scores_of(run: RunData) -> list[Score]:
    """The scores by which runs are compared and models are found."""
    mlm, hidden = run.mlm, run.mlm.get("hidden_only") or {}
    candidates = [
        ("loss", "loss on hidden tokens (nats)", hidden.get("mlm_loss")),
        ("accuracy", "hidden tokens found", hidden.get("mlm_accuracy")),
        ("perplexity", "perplexity of all predicted tokens", mlm.get("mlm_perplexity")),
        ("accuracy", "next-sentence accuracy", mlm.get("nsp_accuracy")),
    ]
    own = [Score(_HELDOUT, "fill-mask", kind, name, float(v)) for kind, name, v in candidates if v is not None]
    return own + [score for name, record in run.evaluations.items() for score in read_results(name, record).scores]


def _mlm_table(run: RunData) -> Table | None:
    mlm = run.mlm
    if not mlm:
        return None
    baselines, hidden = mlm["baselines"], mlm.get("hidden_only") or {}
    frequent = baselines.get("most_frequent_token_text", f"token {baselines['most_frequent_token']}")
    rows = [
        ["The model, hidden tokens only", _nats(hidden.get("mlm_loss")), _share(hidden, "mlm_accuracy", "predictions")],
        ["Best without context, same tokens", _nats(hidden.get("unigram_entropy")), EMPTY],
        ["The model, all predicted tokens", _nats(mlm["mlm_loss"]), _share(mlm, "mlm_accuracy", "predictions")],
        ["Entropy of the targets", _nats(baselines["unigram_entropy"]), EMPTY],
        ["Frequencies of the training text", _nats(baselines["unigram_cross_entropy"]), EMPTY],
        [f"Always “{frequent}”", EMPTY, f"{baselines['most_frequent_token_accuracy']:.1%}"],
        ["Uniform guessing", _nats(baselines["uniform"]), f"{1 / mlm['vocab_size']:.2%}"],
    ]
    if hidden.get("word_accuracy") is not None:
        rows.insert(1, ["The model, whole hidden words", EMPTY, _share(hidden, "word_accuracy", "words")])
    caption = f"Masked tokens: {mlm['predictions']:,} predictions in {mlm['rows']:,} held-out rows"
    notes = ["± is half of a 95 % interval. “Best without context” knows exactly how often each target occurs."]
    return Table(caption, ["", "Loss (nats)", "Accuracy"], rows, notes=notes)


def _next_sentence_table(run: RunData) -> Table | None:
    mlm = run.mlm
    if not mlm or mlm.get("nsp_accuracy") is None:
        return None
    rows = [
        ["The model", _nats(mlm["nsp_loss"]), _share(mlm, "nsp_accuracy", "pairs")],
        ["Guessing the more frequent answer", _nats(math.log(2)), f"{mlm['baselines']['nsp_majority']:.1%}"],
    ]
    return Table(f"Next sentence: {mlm['pairs']:,} held-out pairs", ["", "Loss (nats)", "Accuracy"], rows)


def _nats(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.3f}"


def _share(record: Record, share: str, number: str) -> str:
    """A share with the half width of its 95 % interval."""
    if record.get(share) is None:
        return EMPTY
    return f"{record[share]:.1%} ± {confidence(record[share], record[number]):.1%}"
