"""STAGE 0: build_docs_corpus — the documentation installed on this machine in, a corpus of English prose out.

For a first run without data or network. A document is a page or the docstrings of a module. A paragraph that was seen
before is left out, wherever it stands, so that licences and boilerplate are learnt once and not by heart.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import xxhash

from kexue_train.corpus.config import CorpusConfig
from kexue_train.corpus.docs_pages import MIN_DOCUMENT_CHARS, Page, cut_page, find_pages, read_page
from kexue_train.corpus.mixture import Documents
from kexue_train.executor.local import LocalExecutor
from kexue_train.foundation.arrow_shards import format_checksum
from kexue_train.foundation.artifacts import (
    Manifest,
    Recipe,
    RowsChecksum,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
    read_manifest,
)
from kexue_train.foundation.errors import CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.runtime import available_cpus, format_size, parse_size
from kexue_train.foundation.stage import Outlook, Stage, StagePlan

DOCUMENTS_NAME = "documents.jsonl"
_PAGES_OF_A_TASK = 64
_BYTES_PER_CPU_SECOND = 0.57e6
"""16.0 MB in 28 processor seconds, in a process for each CPU (benchmarks/RESULTS.md, "the seconds of the demo")."""


def build_docs_corpus(
    config: CorpusConfig, out_dir: Path, *, replace: bool = False, progress: Progress = SILENT
) -> Manifest:
    """Write ``documents.jsonl`` ({"text", "source"} a line) to ``out_dir`` and return the manifest.

    What is installed is no part of the recipe: a finished corpus stays as it is when packages come and go.

    Raises:
        CorpusError: If hardly any documentation is installed.
        ArtifactError: If ``out_dir`` holds something else.
    """
    recipe = _recipe_of(config)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    partial = open_partial(out_dir, recipe)
    statistics = write_docs_corpus(partial / DOCUMENTS_NAME, max_bytes=parse_size(config.max_size), progress=progress)
    checksum = statistics.pop("rows_checksum")
    files = describe_files(partial, rows={DOCUMENTS_NAME: statistics["documents"]})
    proof = RowsChecksum(input=checksum, output=checksum)
    manifest = build_manifest(recipe, files, rows=statistics["documents"], rows_checksum=proof, statistics=statistics)
    return publish(partial, out_dir, manifest)


def write_docs_corpus(
    out_file: Path, *, max_bytes: int, num_workers: int | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Write up to ``max_bytes`` of JSON Lines to ``out_file``, whole or not at all; returns statistics.

    Args:
        out_file: The file.
        max_bytes: Its largest size.
        num_workers: Processes that read pages, which change nothing about the result; by default one for each CPU.
        progress: Receives bytes written.

    Raises:
        CorpusError: If hardly any documentation is installed.
    """
    out_file.parent.mkdir(parents=True, exist_ok=True)
    aside = out_file.with_name(f".{out_file.name[:80]}.{os.getpid()}.tmp")
    num_bytes = text_bytes = checksum = 0
    kinds: Counter[str] = Counter()
    try:
        with aside.open("wb") as file, closing(iter_documents(num_workers)) as documents:
            for source, text in documents:
                line = json.dumps({"text": text, "source": source}, ensure_ascii=False).encode() + b"\n"
                if num_bytes + len(line) > max_bytes:
                    break
                file.write(line)
                num_bytes += len(line)
                text_bytes += len(text.encode())
                checksum += xxhash.xxh3_128_intdigest(text.encode())
                kinds[source.partition("/")[0]] += 1
                progress.update(num_bytes, max_bytes, "bytes", documents=kinds.total())
            file.flush()
            os.fsync(file.fileno())
        if kinds.total() < 10:
            raise CorpusError(
                f"only {kinds.total()} documents were found in the documentation installed on this machine; give input "
                "files instead (corpus.source: files, corpus.inputs: [...]), or a larger size than "
                f"{max_bytes} bytes"
            )
        aside.replace(out_file)
    finally:
        aside.unlink(missing_ok=True)
    return {
        "documents": kinds.total(),
        "text_bytes": text_bytes,
        "mean_document_bytes": round(text_bytes / kinds.total(), 1),
        "documents_by_source": dict(sorted(kinds.items())),
        "rows_checksum": format_checksum(checksum),
    }


def iter_documents(num_workers: int | None = None) -> Generator[tuple[str, str]]:
    """Yield (source, text) of every page with enough prose that is new; the same installation gives the same order."""
    seen: set[int] = set()
    for page, prose in _read_in_order(find_pages(), num_workers or available_cpus()):
        text = cut_page(_drop_seen(prose, seen))
        if len(text) >= MIN_DOCUMENT_CHARS:
            yield page.source, text


def _read_in_order(pages: Sequence[Page], num_workers: int) -> Iterator[tuple[Page, str]]:
    """Yield the pages with their prose as they come in ``pages``, read by so many processes a little ahead."""
    tasks = [pages[start : start + _PAGES_OF_A_TASK] for start in range(0, len(pages), _PAGES_OF_A_TASK)]
    early: dict[int, list[str]] = {}
    following = 0
    for number, read in LocalExecutor(num_workers).map_unordered(_read_pages, tasks):
        early[number] = read
        while following in early:
            yield from zip(tasks[following], early.pop(following), strict=True)
            following += 1


def _read_pages(pages: Sequence[Page]) -> list[str]:
    return [read_page(page) for page in pages]


def _drop_seen(text: str, seen: set[int]) -> str:
    kept = []
    for paragraph in text.split("\n\n"):
        # Names and years differ between copies of a licence or a docstring; the letters of a long start tell enough.
        letters = "".join(islice(filter(str.isalpha, paragraph), 120)).lower()
        digest = xxhash.xxh3_64_intdigest(letters.encode())
        if digest not in seen:
            seen.add(digest)
            kept.append(paragraph)
    return "\n\n".join(kept)


def documents_of(config: CorpusConfig, folder: Path) -> Documents:
    """Return what the shuffle reads: what the stage wrote to ``folder``, or the inputs or sources that were given."""
    return (str(folder / DOCUMENTS_NAME),) if config.source == "installed_docs" else config.sources or config.inputs


class _Config(Protocol):
    @property
    def corpus(self) -> CorpusConfig: ...


def _recipe_of(config: CorpusConfig) -> Recipe:
    return Recipe(kind="corpus", settings={"source": "installed_docs", "max_bytes": parse_size(config.max_size)})


def _recipe(config: _Config, _inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    return {out: _recipe_of(config.corpus)} if config.corpus.source == "installed_docs" else {}


def _make(config: _Config, _inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    if config.corpus.source == "installed_docs":
        build_docs_corpus(config.corpus, out, replace=True, progress=progress)


def _describe(config: _Config, out: Path) -> str:
    if config.corpus.source == "files":
        return "files as given"
    manifest = read_manifest(out)
    return f"{manifest.rows:,} documents, {format_size(manifest.bytes)} of installed documentation"


def _plan(config: _Config, outlook: Outlook) -> StagePlan:
    if config.corpus.source == "files":
        return StagePlan(tasks=0, seconds=0.0, basis="files as given")
    size = parse_size(config.corpus.max_size)
    seconds = size / (_BYTES_PER_CPU_SECOND * outlook.cpus)
    return StagePlan(disk_bytes=size, seconds=seconds, basis="demo: 0.57 MB/s of each CPU")


CORPUS = Stage(
    name="corpus", folder="corpus", title="Corpus", recipe=_recipe, make=_make, describe=_describe, plan=_plan
)
"""Where the text comes from: files as given, or a corpus made from the documentation installed here."""
