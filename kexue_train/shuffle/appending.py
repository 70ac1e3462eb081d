"""Both passes of a shuffle into one file: the shards are appended to the output in their order, as they come."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import xxhash

from kexue_train.corpus.compression import open_compressor
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import CorpusError, MachineLostError
from kexue_train.foundation.write_behind import new_file
from kexue_train.shuffle.destination import Destination
from kexue_train.shuffle.gather import GatherResult, shard_marker_path
from kexue_train.shuffle.near_pass import clusters_of
from kexue_train.shuffle.outputs import shard_file_name
from kexue_train.shuffle.passes import Passes
from kexue_train.shuffle.proof import Account
from kexue_train.shuffle.scatter_result import ScatterResult
from kexue_train.shuffle.shuffle_corpus import first_pass

_SYNC_BYTES = 256 * 10**6
_COPY_BYTES = 4 * 2**20


class Output:
    """Appends the shards to their destination; counts and hashes its bytes."""

    def __init__(self, destination: Destination) -> None:
        self._destination, self._hash = destination, xxhash.xxh3_128()
        self.is_resumable = destination.is_resumable
        self.bytes = 0

    @property
    def checksum(self) -> str:
        """The checksum so far, in the form of ``artifacts.file_checksum``."""
        return f"xxh3_128:{self._hash.hexdigest()}"

    def resume_after(self, num_bytes: int) -> None:
        """Keep so many bytes of what an interrupted run wrote."""
        for data in self._destination.keep(num_bytes):
            self._count(data)

    def append(self, part: Path) -> None:
        """Move the contents of ``part`` to the end."""
        with part.open("rb") as source:
            while data := source.read(_COPY_BYTES):
                self._destination.write(data)
                self._count(data)
        part.unlink()

    def sync(self) -> None:
        """Return once everything is on disk."""
        self._destination.sync()

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.bytes += len(data)


def append_shards(passes: Passes, output: Output) -> Account:
    """Run both passes and append every shard to ``output``."""
    parts = passes.scratch / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    scattered = first_pass(passes)
    header = _write_header(passes, scattered, parts)
    appended = _appended(passes) if output.is_resumable else []
    if appended:
        output.resume_after(header.stat().st_size + sum(result.file_bytes for result in appended))
    else:
        output.resume_after(0)
        output.append(header)
    synced, unsynced_bytes = len(appended), 0
    waiting: dict[int, GatherResult] = {}
    while len(appended) < passes.plan.num_shards:
        left = [shard for shard in range(len(appended), passes.plan.num_shards) if shard not in waiting]
        try:
            for shard, result in passes.gather_all(scattered, parts, left, is_durable=False):
                waiting[shard] = result
                while (following := waiting.pop(len(appended), None)) is not None:
                    output.append(parts / shard_file_name(passes.config.output, len(appended), passes.plan.num_shards))
                    appended.append(following)
                    unsynced_bytes += following.file_bytes
                if output.is_resumable and (unsynced_bytes >= _SYNC_BYTES or len(appended) == passes.plan.num_shards):
                    _keep(passes, output, appended, synced)
                    synced, unsynced_bytes = len(appended), 0
        except MachineLostError as lost:
            passes.forget(lost)
            scattered = first_pass(passes)
    return Account(scattered, appended, clusters_of(passes), passes.mixture)


def _write_header(passes: Passes, scattered: Sequence[ScatterResult], parts: Path) -> Path:
    """Write the lines that stay first, which all inputs begin with, to a file; empty if there are none."""
    headers = {
        number: counts.header for result in scattered for number, counts in result.files.items() if counts.header
    }
    first = min(headers, default=0)
    for number, header in headers.items():
        if header != headers[first]:
            raise CorpusError(
                f"{passes.sources[number].path}: begins with another header than {passes.sources[first].path}; with "
                "--header the first lines of all inputs must be equal, as they are written once"
            )
    with new_file(parts / "header", durable=False) as file:
        if headers:
            with open_compressor(file, passes.form.compression) as sink:
                sink.write(bytes.fromhex(headers[first]))
    return parts / "header"


def _appended(passes: Passes) -> list[GatherResult]:
    """Return the shards that an interrupted run appended for good."""
    results: list[GatherResult] = []
    while (path := shard_marker_path(passes.scratch, len(results))).exists():
        results.append(GatherResult.from_json(path.read_text(encoding="utf-8")))
    return results


def _keep(passes: Passes, output: Output, appended: Sequence[GatherResult], synced: int) -> None:
    """Put the output on disk, then the done markers of the shards it holds."""
    output.sync()
    for shard in range(synced, len(appended)):
        write_atomic(shard_marker_path(passes.scratch, shard), appended[shard].to_json())
