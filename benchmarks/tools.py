"""What is compared: each tool's command to shuffle a file, whether it is here, and how to count what it wrote."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import allows_direct_io
from benchmarks.make_corpus import KINDS, Corpus
from benchmarks.measure import Command

_PEERS = Path(__file__).with_name("peers.py")
_REPOSITORY = _PEERS.parent.parent
_LINE_KINDS = ("lines", "short-lines")


@dataclass(frozen=True, slots=True)
class Job:
    """One run to make a command for. ``folder`` is empty and deleted afterwards."""

    corpus: Corpus
    folder: Path
    memory: int
    workers: int
    seed: int
    terashuf: str

    @property
    def source(self) -> str:
        """The input."""
        return str(self.corpus.path)

    @property
    def tmp(self) -> Path:
        """Where temporary files go."""
        return self.folder / "tmp"


@dataclass(frozen=True, slots=True)
class Tool:
    """A way to shuffle."""

    name: str
    title: str
    make_command: Callable[[Job], Command]
    out: str
    """Name of the output in the job's folder."""
    missing: Callable[[Job], str | None] = lambda _: None
    """Why it cannot run here and how to get it; None: it can."""
    kinds: tuple[str, ...] = KINDS
    is_default: bool = True


def count_rows(path: Path) -> tuple[int, int | None]:
    """Rows of an output, and for plain text its bytes: of a text file, or a folder of Arrow or Parquet files."""
    if path.is_file() and path.suffix == ".txt":
        return _count_lines(path), path.stat().st_size
    files = [path] if path.is_file() else sorted(path.rglob("*.arrow")) + sorted(path.rglob("*.parquet"))
    return sum(
        _count_arrow(file) if file.suffix == ".arrow" else pq.read_metadata(file).num_rows for file in files
    ), None


def _count_lines(path: Path) -> int:
    with path.open("rb", buffering=0) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**22), b""))


def _count_arrow(path: Path) -> int:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        return sum(batch.num_rows for batch in reader)


def _ours(job: Job, out: str, workers: int) -> Command:
    options = ["--memory", f"{job.memory}B", "--workers", str(workers), "--seed", str(job.seed)]
    return Command([sys.executable, "-m", "kexue_train", "shuffle", job.source, "-o", str(job.folder / out), *options])


def _dd(job: Job, *flags: str) -> Command:
    def copy(source: str, target: str) -> str:
        argv = ["dd", f"if={source}", f"of={target}", "bs=32M", "conv=fsync", "status=none", *flags]
        return shlex.join(argv)

    return Command(["sh", "-c", f"{copy(job.source, 'spill')} && {copy('spill', 'out.txt')} && rm spill"])


def _terashuf(job: Job) -> Command:
    env = {"MEMORY": f"{job.memory / 2**30:.4f}", "TMPDIR": str(job.folder), "SEED": str(job.seed), "SKIP": "0"}
    return Command([job.terashuf], stdin=job.corpus.path, stdout=job.folder / "out.txt", env=env)


def _sort(job: Job) -> Command:
    argv = ["sort", "--random-sort", "-S", f"{job.memory}b", "-T", str(job.folder), "-o", "out.txt", job.source]
    return Command(argv, env={"LC_ALL": "C"})


def _peer(name: str, out: str) -> Callable[[Job], Command]:
    def make_command(job: Job) -> Command:
        # -P: the modules beside peers.py must not hide others of the same name.
        argv = [sys.executable, "-P", str(_PEERS), name, job.source, str(job.folder / out), "--tmp", str(job.tmp)]
        argv += ["--memory", str(job.memory), "--workers", str(job.workers), "--seed", str(job.seed)]
        if name == "blog":
            argv += ["--chunk-lines", str(blog_chunk_lines(job))]
        env = {"datasets": {"HF_HOME": str(job.tmp), "HF_HUB_OFFLINE": "1"}}
        return Command(argv, env=env.get(name, {"RAY_USAGE_STATS_ENABLED": "0"} if name.startswith("ray") else {}))

    return make_command


def blog_chunk_lines(job: Job) -> int:
    """Lines per chunk such that what is read, what is on its way and what is permuted fit in the memory."""
    bytes_of_a_line = job.corpus.mean_line_bytes + 60  # Python's object and its place in the list
    return max(1, int(job.memory / (2 * (job.workers + 1) * bytes_of_a_line)))


def _program(name: str, how: str) -> Callable[[Job], str | None]:
    return lambda _: None if shutil.which(name) else f"not installed ({how})"


def _package(name: str) -> Callable[[Job], str | None]:
    return lambda _: None if importlib.util.find_spec(name) else f"not installed (pip install {name})"


def _missing_terashuf(job: Job) -> str | None:
    how = "build github.com/alexandres/terashuf with make, then put it on PATH or give --terashuf PATH"
    return None if shutil.which(job.terashuf) else f"not installed ({how})"


def _missing_direct_io(job: Job) -> str | None:
    return None if allows_direct_io(job.folder) else "the file system of the work folder does not allow direct I/O"


def _missing_text_output(job: Job) -> str | None:
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        source, out = Path(folder, "in.txt"), Path(folder, "out.txt")
        source.write_text("one\ntwo\nthree\n", encoding="utf-8")
        argv = [sys.executable, "-m", "kexue_train", "shuffle", str(source), "-o", str(out)]
        subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, check=False)
        is_written = out.is_file() and sorted(out.read_text(encoding="utf-8").split()) == ["one", "three", "two"]
    return None if is_written else "this version of kexue writes no text (-o out.txt)"


TOOLS = [
    Tool("ours", "kexue → Arrow", lambda job: _ours(job, "out", job.workers), "out"),
    Tool("ours-1", "kexue → Arrow, 1 worker", lambda job: _ours(job, "out", 1), "out"),
    Tool(
        "ours-text",
        "kexue → lines",
        lambda job: _ours(job, "out.txt", job.workers),
        "out.txt",
        _missing_text_output,
        _LINE_KINDS,
    ),
    Tool("dd", "dd twice (floor)", _dd, "out.txt", _program("dd", "apt install coreutils")),
    Tool(
        "dd-direct",
        "dd twice, direct I/O",
        lambda job: _dd(job, "iflag=direct", "oflag=direct"),
        "out.txt",
        _missing_direct_io,
    ),
    Tool("terashuf", "terashuf", _terashuf, "out.txt", _missing_terashuf),
    Tool(
        "shuf",
        "GNU shuf, in RAM",
        lambda job: Command(["shuf", job.source, "-o", "out.txt"]),
        "out.txt",
        _program("shuf", "apt install coreutils"),
    ),
    Tool("sort", "sort --random-sort", _sort, "out.txt", _program("sort", "apt install coreutils"), is_default=False),
    Tool("blog", "blog 8662, not uniform", _peer("blog", "out.txt"), "out.txt"),
    Tool(
        "duckdb",
        "DuckDB → Parquet",
        _peer("duckdb", "out.parquet"),
        "out.parquet",
        _package("duckdb"),
    ),
    Tool("ray", "Ray Data → Parquet", _peer("ray", "out"), "out", _package("ray")),
    Tool("ray-push", "Ray Data, push-based", _peer("ray-push", "out"), "out", _package("ray")),
    Tool("datasets", "datasets → Arrow", _peer("datasets", "out"), "out", _package("datasets")),
]
