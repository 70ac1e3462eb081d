"""Results of sentence vectors for people: a row per set, a column per kind of vectors."""

from __future__ import annotations

from kexue_train.downstream.evaluate.sentence_vectors.results import StsResults

_WORTH_A_REMARK = 0.2  # share of unknown tokens


def header_of(results: StsResults) -> list[str]:
    """Titles of the columns of ``rows_of``."""
    return ["set", "pairs", *(_narrow(name) for name in _columns(results))]


def rows_of(results: StsResults) -> list[list[str]]:
    """A row per set, then the means: Spearman correlations times 100, "" where there is none."""
    columns = _columns(results)
    rows = [[result.name, f"{result.pairs:,}", *_numbers(result.columns, columns)] for result in results.sets]
    if len(rows) > 1:
        rows += [[f"mean, {group}", "", *_numbers(values, columns)] for group, values in results.means.items()]
    return rows


def remarks_on(results: StsResults) -> list[str]:
    """What failed, what the whitening has seen, which sentences were cut or hard to read, and what is published."""
    remarks, cut, unknown, published = [], [], [], []
    for result in results.sets:
        remarks += [f"{result.name}: no {failure.column or 'score'}: {failure.error}" for failure in result.failures]
        if result.cut:
            cut.append(f"{result.name} {result.cut}")
        if result.unknown_rate > _WORTH_A_REMARK:
            unknown.append(f"{result.name} {result.unknown_rate:.0%}")
        if result.published:
            rows = ", ".join(f"{name} {100 * value:.1f}" for name, value in result.published.items())
            published.append(f"published for {result.name}, of other models: {rows}")
    if any(score.whitening == "own" for result in results.sets for score in result.scores):
        remarks.append("whitened: by mean and covariance of the set's own sentences, without their scores")
    if cut:
        remarks.append(f"sentences cut to {results.max_length} tokens: {', '.join(cut)}")
    if unknown:
        remarks.append(f"unknown tokens: {', '.join(unknown)}")
    return remarks + published


def _columns(results: StsResults) -> list[str]:
    return list(dict.fromkeys(name for result in results.sets for name in result.columns))


def _narrow(title: str) -> str:
    return title.replace(" ", "\n").replace("first-", "first-\n")


def _numbers(values: dict[str, float], columns: list[str]) -> list[str]:
    return [f"{100 * values[name]:.1f}" if name in values else "" for name in columns]
