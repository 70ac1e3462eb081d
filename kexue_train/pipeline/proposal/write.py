"""The proposal as a YAML file whose lines say why they are as they are."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.pipeline.proposal.choose import Proposal, Request

FILE_NAME = "config.yaml"
_COMMENT_COLUMN = 40


def require_no_file(folder: Path) -> None:
    """Check that ``folder`` has no configuration yet.

    Raises:
        ConfigError: If it has one.
    """
    if (path := folder / FILE_NAME).exists():
        raise ConfigError(f"{path}: is there already; name another folder, or delete the file to have it made anew")


def run_name(folder: Path) -> str:
    """Return the name of the folder as one of a run, which has letters, digits, points and dashes only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-._") or "run"


def write_proposal(folder: Path, request: Request, proposal: Proposal) -> Path:
    """Write ``folder/config.yaml`` and return it; relative inputs are written as they look from there.

    Raises:
        ConfigError: If the file is there already.
    """
    require_no_file(folder)
    path, values = folder / FILE_NAME, proposal.values
    if inputs := values["corpus"].get("inputs"):
        values = values | {"corpus": values["corpus"] | {"inputs": [_seen_from(folder, given) for given in inputs]}}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "\n".join([*_head(path, request, proposal), *_sections(values, proposal.reasons), ""]))
    return path


def describe(request: Request, proposal: Proposal) -> dict[str, str]:
    """Return what was found, what was chosen and what it will take: title -> one line."""
    data, hardware, plan = request.data, request.hardware, proposal.plan
    text = f"{data.num_files:,} files, about" if data.inputs else "the documentation of this machine,"
    gpus = f"{len(hardware.gpus)} × {hardware.gpus[0]}" if hardware.gpus else "no GPU"
    model, train = proposal.values["model"], proposal.values["train"]
    return {
        "Data": f"{text} {format_size(data.text_bytes)} of text; {data.chinese_share:.0%} of the letters are Chinese",
        "Machine": f"{hardware.cpus} CPUs, {format_size(hardware.memory_bytes)} of free memory, {gpus}",
        "Model": f"{model['num_hidden_layers']} × {model['hidden_size']}; "
        + proposal.reasons["model.num_hidden_layers"],
        "Training": f"{train['steps']:,} steps; {proposal.reasons['train.steps']}",
        "Takes": f"about {format_seconds(plan.seconds or 0)}, {format_size(plan.peak_disk_bytes)} of disk and "
        f"{format_size(plan.memory_bytes)} of memory, estimated",
    }


def _seen_from(folder: Path, given: str) -> str:
    if "://" in given or Path(given.removeprefix("@")).is_absolute():
        return given
    mark = "@" if given.startswith("@") else ""
    return mark + os.path.relpath(given.removeprefix(mark), folder)


def _head(path: Path, request: Request, proposal: Proposal) -> Iterator[str]:
    yield f"# {request.name}: a first configuration, made by kexue init for {request.hours:g} h."
    yield "#"
    for title, line in describe(request, proposal).items():
        yield f"# {title:<9} {line}."
    yield "# Reaches   not known before it has run; its report compares it with guessing."
    yield f"# Launch    {launch_command(path)}"
    yield ""


def launch_command(path: Path) -> str:
    """Return the command that runs the configuration."""
    return f"kexue pipeline --config {shlex.quote(str(path))}"


def _sections(values: Mapping[str, Any], reasons: Mapping[str, str]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield ""
            yield f"{name}:"
            for key, entry in value.items():
                yield _commented(f"  {key}: {_inline(entry)}", reasons.get(f"{name}.{key}"))
        else:
            yield f"{name}: {_inline(value)}"


def _inline(value: object) -> str:
    """Return ``value`` as YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _commented(line: str, reason: str | None) -> str:
    return f"{line:<{_COMMENT_COLUMN - 2}}  # {reason}" if reason else line
