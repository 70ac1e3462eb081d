"""What a shuffle does about near duplicates between its two passes, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kexue_train.corpus.inputs import Source
from kexue_train.executor import Executor
from kexue_train.foundation.credentials import without_credentials
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.near.find import Search
from kexue_train.shuffle.near.leaving_out import kept_records_path
from kexue_train.shuffle.passes import Passes
from kexue_train.shuffle.plan import MemoryBudget, ShufflePlan
from kexue_train.shuffle.rejected_records import DROPPED, records_path
from kexue_train.shuffle.scatter_result import ScatterResult


def make_search(
    config: ShuffleConfig,
    sources: Sequence[Source],
    plan: ShufflePlan,
    budget: MemoryBudget,
    seed: int,
    scratch: Path,
    executor: Executor,
) -> Search | None:
    """Return the search for near duplicates that ``config`` asks for, if it does."""
    if config.dedup != "near":
        return None
    return Search(
        near=config.near,
        plan=plan,
        budget=budget,
        executor=executor,
        scratch=scratch,
        files=[without_credentials(source.path) for source in sources],
        max_copies=max(math.ceil(source.weight) for source in sources),
        seed=seed,
    )


def find_near(passes: Passes, scattered: Sequence[ScatterResult]) -> None:
    """Run the search for near duplicates, if there is to be one and it is not done."""
    search = passes.search
    if search is None or search.is_done:
        return
    signed = [(result.machine, result.boot, result.spill, result.signed) for result in scattered if result.signed]
    found = search.run(signed, passes.update_search)
    passes.progress.note(
        f"near duplicates: {found['texts']:,} different texts in clusters, {found['clusters']:,} in all, of each of "
        f"which one stays ({found['compared']:,} comparisons)"
    )


def clusters_of(passes: Passes) -> dict[str, Any] | None:
    """Return what the search for near duplicates found; None if there was none."""
    return passes.search.clusters() if passes.search else None


def kept_records(passes: Passes, scattered: Sequence[ScatterResult], kind: str) -> list[Path]:
    """Return where records of a kind may lie: by input and position, then near duplicates by shard."""
    paths = [records_path(passes.scratch, result.spill, kind) for result in scattered]
    if passes.search and kind == DROPPED:
        paths += [kept_records_path(passes.search.folder, shard) for shard in range(passes.plan.num_shards)]
    return paths
