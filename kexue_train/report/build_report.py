"""STAGE 7: one page about the run, ``report/index.html``: self-contained, no network, light and dark.

It is made anew at every call, since it is cheap and must show a run in progress as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kexue_train.artifacts import write_atomic
from kexue_train.errors import ResourceError
from kexue_train.report import plots, tables
from kexue_train.report.checks import check_run
from kexue_train.report.run_data import RunData, load_run
from kexue_train.report.summary import summarise_run, total_seconds
from kexue_train.runtime import format_seconds

_TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Fact:
    """One large number at the top of the page."""

    label: str
    value: str
    note: str = ""


def build_report(run_dir: Path) -> Path:
    """Write ``run_dir/report/index.html`` about a run, finished or in progress, and return its path.

    Raises:
        ArtifactError: If ``run_dir`` is not a run folder.
        ResourceError: If plotly or jinja2 is not installed, or the page cannot be written.
    """
    html = render_page(load_run(run_dir))
    path = run_dir / "report" / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, html)
    except OSError as error:
        raise ResourceError(
            f"{path}: the report cannot be written ({error.strerror}); check the permissions and the free space there"
        ) from None
    return path


def render_page(run: RunData) -> str:
    """The page as HTML."""
    try:
        import jinja2  # noqa: PLC0415  # an extra, and only this function needs it
        from plotly.offline import get_plotlyjs  # noqa: PLC0415  # the same
    except ImportError as error:
        raise ResourceError(
            f"{error.name} is not installed, which the report needs; install it with pip install 'kexue_train[report]'"
        ) from None
    loader = jinja2.PackageLoader("kexue_train", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(_TEMPLATE).render(**_page_values(run), plotly_js=get_plotlyjs())


def _page_values(run: RunData) -> dict[str, Any]:
    learning, stage_plots, bands = plots.learning_plots(run), plots.stage_plots(run), plots.plot_bands(run)
    return {
        "run": run,
        "summary": summarise_run(run),
        "facts": _facts(run),
        "learning": learning,
        "stage_plots": stage_plots,
        "bands": bands,
        "figures": _figures_json([*learning, *bands, *stage_plots]),
        "evaluation": [table for table in (tables.evaluation_table(run), tables.next_sentence_table(run)) if table],
        "validation": tables.validation_table(run),
        "artifacts": tables.artifact_tables(run),
        "stages": tables.stage_table(run),
        "missing": tables.missing_stages(run),
        "checks": check_run(run),
        "events": tables.event_table(run),
        "versions": tables.version_table(run),
        "predictions": [_split_sentence(record) for record in run.predictions],
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _facts(run: RunData) -> list[Fact]:
    mlm, train = run.mlm, run.curve("train")
    hidden = mlm.get("hidden_only") or {}
    facts = []
    if hidden.get("mlm_loss") is not None:
        facts += [
            Fact("Held-out loss", f"{hidden['mlm_loss']:.2f}", "nats, hidden"),
            Fact("Without context", f"{hidden['unigram_entropy']:.2f}", "nats, best possible"),
            Fact("Tokens found", f"{hidden['mlm_accuracy']:.1%}", f"of {hidden['predictions']:,} hidden"),
        ]
    if mlm.get("nsp_accuracy") is not None:
        guess = mlm["baselines"]["nsp_majority"]
        facts.append(Fact("Next sentence", f"{mlm['nsp_accuracy']:.1%}", f"guessing: {guess:.1%}"))
    if train:
        last = train[-1]
        facts.append(Fact("Steps", f"{last['step']:,}", f"of {run.total_steps:,}" if run.total_steps else ""))
        if last.get("tokens"):
            facts.append(Fact("Tokens read", _short(last["tokens"]), f"{last.get('epoch') or 0:.2f} epochs"))
    facts.append(Fact("Time", format_seconds(total_seconds(run)), "all stages" if run.is_complete else "so far"))
    return facts


def _figures_json(figures: list[plots.Plot]) -> str:
    """All figures by name, safe inside a script element."""
    values = {plot.name: json.loads(plot.figure.to_json()) for plot in figures}
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _split_sentence(record: dict[str, Any]) -> dict[str, Any]:
    """Pieces of text around the masks, each but the last followed by its predictions."""
    pieces = str(record.get("sentence", "")).split("[MASK]")
    masks = [*record.get("masks", []), *([[]] * len(pieces))]
    slots = [
        [(str(guess["token"]), float(guess["probability"])) for guess in masks[index]]
        for index in range(len(pieces) - 1)
    ]
    return {"pieces": pieces, "slots": slots}


def _short(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if abs(number) < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g} T"
