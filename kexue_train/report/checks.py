"""What can be checked about a run from its manifests and metrics alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kexue_train.artifacts import check_files
from kexue_train.errors import ArtifactError
from kexue_train.report.run_data import RunData

_MOD = 1 << 128
_MAX_LOGIT_DIFFERENCE = 1e-5  # what the export allows, fp32


@dataclass(frozen=True)
class Check:
    """One claim about the run, whether it holds, and the evidence."""

    claim: str
    passed: bool
    evidence: str


def check_run(run: RunData) -> list[Check]:
    """Every check for which the run has the data, cheap ones only (``kexue verify`` re-reads whole files)."""
    checks = [*_check_rows(run), *_check_files(run), *_check_parents(run), *_check_export(run), *_check_losses(run)]
    return checks + [Check("Every part can be read", passed=False, evidence=problem) for problem in run.problems]


def _check_rows(run: RunData) -> list[Check]:
    manifest = run.manifests.get("shards")
    if manifest is None or manifest.rows_checksum is None:
        return []
    checksum = manifest.rows_checksum
    balance = (int(checksum.output, 16) + int(checksum.dropped, 16) - int(checksum.input, 16)) % _MOD
    claim = "The shuffle lost, doubled and changed no row"
    return [Check(claim, balance == 0, f"checksum of the rows: {checksum.input} in, {checksum.output} out")]


def _check_files(run: RunData) -> list[Check]:
    if not run.manifests:
        return []
    number = 0
    for name, manifest in run.manifests.items():
        try:
            check_files(run.folder / name, manifest)
        except ArtifactError as error:
            return [Check("All files are there with their sizes", passed=False, evidence=str(error))]
        number += len(manifest.files)
    return [
        Check(
            "All files are there with their sizes",
            passed=True,
            evidence=f"{number:,} files of {len(run.manifests)} artifacts",
        )
    ]


def _check_parents(run: RunData) -> list[Check]:
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
    return [Check("Every part was made from the parts shown here", not broken, evidence)]


def _check_export(run: RunData) -> list[Check]:
    difference = run.manifests["hf"].statistics.get("max_logit_difference") if "hf" in run.manifests else None
    if difference is None:
        return []
    evidence = f"largest difference of a logit after reloading: {difference:.2g}"
    return [
        Check("The exported model computes what the trained one does", difference <= _MAX_LOGIT_DIFFERENCE, evidence)
    ]


def _check_losses(run: RunData) -> list[Check]:
    records = run.of_kind("train", "validation")
    if not records:
        return []
    bad = [r.get("step") for r in records if not math.isfinite(r.get("mlm_loss") or 0.0)]
    evidence = f"not finite at step {bad[0]}" if bad else f"{len(records):,} log entries"
    return [Check("Every logged loss is finite", not bad, evidence)]
