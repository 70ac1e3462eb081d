"""Other near-duplicate finders on one JSON Lines file, each as one command: ``near_peers.py NAME INPUT OUT ...``.

They run in environments of their own, which ``near_duplicates.py`` is told of. The file has the keys ``id`` and
``text``; ``OUT`` receives the ids that are kept, one on each line. Libraries are used as their documentation shows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run the peer that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["datatrove", "text-dedup"])
    parser.add_argument("input", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tmp", type=Path, required=True)
    parser.add_argument("--ngram", type=int, default=5)
    parser.add_argument("--bands", type=int, default=14)
    parser.add_argument("--rows", type=int, default=8)
    options = parser.parse_args()
    run = {"datatrove": with_datatrove, "text-dedup": with_text_dedup}[options.peer]
    ids = run(options.input, options.tmp, options.ngram, options.bands, options.rows)
    options.out.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")


def with_datatrove(source: Path, tmp: Path, ngram: int, bands: int, rows: int) -> list[str]:
    """Run the four stages of its MinHash deduplication, one task at a time."""
    from datatrove.executor import LocalPipelineExecutor  # noqa: PLC0415
    from datatrove.pipeline.dedup.minhash import (  # noqa: PLC0415
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader  # noqa: PLC0415
    from datatrove.pipeline.writers.jsonl import JsonlWriter  # noqa: PLC0415
    from datatrove.utils.typeshelper import Languages  # noqa: PLC0415

    folder = tmp / "in"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").symlink_to(source.absolute())
    config = MinhashConfig(n_grams=ngram, num_buckets=bands, hashes_per_bucket=rows)
    signatures, buckets, remove, kept = (str(tmp / name) for name in ("signatures", "buckets", "remove", "kept"))

    def read() -> JsonlReader:
        return JsonlReader(str(folder))

    stages = [
        (1, [read(), MinhashDedupSignature(signatures, config, language=Languages.english)]),
        (bands, [MinhashDedupBuckets(signatures, buckets, config=config)]),
        (1, [MinhashDedupCluster(buckets, remove, config=config)]),
        (1, [read(), MinhashDedupFilter(remove), JsonlWriter(kept)]),
    ]
    for number, (tasks, pipeline) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(tmp / f"logs{number}")).run()
    return [
        json.loads(line)["id"]
        for path in sorted(Path(kept).glob("*.jsonl.gz"))
        for line in gzip.open(path, "rt", encoding="utf-8")
    ]


def with_text_dedup(source: Path, tmp: Path, ngram: int, bands: int, rows: int) -> list[str]:
    """Run its MinHash script, which works on words between spaces and punctuation."""
    import datasets  # noqa: PLC0415

    tmp.mkdir(parents=True, exist_ok=True)
    out = tmp / "kept"
    options = {
        "path": "json",
        "data_files": source.absolute(),
        "split": "train",
        "column": "text",
        "output": out,
        "cache_dir": tmp / "cache",
        "num_proc": 1,
        "ngram": ngram,
        "num_perm": bands * rows,
        "b": bands,
        "r": rows,
        "min_length": 1,
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    subprocess.run([sys.executable, "-m", "text_dedup.minhash", *arguments], check=True, cwd=tmp)
    return list(datasets.load_from_disk(str(out))["id"])


if __name__ == "__main__":
    main()
