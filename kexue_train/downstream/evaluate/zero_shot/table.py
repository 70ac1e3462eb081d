"""Zero-shot results for people: the model beside published ones, and what has to be known to read the numbers."""

from __future__ import annotations

from kexue_train.downstream.evaluate.zero_shot.results import ZeroShotResults

_OWN = {"nsp": "NSP", "nsp transductive": "NSP\ntransductive", "pet": "PET"}
_UNREADABLE = 0.2  # a larger share of unknown tokens is worth a remark


def header_of(results: ZeroShotResults) -> list[str]:
    """Titles of the columns of ``rows_of``."""
    return ["task", "records", *(_OWN.get(name, name) for name in _columns(results))]


def rows_of(results: ZeroShotResults) -> list[list[str]]:
    """A row per task, then one of means over all: accuracies in percent, "" where there is none."""
    columns = _columns(results)
    rows = [[result.task, f"{result.records:,}", *_percents(result.columns, columns)] for result in results.tasks]
    return [*rows, ["mean", "", *_percents(results.means, columns)]] if len(rows) > 1 else rows


def remarks_on(results: ZeroShotResults) -> list[str]:
    """What failed, what was assumed, which texts were cut, and which the model cannot read."""
    assumed: dict[str, str] = {}
    cut: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    failed: list[str] = []
    for result in results.tasks:
        assumed |= {score.decision: score.assumption for score in result.scores if score.assumption}
        for reading in result.readings:
            where = f"{result.task} ({reading.method})"
            if reading.cut:
                cut[where] = f"{reading.cut / result.records:.0%}"
            if reading.unknown_rate > _UNREADABLE:
                unreadable[where] = f"{reading.unknown_rate:.0%}"
        failed += [f"{result.task}: no {failure.method or 'score'}: {failure.error}" for failure in result.failures]
    remarks = [*failed, *(f"{decision}: assumes that {assumption}" for decision, assumption in assumed.items())]
    if cut:
        remarks.append(f"records cut to {results.max_length} tokens: {_listed(cut)}")
    if unreadable:
        remarks.append(f"unknown tokens, so the model cannot read these texts: {_listed(unreadable)}")
    return remarks


def _columns(results: ZeroShotResults) -> list[str]:
    """Chance, what is published, then the model's own, as far as some task has them."""
    found = dict.fromkeys(name for result in results.tasks for name in result.columns)
    published = [name for name in found if name not in _OWN and name != "chance"]
    return [name for name in ("chance", *published, *_OWN) if name in found]


def _percents(values: dict[str, float], columns: list[str]) -> list[str]:
    return [f"{100 * values[name]:.1f}" if name in values else "" for name in columns]


def _listed(shares: dict[str, str]) -> str:
    return ", ".join(f"{name} {share}" for name, share in shares.items())
