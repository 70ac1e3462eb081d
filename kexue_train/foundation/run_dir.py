"""The run folder: the only file that spells a path inside a run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kexue_train.foundation.artifacts import refuse_dangling_link, write_atomic
from kexue_train.foundation.errors import ArtifactError, ConfigError, KexueError, ResourceError
from kexue_train.foundation.operating_system import lock_file
from kexue_train.foundation.traces import Surroundings

_COPY_OF_A_JOB = "/runtime_resources/working_dir_files/"
_CONFIG_HEADER = "# The resolved configuration, by kexue_train; never written over once it is edited. Digest:"


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
    def supervised(self) -> Path:
        """The same of the supervised stage."""
        return self.root / "supervised"

    @property
    def evaluate(self) -> Path:
        """Evaluation results."""
        return self.root / "evaluate"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report"

    @property
    def published(self) -> Path:
        """The folder for others: model, card, report and provenance."""
        return self.root / "published"

    @property
    def generations(self) -> Path:
        """Run folders ``2``, ``3``... in which training went on with new documents."""
        return self.root / "generations"

    def evaluation_of(self, model: Path) -> Path:
        """Return the path of the evaluation results of another model, or of a checkpoint."""
        return self.root / "evaluations" / model.name

    @contextmanager
    def lock(self, option: str = "--run-dir") -> Iterator[None]:
        """Hold the run folder alone; the lock ends with the process, however it ends.

        If the work is refused before it has left more here than lock, owner and configuration, the folder is as before.

        Args:
            option: What the command calls the folder, for messages.

        Raises:
            ConfigError: If the folder would go with a Ray job.
            ResourceError: If another process holds it, or the folder cannot be written.
        """
        if _COPY_OF_A_JOB in self.root.absolute().as_posix():
            raise ConfigError(
                f"{self.root}: the run folder would lie in the copy of the working directory that Ray makes for a job "
                f"and deletes after it; give one on storage that all nodes mount: {option} /shared/runs/NAME"
            )
        before, descriptor = _Before.of(self), -1
        try:
            descriptor = self._open_lock(option)
            self._take(descriptor, option)
            yield
        except KexueError as error:
            if error.is_refusal:
                before.put_back(self)
            raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _open_lock(self, option: str) -> int:
        refuse_dangling_link(self.root, option)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            return os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ResourceError(
                f"{self.root}: the run folder cannot be written ({error.strerror}); give another with {option}"
            ) from None

    def _take(self, descriptor: int, option: str) -> None:
        try:
            lock_file(descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode() or "unknown"
            raise ResourceError(
                f"{self.root}: process {holder} is working in this run folder; "
                f"wait for it, stop it, or give another {option}"
            ) from None
        except OSError as error:
            raise ResourceError(
                f"{self.root}: the run folder cannot be locked ({error.strerror}); "
                f"give one with {option} on a file system with locks and free space"
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
        if os.path.lexists(self.config) and not self._may_rewrite_config():
            raise ArtifactError(
                f"{self.config}: was written or edited by somebody else, and the run writes its resolved configuration "
                "under this name; move the file away, and give it with --config from there"
            )
        write_atomic(owner, name)
        self.write_config(resolved_config)

    def write_config(self, resolved_config: str) -> bool:
        """Write the resolved configuration unless a file lies there that somebody else has written or edited.

        Return whether it lies there now.
        """
        if os.path.lexists(self.config) and not self._may_rewrite_config():
            return False
        text = f"{_CONFIG_HEADER} {_digest(resolved_config)}\n{resolved_config}"
        if not self.config.exists() or self.config.read_text(encoding="utf-8") != text:
            write_atomic(self.config, text)
        return True

    def _may_rewrite_config(self) -> bool:
        """Whether the file of this name is ours as we have left it."""
        if self.config.is_symlink() or not self.config.is_file():
            return False
        try:
            text = self.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        header, _, rest = text.partition("\n")
        if header.startswith(_CONFIG_HEADER):
            return header == f"{_CONFIG_HEADER} {_digest(rest)}"
        return (self.root / ".run").exists() and _is_dumped(text)  # of an earlier release


class _Before(NamedTuple):
    """What a run folder was like before a command."""

    entries: frozenset[str]
    files: dict[Path, tuple[bytes, os.stat_result]]
    """Those that every command writes."""
    around: Surroundings

    @classmethod
    def of(cls, run: RunDir) -> _Before:
        if not run.root.is_dir():
            return cls(frozenset(), {}, Surroundings.of(run.root))
        files = {}
        for path in _written_at_once(run):
            with suppress(OSError):
                files[path] = (path.read_bytes(), path.stat())
        return cls(_entries(run), files, Surroundings.of(run.root))

    def put_back(self, run: RunDir) -> None:
        """Make the folder what it was, unless it holds work since."""
        if not run.root.is_dir() or _entries(run) != self.entries:
            return
        with suppress(OSError):  # it is the refusal that counts
            for path in _written_at_once(run):
                if path not in self.files:
                    path.unlink(missing_ok=True)
                elif path.read_bytes() != self.files[path][0]:
                    path.write_bytes(self.files[path][0])
            for path, (_, status) in self.files.items():
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.around.put_back()


def _written_at_once(run: RunDir) -> tuple[Path, ...]:
    return run.root / ".lock", run.root / ".run", run.config


def _entries(run: RunDir) -> frozenset[str]:
    own = {path.name for path in _written_at_once(run)}
    return frozenset(path.name for path in run.root.iterdir() if path.name not in own)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_dumped(text: str) -> bool:
    """Whether a program has written this YAML: no comments, no other layout."""
    try:
        return text == yaml.safe_dump(yaml.safe_load(text), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError:
        return False
