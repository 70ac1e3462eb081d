"""The run folder: the only file that spells a path inside a run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ArtifactError, ConfigError, ResourceError

_COPY_OF_A_JOB = "/runtime_resources/working_dir_files/"


@dataclass(frozen=True)
class RunDir:
    """Paths of one run below ``root``."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, written before work starts."""
        return self.root / "config.yaml"

    @property
    def stages(self) -> Path:
        """One JSON line per finished stage: name, start, seconds, rows, bytes."""
        return self.root / "stages.jsonl"

    @property
    def corpus(self) -> Path:
        """The corpus made from installed documentation (only if the configuration asks for it)."""
        return self.root / "corpus"

    @property
    def shards(self) -> Path:
        """Text shards."""
        return self.root / "shards"

    @property
    def tokenizer(self) -> Path:
        """Tokenizer."""
        return self.root / "tokenizer"

    @property
    def samples(self) -> Path:
        """Sample shards, rows of ``samples.seq_len``."""
        return self.root / "samples"

    @property
    def pretrain(self) -> Path:
        """Checkpoints, metrics and logs of training."""
        return self.root / "pretrain"

    @property
    def hf(self) -> Path:
        """The exported Hugging Face model."""
        return self.root / "hf"

    @property
    def evaluate(self) -> Path:
        """Evaluation results."""
        return self.root / "evaluate"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report"

    @property
    def generations(self) -> Path:
        """Run folders ``2``, ``3``... in which training went on with new documents."""
        return self.root / "generations"

    def evaluation_of(self, model: Path) -> Path:
        """Return the path of the evaluation results of another model, or of a checkpoint."""
        return self.root / "evaluations" / model.name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder alone; the lock ends with the process, however it ends.

        Raises:
            ConfigError: If the folder would go with a Ray job.
            ResourceError: If another process holds it, or the folder cannot be written.
        """
        if _COPY_OF_A_JOB in self.root.absolute().as_posix():
            raise ConfigError(
                f"{self.root}: the run folder would lie in the copy of the working directory that Ray makes for a job "
                "and deletes after it; give one on storage that all nodes mount: --run-dir /shared/runs/NAME"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ResourceError(
                f"{self.root}: the run folder cannot be written ({error.strerror}); give another with --run-dir"
            ) from None
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode() or "unknown"
            raise ResourceError(
                f"{self.root}: process {holder} is working in this run folder; "
                "wait for it, stop it, or give another --run-dir"
            ) from None
        except OSError as error:
            raise ResourceError(
                f"{self.root}: the run folder cannot be locked ({error.strerror}); "
                "give one with --run-dir on a file system with locks and free space"
            ) from None

    def record_stage(self, *, stage: str, **facts: Any) -> None:
        """Append one finished stage to ``stages``."""
        line = json.dumps({"stage": stage} | facts, ensure_ascii=False)
        with self.stages.open("a+b") as file:
            # A kill in an earlier append may have left a torn line: never write behind it.
            file.seek(-1 if file.tell() else 0, os.SEEK_END)
            torn = file.read(1) not in (b"", b"\n")
            file.write((("\n" if torn else "") + line + "\n").encode())

    def empty(self) -> None:
        """Delete everything in the run folder, so that the run starts over; a folder that is not there is fine.

        Raises:
            ArtifactError: If the folder is not a run folder.
        """
        if not self.root.exists() or not any(p for p in self.root.iterdir() if p.name != ".lock"):
            return
        if not (self.root / ".run").exists():
            raise ArtifactError(
                f"{self.root}: not a run folder of kexue_train, so --fresh does not empty it; empty it yourself"
            )
        for path in self.root.iterdir():
            if path.name not in (".lock", ".run"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.root / ".run").unlink()

    def claim(self, name: str, resolved_config: str) -> None:
        """Write the resolved configuration of the run called ``name``.

        Raises:
            ArtifactError: If the folder belongs to a run of another name, or holds other things.
        """
        owner = self.root / ".run"
        if owner.exists():
            found = owner.read_text(encoding="utf-8").strip()
            if found != name:
                raise ArtifactError(
                    f"{self.root}: this run folder belongs to the run '{found}', the configuration is '{name}'; "
                    "give another folder with --run-dir, or start over with --fresh"
                )
        elif foreign := sorted(p.name for p in self.root.iterdir() if not p.name.startswith(".")):
            raise ArtifactError(
                f"{self.root}: not a run folder of kexue_train, yet it holds {len(foreign)} files or folders such as "
                f"{foreign[0]!r}; give an empty or new folder with --run-dir"
            )
        write_atomic(owner, name)
        write_atomic(self.config, resolved_config)
