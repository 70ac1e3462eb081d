"""A JSON file of outcomes: what was measured, when and on which machine; claims measured later replace their entry."""

from __future__ import annotations

import datetime
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from claims.claim import Claim
from claims.run_claims import Outcome
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.runtime import available_cpus


@dataclass(frozen=True)
class Entry:
    """An outcome with when and where it was measured."""

    outcome: Outcome
    date: str
    machine: str

    @classmethod
    def of(cls, outcome: Outcome) -> Entry:
        """Return the entry of an outcome that was measured just now, on this machine."""
        return cls(outcome, datetime.datetime.now(datetime.UTC).date().isoformat(), describe_processor())


def read_results(path: Path) -> dict[str, Entry]:
    """Return the entries of ``path`` by name; none if there is no such file.

    Raises:
        ConfigError: If the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))["claims"]
        return {name: Entry(Outcome(**entry.pop("outcome")), **entry) for name, entry in held.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not the results of claims ({error!r}); name another file") from error


def write_results(path: Path, entries: Mapping[str, Entry], claims: Sequence[Claim]) -> None:
    """Write the entries of ``claims`` in their order; those of claims that there are no more are left out."""
    kept = {claim.name: asdict(entries[claim.name]) for claim in claims if claim.name in entries}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"claims": kept}, indent=1) + "\n")


def describe_processor() -> str:
    """Return the processor and how many cores may be used."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(encoding="utf-8"), re.M) if cpuinfo.exists() else None
    return f"{found[1] if found else platform.machine()}, {available_cpus()} cores"
