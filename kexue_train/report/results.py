"""What the evaluations found: tables for the page and the model card, and the scores that runs are compared by.

``mlm.json`` and ``zero_shot.json`` have tables of their own. Any other file of results in ``evaluate`` is shown as it
is: its plain values in one table, and each list of records as a table with a column per key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from kexue_train.evaluate.zero_shot.results import ZeroShotResults
from kexue_train.evaluate.zero_shot.table import header_of, remarks_on, rows_of
from kexue_train.report.run_data import Record, RunData
from kexue_train.report.summary import confidence
from kexue_train.report.tables import EMPTY, Table

_MAX_COLUMNS = 10
_NOT_SHOWN = {"schema_version", "tool_version"}


class Score(NamedTuple):
    """One number that says how good a model is."""

    group: str
    """What was asked, such as ``held-out text`` or the name of a task."""
    metric: str
    value: float
    higher_is_better: bool
    is_share: bool
    """0 to 1, written in percent."""

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.value:.1%}" if self.is_share else f"{self.value:.3f}"


def evaluation_tables(run: RunData) -> list[Table]:
    """Every table of results that there is, with baselines and published rows."""
    own = [table for table in (_mlm_table(run), _next_sentence_table(run)) if table]
    zero_shot = read_zero_shot(run)
    known = [_zero_shot_table(zero_shot)] if zero_shot else []
    others = {n: r for n, r in run.evaluations.items() if not (n == "zero_shot" and zero_shot)}
    return own + known + [table for name, record in others.items() for table in _plain_tables(name, record)]


def read_zero_shot(run: RunData) -> ZeroShotResults | None:
    """``zero_shot.json`` if it is there and of the form of this version."""
    try:
        return ZeroShotResults.model_validate(run.evaluations["zero_shot"])
    except (KeyError, ValidationError):
        return None


def scores_of(run: RunData) -> list[Score]:
    """The scores by which runs are compared and models are found."""
    mlm, hidden = run.mlm, run.mlm.get("hidden_only") or {}
    candidates = [
        ("held-out text", "loss on hidden tokens (nats)", hidden.get("mlm_loss"), False, False),
        ("held-out text", "hidden tokens found", hidden.get("mlm_accuracy"), True, True),
        ("held-out text", "perplexity of all predicted tokens", mlm.get("mlm_perplexity"), False, False),
        ("held-out text", "next-sentence accuracy", mlm.get("nsp_accuracy"), True, True),
    ]
    scores = [Score(g, m, float(v), up, share) for g, m, v, up, share in candidates if v is not None]
    if zero_shot := read_zero_shot(run):
        for result in zero_shot.tasks:
            scores += [_zero_shot_score(result.task, name, value) for name, value in result.own_columns.items()]
        own = {name for result in zero_shot.tasks for name in result.own_columns}
        scores += [_zero_shot_score("mean of all tasks", n, v) for n, v in zero_shot.means.items() if n in own]
    return scores


def _zero_shot_score(task: str, column: str, value: float) -> Score:
    return Score(
        task,
        f"zero-shot accuracy, {column.upper() if column != 'nsp transductive' else 'NSP transductive'}",
        value,
        True,
        True,
    )


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
    if (words := hidden.get("word_accuracy")) is not None:
        rows.insert(1, ["The model, whole hidden words", EMPTY, f"{words:.1%}"])
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


def _zero_shot_table(results: ZeroShotResults) -> Table:
    header = [name.replace("\n", " ") for name in header_of(results)]
    rows = [[value or EMPTY for value in row] for row in rows_of(results)]
    published = dict.fromkeys(name for result in results.tasks for name in result.published)
    others = [f"Published, of other models: {', '.join(published)}."] if published else []
    notes = ["Accuracy in percent.", *others, *remarks_on(results)]
    return Table("Zero-shot tasks, without training for them", ["", *header[1:]], rows, notes=notes, wide=True)


def _plain_tables(name: str, record: Record) -> Iterator[Table]:
    title = name.replace("_", " ").capitalize()
    lists = {key: value for key, value in record.items() if _is_list_of_records(value)}
    if plain := dict(_flatten({key: v for key, v in record.items() if key not in lists and key not in _NOT_SHOWN})):
        yield Table(f"{title}: overall", ["", ""], [[key, _write(value)] for key, value in plain.items()])
    for key, entries in lists.items():
        yield _table_of_records(title if len(lists) == 1 else f"{title}: {key.replace('_', ' ')}", entries)


def _table_of_records(caption: str, entries: list[Record]) -> Table:
    flat = [dict(_flatten(entry)) for entry in entries]
    keys = list(dict.fromkeys(key for entry in flat for key in entry))
    shown, left_out = keys[:_MAX_COLUMNS], keys[_MAX_COLUMNS:]
    rows = [[_write(entry.get(key)) for key in shown] for entry in flat]
    notes = [f"Left out here: {', '.join(left_out)}."] if left_out else []
    return Table(caption, shown, rows, notes=notes, wide=len(shown) > 4)


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _flatten(record: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values by ``outer: inner``; lists are left out, except short ones of plain values."""
    for key, value in record.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}: ")
        elif not isinstance(value, list):
            yield name, value


def _write(value: Any) -> str:
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _nats(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.3f}"


def _share(record: Record, share: str, number: str) -> str:
    """A share with the half width of its 95 % interval."""
    if record.get(share) is None:
        return EMPTY
    return f"{record[share]:.1%} ± {confidence(record[share], record[number]):.1%}"
