"""Finds planted duplicates: recall by Jaccard similarity, what else was removed, speed and memory, beside peers.

    python -m benchmarks.near_duplicates enwiki.jsonl.gz --megabytes 20 --work /tmp/near \
        --datatrove peers/datatrove/bin/python --text-dedup peers/text-dedup/bin/python

The peers have environments of their own, outside of this repository, since they need other versions:

    python -m venv peers/datatrove && peers/datatrove/bin/pip install 'datatrove[io,processing]' spacy
    python -m venv peers/text-dedup && peers/text-dedup/bin/pip install text-dedup

Documents of the input that have a near-duplicate already are left out first, so that what is planted is all there is.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.measure import Command, Measured, measure

_NGRAM, _BANDS, _ROWS, _THRESHOLD = 5, 14, 8, 0.75
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
_EDGES = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Planted:
    """Two documents that have much in common."""

    kind: str
    original: str
    copy: str
    jaccard: float
    """Of the sets of n-grams of words, or of single Chinese characters."""


def main() -> None:
    """Plant, run all tools, and print what each found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="JSON Lines with the key text, plain or .gz")
    parser.add_argument("--megabytes", type=float, default=20.0, help="text to take from the inputs")
    parser.add_argument("--work", type=Path, required=True, help="a folder for everything; it is emptied")
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--datatrove", type=Path, help="its Python")
    parser.add_argument("--text-dedup", type=Path, help="its Python")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work: Path = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    documents = distinct_documents(options.inputs, int(options.megabytes * 1e6), work)
    corpus, planted = plant(documents, work, random.Random(options.seed))
    size = sum(len(json.loads(line)["text"].encode()) for line in corpus.open(encoding="utf-8"))
    print(json.dumps(describe_machine(work)))
    print(f"{len(documents):,} documents, {len(planted):,} planted pairs, {size / 1e6:.1f} MB of text")
    for number in range(options.rounds):
        for name, command, kept in tools(options, corpus, work / f"round{number}"):
            found = measure(command, work, timeout_seconds=3 * 3600)
            print(json.dumps(asdict(score(name, found, read_ids(kept), corpus, planted, size)), ensure_ascii=False))


def distinct_documents(inputs: list[Path], num_bytes: int, work: Path) -> list[str]:
    """Return documents of the inputs of which no two are similar."""
    taken, held = [], 0
    for path in inputs:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                text = json.loads(line)["text"]
                if held < num_bytes and len(_TOKEN.findall(text)) >= 50:
                    taken.append(text)
                    held += len(text.encode())
    raw = work / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in taken), encoding="utf-8")
    near = ["--near-threshold", "0.3", "--near-bands", "128", "--near-rows", "3"]
    argv = [sys.executable, "-m", "kexue_train", "shuffle", str(raw), "-o", str(work / "distinct.jsonl")]
    found = measure(Command([*argv, "--dedup", "near", *near]), work)
    if found.error:
        raise SystemExit(found.error)
    return [json.loads(line)["text"] for line in (work / "distinct.jsonl").open(encoding="utf-8")]


def plant(documents: list[str], work: Path, rng: random.Random) -> tuple[Path, list[Planted]]:
    """Write the documents with copies of some of them, in random order, and say what was planted."""
    texts = {f"d{number}": text for number, text in enumerate(documents)}
    planted: list[Planted] = []
    for number, text in enumerate(documents):
        draw = rng.random()
        if draw < 0.05:
            kind, copy = "exact", text
        elif draw < 0.3:
            kind, copy = "edited", edit(text, rng.uniform(0.5, 1.0), rng)
        elif draw < 0.35:
            other = documents[number - 1]
            kind, copy = "partial", text[: len(text) // 2] + other[len(other) // 2 :]
        else:
            continue
        jaccard = similarity(text, copy)
        texts[f"c{number}"] = copy
        planted.append(Planted(kind, f"d{number}", f"c{number}", jaccard))
    lines = [json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n" for name, text in texts.items()]
    rng.shuffle(lines)
    path = work / "corpus.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path, planted


def edit(text: str, jaccard: float, rng: random.Random) -> str:
    """Replace single words so that about such a share of the n-grams stays."""
    shared = 2 * jaccard / (1 + jaccard)
    chance = 1 - shared ** (1 / _NGRAM)
    words = _TOKEN.findall(text)
    return _TOKEN.sub(lambda found: rng.choice(words) if rng.random() < chance else found[0], text)


def similarity(left: str, right: str) -> float:
    """Return the Jaccard similarity of the n-grams."""
    sets = []
    for text in (left, right):
        words = _TOKEN.findall(text.lower())
        sets.append({tuple(words[i : i + _NGRAM]) for i in range(max(1, len(words) - _NGRAM + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def tools(options: argparse.Namespace, corpus: Path, folder: Path) -> list[tuple[str, Command, Path]]:
    """Return (name, command, file of what it keeps) of each tool."""
    folder.mkdir()
    parameters = {"ngram": _NGRAM, "bands": _BANDS, "rows": _ROWS}
    near = [str(part) for name, value in parameters.items() for part in (f"--near-{name}", value)]
    ours = [sys.executable, "-m", "kexue_train", "shuffle", str(corpus), "--keep", "id", "--workers", "1"]
    ours += ["--memory", options.memory, "--dedup"]
    kept = {name: folder / f"{name}.jsonl" for name in ("near", "exact")}
    found = [
        (f"kexue {name}", Command([*ours, name, *(near if name == "near" else []), "-o", str(path)]), path)
        for name, path in kept.items()
    ]
    for name, python in (("datatrove", options.datatrove), ("text-dedup", options.text_dedup)):
        if python:
            script = Path(__file__).with_name("near_peers.py")
            argv = [str(python.absolute()), str(script), name, str(corpus), str(folder / f"{name}.ids")]
            argv += ["--tmp", str(folder / name)] + [s for k, v in parameters.items() for s in (f"--{k}", str(v))]
            found.append((name, Command(argv, env={"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}), folder / f"{name}.ids"))
    return found


def read_ids(path: Path) -> set[str]:
    """Return the ids that a tool kept."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # texts have line ends of other kinds
    return {json.loads(line)["id"] if line.startswith("{") else line for line in lines}


@dataclass
class Score:
    """What one run of a tool found and took."""

    tool: str
    error: str
    cpu_seconds: float
    megabytes_per_cpu_second: float
    seconds: float
    peak_pss_mb: int
    peak_disk_mb: int
    load_before: float
    found: dict[str, str]
    """By kind, and for edited ones by similarity: planted pairs of which not both were kept, of how many."""
    others_removed: int
    """Documents removed that have nothing planted."""


def score(name: str, run: Measured, kept: set[str], corpus: Path, planted: list[Planted], size: int) -> Score:
    """Compare what a tool kept with what was planted."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for pair in planted:
        counts[_group_of(pair)].append(not {pair.original, pair.copy} <= kept)
    names = {json.loads(line)["id"] for line in corpus.open(encoding="utf-8")}
    involved = {name for pair in planted for name in (pair.original, pair.copy)}
    found: dict[str, Any] = {group: f"{sum(hits)} of {len(hits)}" for group, hits in sorted(counts.items())}
    return Score(
        tool=name,
        error=run.error,
        cpu_seconds=round(run.cpu_seconds, 2),
        megabytes_per_cpu_second=round(size / 1e6 / max(run.cpu_seconds, 1e-9), 2),
        seconds=round(run.seconds, 1),
        peak_pss_mb=run.peak_pss // 10**6,
        peak_disk_mb=run.peak_disk // 10**6,
        load_before=run.load_before,
        found={} if run.error else found,
        others_removed=len(names - kept - involved) if not run.error else 0,
    )


def _group_of(pair: Planted) -> str:
    if pair.kind != "edited":
        return pair.kind
    high = next(edge for edge in _EDGES if pair.jaccard <= edge)
    return f"edited, {_EDGES[max(_EDGES.index(high) - 1, 0)]:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
