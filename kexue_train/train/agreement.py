"""All ranks train the same: compared once, before the first step, so that a stray copy of anything is named."""

from __future__ import annotations

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

import kexue_train
from kexue_train.foundation.artifacts import digest_of
from kexue_train.foundation.errors import ConfigError, KexueError
from kexue_train.train.job import JobConfig

_T = TypeVar("_T")
_FIX = {
    "code": "install the same version of kexue_train on all machines",
    "torch": "install the same version of torch on all machines",
    "config": "give all workers the same configuration",
    "samples": "give all workers the same samples; 'kexue verify' tells which copy is whole",
}


class Facts(NamedTuple):
    """What must be the same on every rank, by digest or version."""

    code: str
    torch: str
    config: str
    samples: str


class Member(NamedTuple):
    """A rank and what it has."""

    host: str
    facts: Facts


def open_together(open_: Callable[[], _T], digest: Callable[[_T], str], config: JobConfig) -> _T:
    """Open the samples on every rank and compare what all have.

    Args:
        open_: Opens this rank's samples.
        digest: Of opened samples.
        config: This rank's configuration.

    Raises:
        ConfigError: On every rank, naming those that differ from most, or one that cannot read its samples.
    """
    opened: _T | None = None
    problem: KexueError | None = None
    try:
        opened = open_()
        mine: Member | str = Member(_host(), _facts(config, digest(opened)))
    except KexueError as error:
        problem, mine = error, f"on {_host()} {error}"
    members: list[Member | str] = [mine] * dist.get_world_size()
    dist.all_gather_object(members, mine)
    if problem is not None:
        raise problem
    for rank, member in enumerate(members):
        if isinstance(member, str):
            raise ConfigError(f"rank {rank} {member}")
    if difference := find_difference([member for member in members if isinstance(member, Member)]):
        raise ConfigError(difference)
    assert opened is not None
    return opened


def find_difference(members: Sequence[Member]) -> str | None:
    """The first fact that not all ranks share, with the ranks that differ from most; None if all agree."""
    for name in Facts._fields:
        values = [getattr(member.facts, name) for member in members]
        usual = Counter(values).most_common(1)[0][0]  # among equals, that of the lowest rank
        others = [rank for rank, value in enumerate(values) if value != usual]
        if others:
            named = ", ".join(f"rank {rank} on {members[rank].host} has {values[rank]}" for rank in others[:4])
            more = f" (and {len(others) - 4} more)" if others[4:] else ""
            return f"the workers differ in their {name}: {named}{more}, the others have {usual}; {_FIX[name]}"
    return None


def _facts(config: JobConfig, samples: str) -> Facts:
    settings = digest_of(config.model_dump(mode="json"))
    return Facts(code=_code_version(), torch=torch.__version__, config=_short(settings), samples=_short(samples))


@lru_cache(maxsize=1)
def _code_version() -> str:
    """The version, and a digest of the source files, which may have been edited."""
    root = Path(kexue_train.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{kexue_train.__version__} ({digest.hexdigest()[:12]})"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _host() -> str:
    return f"{socket.gethostname()} (process {os.getpid()})"
