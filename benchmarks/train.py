"""A whole training beside its bare steps, beside Hugging Face's Trainer, and on two processes; ``--help`` tells more.

Figures are medians over blocks of steps: after each block of ours, in the same process, the others take the same
micro-batches. Only real tokens count. On a CPU, set MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=100000000000, which
keep freed memory in the process: without them page faults take more time than the work, ours and others'.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.encoder import choose, report
from benchmarks.encoder_models import SIZES
from benchmarks.machine import describe_machine
from benchmarks.train_blocks import BareSteps, num_steps, train_in_blocks
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import KexueError, ResourceError
from kexue_train.foundation.runtime import available_cpus
from kexue_train.metrics.file import read_metrics
from kexue_train.train.job import JobConfig, TrainDir, prepare
from kexue_train.train.pretrain import pretrain
from kexue_train.train.torchrun_launch import train_with_torchrun

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
_MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")

SizeName = Annotated[str, typer.Option("--size", help="tiny, small, base or large.")]
Samples = Annotated[Path, typer.Option(help="A folder of sample shards.")]
Rows = Annotated[int, typer.Option(min=1, help="Rows of a micro-batch.")]
Windows = Annotated[int, typer.Option("--accumulation", min=1, help="Micro-batches of a step.")]
BlockSteps = Annotated[int, typer.Option("--block", min=1, help="Steps of a block.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measured blocks.")]
Workdir = Annotated[Path | None, typer.Option(help="Trainings go here, into a folder that is deleted (default: /tmp).")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")]


@app.command()
def loop(
    samples: Samples, size: SizeName = "base", rows: Rows = 4, windows: Windows = 1, block: BlockSteps = 10,
    rounds: Rounds = 6, workdir: Workdir = None, json_path: JsonPath = None,
) -> None:  # fmt: skip
    """Loader, metrics, checkpoints and logs, beside forward, backward and Tiger alone; starting; doing nothing again.

    One line of metrics per block, one checkpoint in every second one, its writing in the background waited for.
    """
    steps = num_steps(block, rounds)
    config = make_job(samples, size, rows, windows, steps=steps, log_every=block, save_every=2 * block)
    with folder(workdir) as root:
        bare = BareSteps(config, SampleDataset(samples))
        measured = train_in_blocks(config, samples, root / "training", block, {"bare": bare})
        measured_again = time.perf_counter()
        pretrain(config, samples, root / "training", launch=_nothing_to_launch)
        again = time.perf_counter() - measured_again
    plain = [b for b in measured.blocks if not b.saved]
    saving = [b for b in measured.blocks if b.saved]
    table = Table("what", "figure", "min to max", "of", caption=memory_note())
    for title, blocks in (("loop, no checkpoint", plain), ("loop, with a checkpoint", saving)):
        rates, ratios = [b.rate("loop") for b in blocks], [b.rate("loop") / b.rate("bare") for b in blocks]
        table.add_row(f"{title}, real tokens/s", *spread(rates, ",.0f"))
        table.add_row(f"{title}, of the bare steps", *spread(ratios, ".3f"))
        table.add_row(f"{title}, by CPU time", *spread([b.cpu_ratio("bare") for b in blocks], ".3f"))
    table.add_row("bare steps, real tokens/s", *spread([b.rate("bare") for b in measured.blocks], ",.0f"))
    table.add_row(
        "loop beyond bare steps, with a checkpoint, s",
        *spread([b.seconds["loop"] - b.seconds["bare"] for b in saving], ".2f"),
    )
    table.add_row("checkpoint stall, s", *spread(measured.stall_seconds, ".2f"))
    table.add_row("call to first step, s", *spread([measured.start_seconds], ".2f"))
    table.add_row("no-op resume, s", *spread([again], ".2f"))
    raw = {"blocks": [asdict(b) for b in measured.blocks], "stall_seconds": measured.stall_seconds}
    raw |= {"start_seconds": measured.start_seconds, "no_op_seconds": again}
    report(f"Training loop, {size}", table, facts(available_cpus()) | raw, json_path)


@app.command()
def peer(
    samples: Samples, size: SizeName = "base", rows: Rows = 4, windows: Windows = 1, block: BlockSteps = 1,
    rounds: Rounds = 3, workdir: Workdir = None, json_path: JsonPath = None,
    peers: Annotated[str, typer.Option(help="trainer (pairs, padded), trainer-joined (no pairs, no padding).")]
    = "trainer,trainer-joined",
) -> None:  # fmt: skip
    """The whole training beside transformers' Trainer with BERT of the same size and AdamW; neither saves.

    Trainer needs a package that kexue_train does not: pip install accelerate.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ResourceError("transformers.Trainer needs accelerate, which is not installed: pip install accelerate")
    from benchmarks.train_peer import PEERS, TrainerPeer  # noqa: PLC0415  # needs accelerate

    choose(peers, PEERS)
    steps = num_steps(block, rounds)
    config = make_job(samples, size, rows, windows, steps=steps, log_every=max(10, block), save_every=steps)
    names = [name.strip() for name in peers.split(",")]
    with folder(workdir) as root:
        others = {name: TrainerPeer(name, config.model, samples, root / name, rows, windows) for name in names}
        blocks = train_in_blocks(config, samples, root / "training", block, others).blocks
    table = Table(
        "what", "real tokens/s", "min to max", "of", "ours / it", "min to max", "by CPU time", caption=memory_note()
    )
    for name in ("loop", *names):
        title = "kexue_train, packed, pairs" if name == "loop" else PEERS[name][0]
        ratios = [b.rate("loop") / b.rate(name) for b in blocks]
        table.add_row(
            title,
            *spread([b.rate(name) for b in blocks], ",.0f"),
            *spread(ratios, ".2f")[:2],
            spread([b.cpu_ratio(name) for b in blocks], ".2f")[0],
        )
    raw = facts(available_cpus()) | {"blocks": [asdict(b) for b in blocks]}
    report(f"Beside Trainer, {size}", table, raw, json_path)


@app.command()
def scaling(
    samples: Samples, size: SizeName = "small", rows: Rows = 2, block: BlockSteps = 6, rounds: Rounds = 2,
    workdir: Workdir = None, json_path: JsonPath = None,
) -> None:  # fmt: skip
    """The same steps on one and on two processes of one thread each (torchrun, gloo); a round starts both anew."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for round_ in range(rounds):
        for workers in (1, 2) if round_ % 2 == 0 else (2, 1):
            with folder(workdir) as root:
                rates[workers] += _torchrun_rates(samples, size, rows, block, workers, root)
    table = Table("processes", "real tokens/s", "min to max", "steps", "times one process", caption=memory_note())
    for workers, found in rates.items():
        table.add_row(
            str(workers), *spread(found, ",.0f"), f"{statistics.median(found) / statistics.median(rates[1]):.2f}"
        )
    report(f"Scaling, {size}", table, facts(1) | {"tokens_per_second": rates}, json_path)


def _torchrun_rates(samples: Path, size: str, rows: int, steps: int, workers: int, root: Path) -> list[float]:
    """Of every step but the first; the training is then asked to stop, long before its end."""
    config = make_job(
        samples, size, rows, 2, steps=10**6, num_workers=workers,
        workers={"launcher": "torchrun", "threads_per_worker": 1},
    )  # fmt: skip
    paths = TrainDir(root / "training")
    prepare(config, samples, paths)
    ended = threading.Event()
    watch = threading.Thread(target=_stop_after, args=(paths, steps + 1, ended))
    watch.start()
    try:
        train_with_torchrun(config, samples, paths.root)
    finally:
        ended.set()
        watch.join()
    return [line["tokens_per_second"] for line in _lines(paths)[1 : steps + 1]]


def _stop_after(paths: TrainDir, steps: int, ended: threading.Event) -> None:
    while not ended.wait(0.1):
        if len(_lines(paths)) >= steps:
            paths.stop.touch()
            return


def _lines(paths: TrainDir) -> list[dict[str, Any]]:
    return [line for line in read_metrics(paths.metrics) if line["kind"] == "train"]


def make_job(
    samples: Path, size: str, rows: int, windows: int, *, log_every: int = 1, save_every: int = 10**6, **train: Any
) -> JobConfig:
    """A job of one of the usual sizes with dropout 0.1, plain torch; what ``train`` leaves out is as it is by default.

    Raises:
        ConfigError: If the size is not known.
    """
    shape = choose(size, SIZES)[0]
    model = {
        "num_hidden_layers": shape.layers, "hidden_size": shape.hidden, "num_attention_heads": shape.hidden // 64,
        "intermediate_size": shape.intermediate, "max_position_embeddings": SampleDataset(samples).seq_len,
    }  # fmt: skip
    settings = {
        "global_batch_size": rows * windows, "micro_batch_size": rows, "compute": {"engine": "torch"},
        "workers": {"launcher": "local"}, "logging": {"log_every": log_every, "validate_every": 10**6},
        "checkpoints": {"every": save_every}, **train,
    }  # fmt: skip
    values = {"model": model, "optimizer": {"schedule": {"100": 1.0}}, "train": settings}
    return JobConfig.parse(values, where="benchmark")


def facts(threads: int) -> dict[str, Any]:
    """What the figures depend on: date, command line, machine, versions, how memory is freed."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} threads"
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/train.py", *sys.argv[1:]]),
        "machine": describe_machine(Path()),
        "device": f"{'cuda' if torch.cuda.is_available() else 'cpu'}, {name}",
        "torch": torch.__version__,
        "malloc": {name: os.environ.get(name) for name in _MALLOC},
    }


def memory_note() -> str:
    """Whether freed memory stays in the process."""
    missing = [name for name in _MALLOC if name not in os.environ]
    return f"not set: {', '.join(missing)}; page faults count" if missing else "freed memory kept (MALLOC_ variables)"


def spread(values: list[float], form: str) -> tuple[str, str, str]:
    """Median, extremes and number, as a row of a table shows them; nothing of no values."""
    if not values:
        return "", "", "0"
    return format(statistics.median(values), form), f"{min(values):{form}} to {max(values):{form}}", str(len(values))


@contextmanager
def folder(workdir: Path | None) -> Iterator[Path]:
    """A folder that is deleted afterwards."""
    if workdir:
        workdir.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="train-", dir=workdir))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def _nothing_to_launch() -> None:
    raise AssertionError("a finished training was trained again")


if __name__ == "__main__":
    try:
        app()
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
