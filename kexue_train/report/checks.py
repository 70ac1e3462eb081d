"""What can be checked about a run from its manifests and metrics alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kexue_train.foundation.artifacts import check_files
from kexue_train.foundation.errors import ArtifactError
from kexue_train.metrics.fields import Kind, head_metrics
from kexue_train.metrics.heads import HEADS
from kexue_train.report.run_data import RunData

_MOD = 1 << 128
_MAX_DEVIATIONS = 4.5  # exceeded by chance once in 150,000 runs
_MAX_LOGIT_DIFFERENCE = 1e-5  # what the export allows, fp32


@dataclass(frozen=True)
class RunCheck:
    """One claim about the run, whether it holds, and the evidence."""

    claim: str
    passed: bool
    evidence: str


def check_run(run: RunData) -> list[RunCheck]:
    """Run every check for which the run has the data, cheap ones only (``kexue verify`` re-reads whole files)."""
    parts = (_check_rows, _check_mixing, _check_files, _check_parents, _check_export, _check_losses)
    checks = [check for part in parts for check in part(run)]
    return checks + [RunCheck("Every part can be read", passed=False, evidence=problem) for problem in run.problems]


def _check_rows(run: RunData) -> list[RunCheck]:
    manifest = run.manifests.get("shards")
    if manifest is None or manifest.rows_checksum is None:
        return []
    checksum = manifest.rows_checksum
    balance = (int(checksum.output, 16) + int(checksum.dropped, 16) - int(checksum.input, 16)) % _MOD
    claim = "The shuffle lost, doubled and changed no row"
    return [RunCheck(claim, balance == 0, f"checksum of the rows: {checksum.input} in, {checksum.output} out")]


def _check_mixing(run: RunData) -> list[RunCheck]:
    """Check whether the shuffle shows a trace of the input's order that chance does not explain."""
    statistics = run.manifests["shards"].statistics if "shards" in run.manifests else {}
    checks = []
    if correlation := statistics.get("rank_correlation"):
        coefficient, deviation = correlation["coefficient"], correlation["standard_deviation"]
        evidence = f"correlation of input and output order: {coefficient:+.5f}; by chance within ±{2 * deviation:.5f}"
        claim = "A document's input position says nothing about its output position"
        checks.append(RunCheck(claim, abs(coefficient) < _MAX_DEVIATIONS * deviation, evidence))
    mixing = statistics.get("source_mixing", {})
    if mixing.get("degrees_of_freedom"):
        worst = mixing["worst_shard"]
        evidence = (
            f"chi-square {_explain_chi_square(mixing)}; in shard {worst['shard']}, the most uneven, "
            f"{_explain_chi_square(worst)}"
        )
        passed = _excess(mixing) < _MAX_DEVIATIONS
        checks.append(RunCheck("The input files are spread evenly over the shards", passed, evidence))
    return checks


def _excess(mixing: dict[str, float]) -> float:
    """Return the standard deviations of a chi-square above its mean (Wilson and Hilferty's cube root is normal)."""
    spread = 2 / (9 * mixing["degrees_of_freedom"])
    return float((mixing["chi_square"] / mixing["degrees_of_freedom"]) ** (1 / 3) - 1 + spread) / math.sqrt(spread)


def _explain_chi_square(mixing: dict[str, float]) -> str:
    freedom = mixing["degrees_of_freedom"]
    return f"{mixing['chi_square']:,.1f} ({freedom:,.0f} ± {2 * math.sqrt(2 * freedom):,.1f} by chance)"


def _check_files(run: RunData) -> list[RunCheck]:
    if not run.manifests:
        return []
    number = 0
    for name, manifest in run.manifests.items():
        try:
            check_files(run.folder / name, manifest)
        except ArtifactError as error:
            return [RunCheck("All files are there with their sizes", passed=False, evidence=str(error))]
        number += len(manifest.files)
    return [
        RunCheck(
            "All files are there with their sizes",
            passed=True,
            evidence=f"{number:,} files of {len(run.manifests)} artifacts",
        )
    ]


def _check_parents(run: RunData) -> list[RunCheck]:
    digests = {manifest.kind: manifest.content_digest for manifest in run.manifests.values()}
    digests |= {name: manifest.content_digest for name, manifest in run.manifests.items()}
    links = [
        (name, parent, digest == digests[parent])
        for name, manifest in run.manifests.items()
        for parent, digest in manifest.parents.items()
        if parent in digests
    ]
    if not links:
        return []
    broken = [f"{name} was made from another {parent}" for name, parent, same in links if not same]
    evidence = "; ".join(broken) or f"{len(links)} links between artifacts compared by digest"
    return [RunCheck("Every part was made from the parts shown here", not broken, evidence)]


def _check_export(run: RunData) -> list[RunCheck]:
    difference = run.manifests["hf"].statistics.get("max_logit_difference") if "hf" in run.manifests else None
    if difference is None:
        return []
    evidence = f"largest difference of a logit after reloading: {difference:.2g}"
    return [
        RunCheck("The exported model computes what the trained one does", difference <= _MAX_LOGIT_DIFFERENCE, evidence)
    ]


def _check_losses(run: RunData) -> list[RunCheck]:
    records = run.of_kind(Kind.TRAIN, Kind.VALIDATION)
    if not records:
        return []
    losses = [head_metrics(head)[0] for head in HEADS]
    bad = [record["step"] for record in records if not all(math.isfinite(loss.of(record) or 0.0) for loss in losses)]
    evidence = f"not finite at step {bad[0]}" if bad else f"{len(records):,} log entries"
    return [RunCheck("Every logged loss is finite", not bad, evidence)]
