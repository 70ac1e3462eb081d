"""Random faults for half an hour: ``python -m benchmarks.soak [--minutes 30] [--launcher torchrun] [--workdir DIR]``.

Trains a tiny model twice with the command ``kexue train``: once undisturbed, once while its processes are killed,
stopped and frozen at random moments, its disks are full, foreign lines get into its metrics and its folders move. It is
started again the way a user would whenever the command has ended. The final parameters and momenta must be the same,
bit for bit. Exit code 1 if they are not.

As root on Linux the disturbed training has small disks of its own for the folder, its checkpoints, logs and curves, and
runs on a machine whose name resolves nowhere.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.runtime import format_seconds
from kexue_train.metrics.file import read_metrics
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.tokenizer import train_tokenizer
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus
from kexue_train.train.job import TrainDir

WORKERS = 2
_SEQ_LEN = 64
_MEAN_SECONDS_BETWEEN = 25.0
"""From a recovery to the next fault."""
_CALIBRATION_STEPS = 300
_HANG_SECONDS = 15.0
_PATIENCE_SECONDS = 600.0
_CHECKPOINT_EVERY = 50
_SECONDS_FULL = 4.0
_DISK_BYTES = 64_000_000
_PARTS = ("", "checkpoints", "logs", "tensorboard")
"""Of the training's folder, each on a disk of its own; the first is the folder itself, with the metrics."""
_FOREIGN = (b"\xff\xfe\x00\x81", bytes(512), b"[1, 2]", b'{"kind": "train", "step": NaN}', b"x" * 100_000)

# Kind of fault -> (whom it hits, signal); "driver" is the command itself.
_FAULTS = {
    "torchrun": {
        "kill -9 a worker": ("worker", signal.SIGKILL),
        "kill -9 torchrun": ("torchrun", signal.SIGKILL),
        "kill -9 the command": ("driver", signal.SIGKILL),
        "SIGTERM to the command": ("driver", signal.SIGTERM),
        "Ctrl-C": ("driver", signal.SIGINT),
        "SIGTERM to torchrun": ("torchrun", signal.SIGTERM),
        "freeze a worker": ("worker", signal.SIGSTOP),
    },
    "ray": {
        "kill -9 a worker": ("worker", signal.SIGKILL),
        "kill -9 the command": ("driver", signal.SIGKILL),
        "SIGTERM to the command": ("driver", signal.SIGTERM),
        "Ctrl-C": ("driver", signal.SIGINT),
        "freeze a worker": ("worker", signal.SIGSTOP),
    },
}


Strike = Callable[["Training", random.Random], bool]
"""Does something to a training; whether it could be done."""


@dataclass(frozen=True)
class Fault:
    """One fault and what it cost."""

    kind: str
    steps_lost: int
    """Steps that were done and had to be done again."""
    seconds: float
    """From the fault to the first step that had not been done before."""


class Training:
    """A training by the command line, and its processes."""

    def __init__(self, config: Path, samples: Path, out: Path, launcher: str, *, nameless: bool = False) -> None:
        self.paths, self._samples = TrainDir(out), samples
        self._config, self._launcher, self._nameless = config, launcher, nameless
        self._log = config.with_name(f"{out.name}.log")
        self._driver: subprocess.Popen[bytes] | None = None

    @property
    def _command(self) -> list[str]:
        command = [
            sys.executable, "-m", "kexue_train", "train", "--config", str(self._config),
            "--samples", str(self._samples), "--out", str(self.paths.root), "--launcher", self._launcher,
        ]  # fmt: skip
        rename = ["unshare", "-u", "sh", "-c", 'hostname no-such-host-of-the-soak && exec "$@"', "sh"]
        return [*rename, *command] if self._nameless else command

    def move(self) -> None:
        """End the command as a user would, and give samples and folder other names."""
        assert self._driver is not None
        self._driver.send_signal(signal.SIGTERM)
        self._driver.wait(_PATIENCE_SECONDS)
        self._samples = self._samples.rename(_next_name(self._samples))
        self.paths = TrainDir(self.paths.root.rename(_next_name(self.paths.root)))

    def run(self) -> None:
        """Run to the end, undisturbed."""
        self.start()
        assert self._driver is not None
        if self._driver.wait() != 0:
            raise SystemExit(f"the undisturbed training failed; see {self._log}")

    def start(self) -> None:
        """Give the command."""
        with self._log.open("ab") as log:
            self._driver = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def has_ended(self) -> bool:
        """Whether the command has ended, somehow."""
        return self._driver is None or self._driver.poll() is not None

    @property
    def is_finished(self) -> bool:
        """Whether the last step is done."""
        return (self.paths.root / "manifest.json").exists()

    def step(self) -> int:
        """The last step in the metrics."""
        return max((line["step"] for line in read_metrics(self.paths.metrics) if line["kind"] == "train"), default=0)

    def starts(self) -> list[dict[str, Any]]:
        """The starts that are not undone by a later one."""
        return [line for line in read_metrics(self.paths.metrics) if line["kind"] in ("start", "resume")]

    def hit(self, whom: str, number: signal.Signals, draw: random.Random) -> bool:
        """Send a signal to one of the processes; whether there was one."""
        assert self._driver is not None
        found = [self._driver.pid] if whom == "driver" else [p.pid for p in self._below() if self._role(p) == whom]
        if not found or self.has_ended():
            return False
        try:
            psutil.Process(draw.choice(sorted(found))).send_signal(number)
        except psutil.Error:
            return False
        return True

    def end(self) -> None:
        """End everything, at the end of the soak."""
        for process in [
            *self._below(),
            *([psutil.Process(self._driver.pid)] if self._driver and not self.has_ended() else []),
        ]:
            try:
                process.kill()
            except psutil.Error:
                continue

    def _below(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._driver.pid).children(recursive=True) if self._driver else []
        except psutil.Error:
            return []

    def _role(self, process: psutil.Process) -> str:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            return "gone"
        if self._launcher == "ray":
            return "worker" if "TrainWorker" in command else "other"
        if "runpy" in command:
            return "torchrun"
        return "worker" if "kexue_train.train.worker" in command else "other"


def _next_name(folder: Path) -> Path:
    name, _, number = folder.name.partition("-moved-")
    return folder.with_name(f"{name}-moved-{int(number or 0) + 1}")


def _send(whom: str, number: signal.Signals) -> Strike:
    return lambda training, draw: training.hit(whom, number, draw)


def _fill(disk: Path) -> Strike:
    """Take all that the disk has, for a while."""

    def strike(training: Training, _: random.Random) -> bool:
        if training.has_ended():
            return False
        ballast = disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            time.sleep(_SECONDS_FULL)
        ballast.unlink()
        return True

    return strike


def _add_foreign_line(training: Training, draw: random.Random) -> bool:
    with training.paths.metrics.open("ab") as file:
        file.write(draw.choice(_FOREIGN) + b"\n")
    return training.hit("driver", signal.SIGKILL, draw)


def _move(training: Training, _: random.Random) -> bool:
    if training.has_ended():
        return False
    training.move()
    return True


def mount_disks(folder: Path) -> dict[str, Path]:
    """Return small disks by the part of the training's folder that they are for; none where they cannot be mounted."""
    disks = {part: folder / f"disk-{part or 'run'}" for part in _PARTS}
    for disk in disks.values():
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", str(disk)], check=False, capture_output=True
        )
        if mounted.returncode:
            return {}
    return disks


def unmount(disks: Iterable[Path]) -> None:
    """Give the disks back."""
    for disk in disks:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def make_run_folder(workdir: Path, disks: dict[str, Path]) -> Path:
    """Return the folder of the disturbed training, whose parts lie on ``disks``."""
    if not disks:
        return workdir / "disturbed"
    out = disks[""] / "disturbed"
    out.mkdir()
    for part in _PARTS[1:]:
        (disks[part] / part).mkdir()
        (out / part).symlink_to(disks[part] / part)
    return out


def can_rename_host() -> bool:
    """Return whether a command can be given a host name of its own."""
    return subprocess.run(["unshare", "-u", "true"], check=False, capture_output=True).returncode == 0


def faults_of(launcher: str, disks: dict[str, Path]) -> dict[str, Strike]:
    """Return what can be done to a training, by its name."""
    signals = {kind: _send(*whom) for kind, whom in _FAULTS[launcher].items()}
    full = {f"a full disk under {part or 'the folder'}": _fill(disk) for part, disk in disks.items()}
    return signals | full | {"foreign line, kill -9 the command": _add_foreign_line, "folders moved": _move}


def make_samples(folder: Path, seed: int) -> Path:
    """A few hundred short documents of a thousand random words, and samples of them."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(1000)]
    texts = [". ".join(" ".join(draw.choices(words, k=9)) for _ in range(draw.randint(2, 9))) for _ in range(600)]
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    executor = LocalExecutor(1)
    shuffle_corpus(ShuffleConfig(), [str(file)], folder / "shards", seed=seed, executor=executor)
    train_tokenizer(TokenizerConfig(vocab_size=256), folder / "shards", folder / "tokenizer")
    config = SampleConfig(seq_len=_SEQ_LEN, heldout_fraction=0.05)
    build_samples(config, folder / "shards", folder / "tokenizer", folder / "samples", seed=seed, executor=executor)
    return folder / "samples"


def write_config(file: Path, *, steps: int, seed: int) -> Path:
    """A configuration of so many steps, with dropout, a checkpoint every few seconds."""
    train = {
        "steps": steps, "global_batch_size": 8, "micro_batch_size": 2, "num_workers": WORKERS, "device": "cpu",
        "compute": {"engine": "torch"}, "workers": {"threads_per_worker": 1},
        "logging": {"log_every": 1, "validate_every": 10**6}, "checkpoints": {"every": _CHECKPOINT_EVERY},
        "faults": {"hang_timeout": _HANG_SECONDS, "max_restarts": 5},
    }  # fmt: skip
    model = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    values = {
        "name": "soak", "seed": seed, "corpus": {"inputs": ["documents.jsonl"]}, "samples": {"seq_len": _SEQ_LEN},
        "model": model | {"max_position_embeddings": _SEQ_LEN}, "optimizer": {"schedule": {100: 1.0}}, "train": train,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


def disturb(
    training: Training, faults: dict[str, Strike], minutes: float, draw: random.Random, console: Console
) -> list[Fault]:
    """Strike at random until the time is over, then let the training finish; returns what every fault cost."""
    done: list[Fault] = []
    ends_at = time.monotonic() + 60 * minutes
    training.start()
    kinds = sorted(faults)
    while not training.is_finished and time.monotonic() < ends_at:
        _wait(training, lambda: training.step() > 0)
        pause_ends = time.monotonic() + draw.expovariate(1 / _MEAN_SECONDS_BETWEEN)
        while time.monotonic() < min(pause_ends, ends_at) and not training.is_finished:
            time.sleep(0.05)
        kind = kinds[len(done) % len(kinds)] if len(done) < len(kinds) else draw.choice(kinds)
        step, starts, struck = training.step(), len(training.starts()), time.monotonic()
        if training.is_finished or not faults[kind](training, draw):
            continue
        goes_on = "full disk" in kind  # without another start
        _wait(training, lambda: (goes_on or len(training.starts()) > starts) and training.step() > step)  # noqa: B023
        has_restarted = len(training.starts()) > starts
        if has_restarted or goes_on:
            # Workers that were told to stop went on for a step.
            lost = max(0, step - training.starts()[-1]["step"]) if has_restarted else 0
            fault = Fault(kind, lost, time.monotonic() - struck)
            done.append(fault)
            cost = f"{lost} steps done again, {format_seconds(fault.seconds)} to recover"
            console.print(f"{len(done):3} {kind} at step {step}: {cost}")
    _wait(training, lambda: training.is_finished)
    return done


def _wait(training: Training, condition: Callable[[], bool]) -> None:
    """Until ``condition`` holds or training is over; whenever the command has ended, give it again, as a user would."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition() and not training.is_finished:
        if time.monotonic() > deadline:
            training.end()
            raise SystemExit(f"nothing moves since {_PATIENCE_SECONDS:.0f} s; see {training.paths.root}")
        if training.has_ended():
            training.start()
        time.sleep(0.1)


def same_bits(first: Path, second: Path) -> bool:
    """Whether the last checkpoints of two trainings hold the same weights and momenta."""
    tensors = []
    for root in (first, second):
        name = json.loads((root / "manifest.json").read_text(encoding="utf-8"))["statistics"]["checkpoint"]
        tensors.append(load_file(root / name / "model.safetensors") | load_file(root / name / "optimizer.safetensors"))
    one, other = tensors
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def same_curve(first: Path, second: Path) -> tuple[bool, int]:
    """Return whether every step that both tell has the same loss, rows and tokens and comes once.

    And how many steps the second does not tell, since its disk was full.
    """
    names = ("step", "loss", "rows", "tokens", "lr")
    curves = [
        [[line[name] for name in names] for line in read_metrics(TrainDir(root).metrics) if line["kind"] == "train"]
        for root in (first, second)
    ]
    told = {values[0] for values in curves[1]}
    return [values for values in curves[0] if values[0] in told] == curves[1], len(curves[0]) - len(curves[1])


def tabulate(faults: Iterable[Fault]) -> Table:
    """Number, steps lost and seconds to recover, by kind."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("fault", "number", "steps done again (mean, most)", "seconds to recover (mean, most)"):
        table.add_column(title, justify="left" if title == "fault" else "right")
    faults = list(faults)
    for kind in [*sorted({fault.kind for fault in faults}), "all"]:
        those = [fault for fault in faults if kind in (fault.kind, "all")]
        if not those:
            continue
        lost, seconds = ([getattr(fault, name) for fault in those] for name in ("steps_lost", "seconds"))
        cells = (f"{sum(lost) / len(lost):.0f}, {max(lost)}", f"{sum(seconds) / len(seconds):.1f}, {max(seconds):.1f}")
        table.add_row(kind, str(len(those)), *cells)
    return table


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--launcher", choices=sorted(_FAULTS), default="torchrun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="kept afterwards (default: a temporary folder, deleted)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        workdir = options.workdir or Path(temporary)
        workdir.mkdir(parents=True, exist_ok=True)
        return soak(workdir, options.launcher, options.minutes, options.seed)


def soak(workdir: Path, launcher: str, minutes: float, seed: int) -> int:
    """The whole of it in ``workdir``, which should be empty."""
    console, draw = Console(), random.Random(seed)
    samples = make_samples(workdir, seed)
    config = write_config(workdir / "calibration.yaml", steps=_CALIBRATION_STEPS, seed=seed)
    calibration = Training(config, samples, workdir / "calibration", launcher)
    calibration.run()
    lines = [line for line in read_metrics(calibration.paths.metrics) if line["kind"] == "train"]
    rate = _CALIBRATION_STEPS / lines[-1]["seconds"]
    steps = int(60 * minutes * rate * 0.6)  # the rest of the time is recovering
    often = f"a checkpoint every {_CHECKPOINT_EVERY}"
    console.print(f"{steps:,} steps at {rate:.0f} a second, {often}, {WORKERS} workers of {launcher}")
    config = write_config(workdir / "soak.yaml", steps=steps, seed=seed)
    Training(config, samples, workdir / "undisturbed", launcher).run()
    disks, nameless = mount_disks(workdir), can_rename_host()
    console.print(
        f"disks of its own: {', '.join(map(str, disks.values())) or 'none'}; a host without a name: {nameless}"
    )
    disturbed = Training(config, samples, make_run_folder(workdir, disks), launcher, nameless=nameless)
    try:
        faults = disturb(disturbed, faults_of(launcher, disks), minutes, draw, console)
        console.print(tabulate(faults))
        folders = workdir / "undisturbed", disturbed.paths.root
        bits, (curve, untold) = same_bits(*folders), same_curve(*folders)
    finally:
        disturbed.end()
        unmount(disks.values())
    console.print(f"final parameters and momenta {'equal bit for bit' if bits else 'DIFFER'}")
    console.print(f"loss, rows and tokens of every step {'equal' if curve else 'DIFFER'}; {untold} lines found no room")
    return 0 if bits and curve else 1


if __name__ == "__main__":
    sys.exit(main())
