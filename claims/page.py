"""docs/claims.md and its pictures, written from the list of claims and the kept results; nothing in them is by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from claims.claim import Claim
from claims.picture import draw
from claims.results import Entry
from claims.table import describe_figures
from kexue_train.foundation.artifacts import write_atomic

COMMAND = "python -m claims --json docs/claims/results.json --page docs/claims.md"

_HEAD = f"""# What the blog says, measured

Posts of [kexue.fm](https://kexue.fm) make every sentence below, and each can be measured. `claims/posts/` has one file
for each: what is measured, on what, and the thresholds that confirm or refute it. They were fixed before measuring; the
number of seeds of initial-losses and the logarithm in which increments is judged were chosen after a first look. A
claim is *undecidable here* if the seeds differ by more than the effect, or if the figure lies between the thresholds.

    {COMMAND}
    python -m claims --only NAME          # one claim: its figures and its verdict
    python -m claims --minutes 10         # the cheapest first; what does not fit is not run
    python -m claims --corpus FILE        # other text than the documentation installed on this machine

The first command measures everything again and writes this page and its pictures. With `--minutes 0` it measures
nothing and writes them from the results that are kept. Figures are means over seeds ± their standard deviation. A
verdict needs the whole 95 % interval of the mean on one side of its threshold. Seconds are processor seconds of one
thread, all seeds together. "Load" is what ran on the machine before a claim began; only claims about time depend on it.
"""

_NOTE = """
A verdict holds for the size that was measured and for no other. What is true of models that read for weeks can be
wrong in a training of a minute; the notes say what was not covered.
"""


def write_page(path: Path, claims: Sequence[Claim], entries: Mapping[str, Entry]) -> None:
    """Write the page, and the pictures into the folder beside it that has its name."""
    pictures = path.with_suffix("")
    write_pictures(pictures, claims, entries)
    write_atomic(path, render_page(claims, entries, pictures.name))


def write_pictures(folder: Path, claims: Sequence[Claim], entries: Mapping[str, Entry]) -> None:
    """Write ``<name>.svg`` of every claim that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    for claim in claims:
        if claim.name in entries and entries[claim.name].outcome.figures:
            write_atomic(folder / f"{claim.name}.svg", draw(claim, entries[claim.name].outcome.figures))


def render_page(claims: Sequence[Claim], entries: Mapping[str, Entry], pictures: str) -> str:
    """Return the page as Markdown; ``pictures`` is the folder of the pictures, seen from the page."""
    rows = ["| claim | what the blog says | figures | verdict | s |", "|---|---|---|---|---|"]
    sections = []
    for claim in claims:
        entry = entries.get(claim.name)
        verdict, figures, seconds = "not measured yet", "", ""
        if entry:
            verdict, seconds = f"**{entry.outcome.status}**", f"{entry.outcome.seconds:.0f}"
            figures = describe_figures(claim, entry.outcome)
        sentence = f"{claim.sentence} ([{claim.source}]({claim.link}))"
        rows.append(f"| [{claim.name}](#{claim.name}) | {sentence} | {figures} | {verdict} | {seconds} |")
        sections.append(_section(claim, entry, pictures))
    return "\n".join([_HEAD, *rows, _NOTE, *sections])


def _section(claim: Claim, entry: Entry | None, pictures: str) -> str:
    lines = [f"## {claim.name}", "", f"{claim.sentence} [{claim.source}]({claim.link})", ""]
    lines += [f"* **Measured:** {claim.measured}", f"* **Refuted if:** {claim.refuted_if}"]
    if entry:
        figures = describe_figures(claim, entry.outcome)
        lines.append(f"* **{entry.outcome.status.capitalize()}:** {figures}, {claim.seeds} seeds.")
    else:
        lines.append("* **Not measured yet:** its tests run it at tiny sizes; nobody has kept figures of the whole.")
    if claim.remark:
        lines.append(f"* **Note:** {claim.remark}")
    if entry:
        measured_on = f"{entry.date}, {entry.machine}, load {entry.outcome.load:g} before it"
        lines += ["", f"![{claim.sentence}]({pictures}/{claim.name}.svg)", "", f"`--only {claim.name}`: {measured_on}."]
    return "\n".join([*lines, ""])
