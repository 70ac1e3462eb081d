"""STAGE 7: one page about the run, ``report/index.html``: self-contained, no network, light and dark.

Every call rebuilds it, since it is cheap and must show the current state of a run in progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kexue_train.downstream.results.result import Headline
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.credentials import redact
from kexue_train.foundation.errors import ConfigError, ResourceError
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.runtime import format_seconds
from kexue_train.foundation.stage import Stage, StagePlan
from kexue_train.metrics.fields import EPOCH, ETA_SECONDS, STEP, TOKENS, Kind, short_number
from kexue_train.report import compare, plots, tables
from kexue_train.report.anomalies import LOOKED_FOR, find_anomalies
from kexue_train.report.card_results import add_results_to_card
from kexue_train.report.checks import check_run
from kexue_train.report.dropped_documents import dropped_document_tables
from kexue_train.report.near_duplicates import near_duplicate_tables
from kexue_train.report.results import evaluation_tables, headlines_of
from kexue_train.report.run_data import RunData, load_run
from kexue_train.report.sources import source_tables
from kexue_train.report.summary import summarise_run, total_seconds
from kexue_train.report.writing import writing_tables


def build_report(run_dir: Path, stages: Sequence[Stage[Any]] = ()) -> Path:
    """Write ``run_dir/report/index.html`` about a run, finished or in progress, and return its path.

    The results go into the card of the exported model as well.

    Args:
        run_dir: The run folder.
        stages: All stages of the run, in order; those that have not finished are named on the page.

    Raises:
        ArtifactError: If ``run_dir`` is not a run folder.
        ResourceError: If jinja2 is not installed, or the page cannot be written.
    """
    run = load_run(run_dir, stages)
    path = _write(run_dir / "report" / "index.html", render_run(run))
    add_results_to_card(run)
    return path


def build_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write a page about several runs side by side to ``out`` and return it.

    Raises:
        ConfigError: If there are fewer than two, or one comes twice.
        ArtifactError: If one is not a run folder.
        ResourceError: If jinja2 is not installed, or the page cannot be written.
    """
    if len(run_dirs) < 2 or len({path.resolve() for path in run_dirs}) < len(run_dirs):
        given = ", ".join(map(str, run_dirs)) or "none"
        raise ConfigError(f"a comparison needs two or more different run folders, and these were given: {given}")
    return _write(out, render_comparison([load_run(path) for path in run_dirs]))


def render_run(run: RunData) -> str:
    """Return the page about one run as HTML."""
    return _render(
        "run.html.j2",
        run=run,
        summary=summarise_run(run),
        facts=_facts(run),
        charts=plots.training_charts(run),
        time_bars=plots.time_bars(run),
        bands=plots.band_bars(run),
        data_bars=plots.data_bars(run),
        evaluation=evaluation_tables(run),
        artifacts=tables.artifact_tables(run),
        inputs=tables.input_table(run),
        sources=[*source_tables(run), *writing_tables(run)],
        dropped_documents=dropped_document_tables(run),
        near_duplicates=near_duplicate_tables(run),
        stages=tables.stage_table(run),
        phases=tables.phase_table(run),
        missing=tables.missing_stages(run),
        checks=check_run(run),
        anomalies=find_anomalies(run),
        looked_for=LOOKED_FOR,
        labelled_tasks=tables.labelled_task_table(run),
        events=tables.event_table(run),
        versions=tables.version_table(run),
        predictions=[_split_sentence(record) for record in run.predictions],
    )


def render_comparison(runs: list[RunData]) -> str:
    """Return the page about several runs as HTML."""
    labels = compare.labels_of(runs)
    return _render(
        "comparison.html.j2",
        runs=runs,
        labels=labels,
        summaries=[summarise_run(run) for run in runs],
        overview=compare.overview_table(runs, labels),
        charts=compare.overlaid_charts(runs, labels),
        results=compare.result_rows(runs),
        settings=compare.differing_settings(runs, labels),
    )


def _render(template: str, **values: Any) -> str:
    try:
        import jinja2  # noqa: PLC0415  # an extra, and only this function needs it
    except ImportError as error:
        raise ResourceError(
            f"{error.name} is not installed, which the report needs; install it with pip install 'kexue_train[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kexue_train", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: (
            redact(value) if type(value) is str else value
        ),  # folders of old releases have credentials
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["language"] = _language
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(**values, written=written)


def _write(path: Path, html: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, html)
    except OSError as error:
        raise ResourceError(
            f"{path}: the report cannot be written ({error.strerror}); check the permissions and the free space there"
        ) from None
    return path


def _facts(run: RunData) -> list[Headline]:
    """Return the large numbers at the top of the page."""
    train, facts = run.curve(Kind.TRAIN), headlines_of(run)
    if train:
        last, total = train[-1], run.total_steps
        facts.append(Headline("Steps", STEP.text(last), f"of {total:,}" if total else ""))
        if tokens := TOKENS.amount(last):
            facts.append(Headline("Tokens read", short_number(tokens), f"{EPOCH.amount(last):.2f} epochs"))
        if not run.is_complete and ETA_SECONDS.amount(last) and last["step"] < (total or 0):
            facts.append(Headline("Left to train", ETA_SECONDS.text(last), "at this pace"))
    facts.append(Headline("Time", format_seconds(total_seconds(run)), "all stages" if run.is_complete else "so far"))
    return facts


def _language(text: str) -> str:
    """Return the attribute that gives an element with Chinese text Chinese glyphs and voices."""
    return ' lang="zh-Hans"' if any("\u4e00" <= character <= "\u9fff" for character in text) else ""


def _split_sentence(record: dict[str, Any]) -> dict[str, Any]:
    """Return the pieces of text around the masks, each but the last with the predictions that follow it."""
    pieces = str(record.get("sentence", "")).split("[MASK]")
    masks = [*record.get("masks", []), *([[]] * len(pieces))]
    slots = [
        [(str(guess["token"]), float(guess["probability"])) for guess in masks[index]]
        for index in range(len(pieces) - 1)
    ]
    return {"pieces": pieces, "slots": slots}


def report_on(stages: Sequence[Stage[Any]]) -> Stage[Any]:
    """Return the stage that reports what the stages before it made."""

    def make(_config: object, _inputs: Sequence[Path], out: Path, _progress: Progress) -> None:
        build_report(out.parent, stages)

    return Stage(
        name="report",
        folder="report",
        reads=(stages[-1].name,),
        recipe=None,
        make=make,
        describe=lambda _config, out: str(out / "index.html"),
        plan=lambda _config, _outlook: StagePlan(seconds=0.4, disk_bytes=5 * 10**6, basis="demo run"),
    )
