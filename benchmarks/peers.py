"""Other ways to shuffle that are Python libraries or algorithms, each as one command: ``peers.py NAME INPUT OUT ...``.

Libraries are used as their documentation shows. Everything they keep on the way goes to ``--tmp``.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

_MIN_OBJECT_STORE_BYTES = 10**9  # with less, Ray spends its time on spilling
_LONGEST_LINE_BYTES = 64 * 10**6


def main() -> None:
    """Run the peer that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["blog", "duckdb", "ray", "ray-push", "datasets"])
    parser.add_argument("input", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tmp", type=Path, required=True)
    parser.add_argument("--memory", type=int, required=True, help="bytes; what each peer makes of it differs")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk-lines", type=int, default=1_000_000, help="blog: lines permuted at a time")
    options = parser.parse_args()
    if options.peer == "blog":
        shuffle_like_the_blog(
            options.input, options.out, options.tmp, options.chunk_lines, options.workers, options.seed
        )
    elif options.peer == "duckdb":
        shuffle_with_duckdb(options.input, options.out, options.tmp, options.memory, options.workers)
    elif options.peer == "datasets":
        shuffle_with_datasets(options.input, options.out, options.tmp, options.seed)
    else:
        is_push_based = options.peer == "ray-push"
        shuffle_with_ray(options.input, options.out, options.tmp, options.memory, options.workers, is_push_based)


def shuffle_like_the_blog(source: Path, out: Path, tmp: Path, chunk_lines: int, workers: int, seed: int) -> None:
    """Permute chunks of lines into one file each; then, round by round, a line of every file in random order.

    Not uniform: every round holds exactly one line of each chunk. Source: https://kexue.fm/archives/8662, written anew
    from its description.
    """
    tmp.mkdir(parents=True, exist_ok=True)
    running: set[Future[Path]] = set()
    chunks: list[Path] = []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool, source.open("rb") as file:
        for index, lines in enumerate(_chunks(file, chunk_lines)):
            if len(running) == workers:  # or the whole file would wait in memory
                done, running = wait(running, return_when=FIRST_COMPLETED)
                chunks += [future.result() for future in done]
            running.add(pool.submit(_permute, lines, tmp / f"{index:06d}.txt", f"{seed}/{index}"))
        chunks += [future.result() for future in running]
    rng = random.Random(seed)
    with ExitStack() as stack, out.open("wb") as result:
        files = [stack.enter_context(path.open("rb")) for path in sorted(chunks)]
        while lines := [line for file in files if (line := file.readline())]:
            rng.shuffle(lines)
            result.writelines(lines)


def _chunks(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while chunk := list(itertools.islice(lines, size)):
        if not chunk[-1].endswith(b"\n"):
            chunk[-1] += b"\n"
        yield chunk


def _permute(lines: list[bytes], path: Path, seed: str) -> Path:
    random.Random(seed).shuffle(lines)
    with path.open("wb") as file:
        file.writelines(lines)
    return path


def shuffle_with_duckdb(source: Path, out: Path, tmp: Path, memory: int, workers: int) -> None:
    """``ORDER BY random()`` into one Parquet file."""
    import duckdb  # noqa: PLC0415  # may not be installed

    if source.suffix == ".jsonl":
        columns = "{'id': 'BIGINT', 'source': 'VARCHAR', 'text': 'VARCHAR'}"
        read = f"read_json('{source}', format='newline_delimited', columns={columns})"
    else:  # a table of one column, whose separator no text holds
        options = "header=false, delim='\x1f', quote='', escape='', auto_detect=false"
        read = f"read_csv('{source}', columns={{'text': 'VARCHAR'}}, {options}, max_line_size={_LONGEST_LINE_BYTES})"
    settings = {"memory_limit": f"{memory}B", "temp_directory": str(tmp), "threads": workers}
    connection = duckdb.connect(config=settings)
    connection.execute(f"COPY (SELECT * FROM {read} ORDER BY random()) TO '{out}' (FORMAT parquet, COMPRESSION lz4)")


def shuffle_with_ray(source: Path, out: Path, tmp: Path, memory: int, workers: int, is_push_based: bool) -> None:
    """``random_shuffle`` and ``write_parquet`` on a cluster of this machine."""
    import ray  # noqa: PLC0415  # may not be installed

    object_store = max(memory, _MIN_OBJECT_STORE_BYTES)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as session:  # sockets: the path must be short
        ray.init(
            num_cpus=workers,
            object_store_memory=object_store,
            object_spilling_directory=str(tmp / "spill"),
            include_dashboard=False,
            _temp_dir=session,
        )
        if is_push_based:
            ray.data.DataContext.get_current().shuffle_strategy = "sort_shuffle_push_based"
        read = ray.data.read_json if source.suffix == ".jsonl" else ray.data.read_text
        read(str(source)).random_shuffle().write_parquet(str(out))
        ray.shutdown()


def shuffle_with_datasets(source: Path, out: Path, tmp: Path, seed: int) -> None:
    """``load_dataset``, ``shuffle``, ``flatten_indices``, ``save_to_disk``; a fresh cache in ``tmp``."""
    import datasets  # noqa: PLC0415  # slow to import

    builder = "json" if source.suffix == ".jsonl" else "text"
    loaded = datasets.load_dataset(builder, data_files=str(source), split="train", cache_dir=str(tmp / "cache"))
    loaded.shuffle(seed=seed).flatten_indices().save_to_disk(str(out))


if __name__ == "__main__":
    sys.exit(main())
