"""What stages hand over: a folder that explains itself in ``manifest.json``, published whole by one rename.

A *recipe* is everything that determines an artifact: its kind, settings, parents and inputs. A stage

1. asks ``find_complete`` whether the folder already holds what the recipe makes (then it is done),
2. works in ``open_partial`` — a hidden folder beside the target that survives a kill, so that work resumes,
3. calls ``publish``, after which the target is whole. Nothing half-done is ever visible under the target's name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from kexue_train import __version__
from kexue_train.foundation.credentials import without_credentials
from kexue_train.foundation.errors import ArtifactError, ResourceError, StaleArtifactError
from kexue_train.foundation.progress import SILENT, Progress

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
CARD_NAME = "README.md"
"""A text for people at the top of an artifact, which may change: no file of the manifest."""
SCHEMA_VERSION = 1
_RECIPE_NAME = "recipe.json"
_MODE_OF_TEMPORARY = 0o600


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class FileEntry(_Frozen):
    """One file of an artifact, by its path relative to the folder."""

    bytes: int
    checksum: str
    """``xxh3_128:`` and 32 hexadecimal digits of the file's bytes."""
    rows: int | None = None
    rows_checksum: str | None = None
    """Checksum of the rows of this file, in the form of ``RowsChecksum``."""


class InputFile(_Frozen):
    """One file the artifact was made from."""

    uri: str
    bytes: int
    modified_ns: int = 0
    rows: int = 0
    """Records accepted from this file."""
    rows_checksum: str | None = None
    """Checksum of those records, in the form of ``RowsChecksum``."""
    blank: int = 0
    """Empty records, which are skipped."""
    rejected: dict[str, int] = {}
    """Records refused, by reason."""
    dropped: dict[str, int] = {}
    """Records that a filter dropped, by reason."""


class RowsChecksum(_Frozen):
    """Order-independent checksum of rows: the sum of their xxh3_128 hashes modulo 2¹²⁸, as 32 hexadecimal digits."""

    input: str
    dropped: str = "0" * 32
    output: str


class Recipe(_Frozen):
    """Everything that determines an artifact; equal recipes make equal artifacts."""

    kind: str
    settings: dict[str, Any]
    parents: dict[str, str] = {}
    """Name of each parent artifact -> its ``content_digest``."""
    inputs: list[tuple[str, int, int]] = []
    """(uri, bytes, modification time in ns) of each input file outside any artifact."""

    @field_validator("settings")
    @classmethod
    def _as_in_json(cls, settings: dict[str, Any]) -> dict[str, Any]:
        # A manifest read back holds lists where a configuration holds tuples; the two must compare equal.
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    @property
    def settings_digest(self) -> str:
        """Digest of kind and settings alone."""
        return digest_of({"kind": self.kind, "settings": self.settings})

    @property
    def digest(self) -> str:
        """Digest of the whole recipe."""
        return digest_of(self.model_dump(mode="json"))

    def difference(self, other: Recipe) -> str | None:
        """Name the first thing in which ``self`` (wanted) differs from ``other`` (found); None if nothing does.

        Credentials in addresses of inputs, which earlier releases recorded, make no difference.
        """
        if self.kind != other.kind:
            return f"it holds {other.kind}, not {self.kind}"
        wanted, found = _flatten(self.settings), _flatten(other.settings)
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                return f"{key} changed from {found.get(key)!r} to {wanted.get(key)!r}"
        for name in sorted(self.parents.keys() | other.parents.keys()):
            if self.parents.get(name) != other.parents.get(name):
                return f"its input '{name}' was rebuilt"
        wanted_inputs, found_inputs = _without_credentials(self.inputs), _without_credentials(other.inputs)
        if changed := sorted({entry[0] for entry in set(wanted_inputs) ^ set(found_inputs)}):
            more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
            return f"input file {changed[0]} was added, removed or changed{more}"
        return None if wanted_inputs == found_inputs else "the order or number of its input files changed"


class Manifest(_Frozen):
    """The contents of ``manifest.json``; deterministic (no times, no host names), so equal work gives equal bytes."""

    schema_version: int = SCHEMA_VERSION
    kind: str
    """What it is: ``corpus``, ``text_shards``, ``tokenizer``, ``sample_shards``, ``checkpoint``, ``hf_model``..."""
    tool_version: str = __version__
    settings: dict[str, Any]
    settings_digest: str
    parents: dict[str, str] = {}
    seed: int | None = None
    rows: int = 0
    bytes: int = 0
    """Sum of the sizes of ``files``."""
    files: dict[str, FileEntry]
    rows_checksum: RowsChecksum | None = None
    inputs: list[InputFile] = []
    statistics: dict[str, Any] = {}

    @property
    def rejected(self) -> Counter[str]:
        """Records of the inputs that could not be used, by reason."""
        return sum((Counter(entry.rejected) for entry in self.inputs), Counter())

    def describe_rejected(self) -> str:
        """Return such as ``3 records rejected (2 not UTF-8, 1 not valid JSON)``; empty if there are none."""
        counts = self.rejected
        if not counts:
            return ""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common())
        return f"{counts.total():,} record{'s' if counts.total() > 1 else ''} rejected ({reasons})"

    @property
    def content_digest(self) -> str:
        """What a child artifact depends on: kind, settings and the bytes of the files, not the names of the inputs."""
        files = {name: entry.checksum for name, entry in self.files.items()}
        return digest_of({"kind": self.kind, "settings": self.settings, "files": files})

    @property
    def recipe(self) -> Recipe:
        """The recipe this artifact was made by."""
        inputs = [(entry.uri, entry.bytes, entry.modified_ns) for entry in self.inputs]
        return Recipe(kind=self.kind, settings=self.settings, parents=self.parents, inputs=inputs)


def find_complete(
    out_dir: Path, recipe: Recipe, *, replace: bool = False, progress: Progress = SILENT
) -> Manifest | None:
    """Return the manifest of ``out_dir`` if it already holds what ``recipe`` makes, None if it has to be made.

    Args:
        out_dir: The artifact's folder; may be absent.
        recipe: What the folder should hold.
        replace: Rebuild a stale or damaged artifact (the reason goes to ``progress.note``) instead of refusing it.
        progress: Receives the reason.

    Raises:
        StaleArtifactError: If the folder holds another recipe's work and ``replace`` is false.
        ArtifactError: If the folder holds something that is not an artifact, or (without ``replace``) a damaged one.
    """
    refuse_dangling_link(out_dir, "the output folder")
    _finish_interrupted_publish(out_dir, recipe)
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    if not out_dir.is_dir() or not (out_dir / MANIFEST_NAME).exists():
        raise ArtifactError(
            f"{out_dir}: exists but holds no {MANIFEST_NAME}, so it was not made by kexue_train and is left alone; "
            "choose another output folder, or move it away"
        )
    try:
        manifest = read_manifest(out_dir)
        check_files(out_dir, manifest)
    except ArtifactError as error:
        if not replace:
            raise
        progress.note(f"rebuilding: the artifact is damaged: {error}")
        return None
    reason = recipe.difference(manifest.recipe)
    if reason is None:
        return manifest
    if replace:
        progress.note(f"rebuilding: {reason}")
        return None
    raise StaleArtifactError(
        f"{out_dir}: was made from other inputs or settings: {reason}. "
        "Choose another output folder, or delete this one to rebuild it",
        reason,
    )


def open_partial(out_dir: Path, recipe: Recipe, progress: Progress = SILENT, *, method: str = "") -> Path:
    """Return the hidden folder beside ``out_dir`` where its next version is made.

    What a killed run left there is kept, except files it was in the middle of writing; all of it goes if the recipe or
    the method changed.

    Args:
        out_dir: The artifact's folder.
        recipe: What is made there.
        progress: Receives the reason if the work starts over.
        method: Another text for each version of the code that makes other bytes of the same recipe, so that no artifact
            mixes two of them. A finished artifact is kept, whatever made it.

    Raises:
        ResourceError: If the folder cannot be written.
    """
    partial = partial_dir(out_dir)
    marker = partial / _RECIPE_NAME
    wanted = f"{recipe.digest} {method}".rstrip()
    try:
        if partial.exists() and (found := marker.read_text(encoding="utf-8") if marker.exists() else "") != wanted:
            is_method = found.startswith(recipe.digest)
            reason = "was of another version" if is_method else "had other inputs or settings"
            progress.note(f"starting over: the interrupted run {reason}")
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for torn in [*partial.rglob(".*.tmp")]:
            torn.unlink(missing_ok=True)
        write_atomic(marker, wanted)
    except OSError as error:
        raise ResourceError(
            f"{out_dir}: cannot be written ({error.strerror}: {error.filename}); "
            "check the permissions and the free space there, or choose another output folder"
        ) from None
    return partial


def refuse_dangling_link(path: Path, option: str) -> None:
    """Refuse to write to a link that leads nowhere: whether its target is wanted is not known.

    Raises:
        ResourceError: With the link and where it leads; ``option`` is what the user calls the path.
    """
    if path.is_symlink() and not path.exists():
        raise ResourceError(
            f"{path}: is a link to {path.readlink()}, which does not exist; make that folder, remove the link, or "
            f"choose another path for {option}"
        )


def partial_dir(out_dir: Path) -> Path:
    """Return where ``out_dir`` is being made: ``.NAME.partial`` in the same folder."""
    return out_dir.parent / f".{out_dir.name}.partial"


def holds_only_recipe(partial: Path) -> bool:
    """Return whether nothing has been made in ``partial``, or it is not there."""
    return not partial.is_dir() or all(path.name == _RECIPE_NAME for path in partial.iterdir())


def publish(partial: Path, out_dir: Path, manifest: Manifest) -> Manifest:
    """Write the manifest into ``partial`` and put that folder in the place of ``out_dir``, durably and at once."""
    write_atomic(partial / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    let_umask_decide(partial)
    _swap_in(partial, out_dir)
    return manifest


def let_umask_decide(folder: Path) -> None:
    """Give files in ``folder`` that libraries made as temporary ones the mode of any other new file.

    ``safetensors`` and ``tempfile`` make files that nobody but their owner may read, whatever the umask allows.
    """
    usual = _mode_of_new_file(folder)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) == _MODE_OF_TEMPORARY:
            path.chmod(usual)


def _mode_of_new_file(folder: Path) -> int:
    """Ask the file system, since asking for the umask would change it for all threads."""
    probe = aside_name(folder / "mode")
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def describe_files(folder: Path, rows: Mapping[str, int] | None = None) -> dict[str, FileEntry]:
    """Describe every file below ``folder`` but manifest and card; ``rows`` holds row counts by relative path."""
    own = (folder / MANIFEST_NAME, folder / _RECIPE_NAME, folder / CARD_NAME)
    entries = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p not in own):
        name = path.relative_to(folder).as_posix()
        entries[name] = FileEntry(bytes=path.stat().st_size, checksum=file_checksum(path), rows=(rows or {}).get(name))
    return entries


def build_manifest(recipe: Recipe, files: dict[str, FileEntry], **fields: Any) -> Manifest:
    """Return a manifest for ``files`` made by ``recipe``; ``fields`` are further fields of ``Manifest``."""
    return Manifest(
        kind=recipe.kind,
        settings=recipe.settings,
        settings_digest=recipe.settings_digest,
        parents=recipe.parents,
        files=files,
        bytes=sum(entry.bytes for entry in files.values()),
        **fields,
    )


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/manifest.json``.

    Raises:
        ArtifactError: If it is missing, damaged, or of a schema this version does not read.
    """
    path = folder / MANIFEST_NAME
    try:
        return read_manifest_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: no {MANIFEST_NAME}; give a folder that a kexue stage made, or run that stage first"
        ) from None
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        first = str(error).partition("\n")[0]
        raise ArtifactError(
            f"{path}: the manifest is damaged ({first}); delete the folder {folder} and run its stage again"
        ) from None


def read_manifest_file(path: Path) -> Manifest:
    """Read a manifest of any name.

    Raises:
        ArtifactError: If it is of a schema this version does not read.
        OSError: If the file cannot be read.
        ValueError, AttributeError: If it is damaged.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema version {raw.get('schema_version')!r}, this version reads {SCHEMA_VERSION}; "
            "use the kexue_train version that made it, or rebuild the artifact"
        )
    return Manifest.model_validate(raw)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check quickly that every file of the manifest is there with its size (``verify_artifact`` also reads them).

    Raises:
        ArtifactError: Names the first file that is missing or of another size.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes, the manifest says {entry.bytes}"
            raise ArtifactError(f"{path}: {found}; delete the folder {folder} and run its stage again")


def verify_artifact(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Re-read every file and compare its checksum with the manifest.

    Raises:
        ArtifactError: Names the first file that differs, with both checksums, or the manifest if it contradicts itself.
    """
    manifest = read_manifest(folder)
    whole = sum(entry.bytes for entry in manifest.files.values())
    if manifest.settings_digest != manifest.recipe.settings_digest or manifest.bytes != whole:
        raise ArtifactError(
            f"{folder / MANIFEST_NAME}: the settings or sizes in it do not fit its digest and sum, so it was changed "
            f"or damaged; delete the folder {folder} and run its stage again"
        )
    check_files(folder, manifest)
    done = 0
    for name, entry in manifest.files.items():
        found = file_checksum(folder / name)
        if found != entry.checksum:
            raise ArtifactError(
                f"{folder / name}: checksum {found}, the manifest says {entry.checksum}: the file was changed or "
                f"damaged on disk; delete the folder {folder} and run its stage again"
            )
        done += entry.bytes
        progress.update(done, manifest.bytes, "bytes")
    return manifest


def file_checksum(path: Path) -> str:
    """Return ``xxh3_128:`` and the hash of the file's bytes, read in 1 MiB pieces."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"xxh3_128:{digest.hexdigest()}"


def digest_of(value: Any) -> str:
    """Return ``sha256:`` and the hash of the value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new contents, never a part, even after a crash."""
    aside = aside_name(path)
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_if_possible(path: Path, text: str) -> None:
    """Write a small file that nothing depends on, as ``write_atomic`` does; a disk that is full is said in the log."""
    try:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s: cannot be written (%s)", path, error)


def aside_name(path: Path) -> Path:
    """Return a name of its own beside ``path`` to write under before renaming: ``.NAME.1a2b3c4d.tmp``.

    Unlike ``NAME.tmp`` it is never shared with a dying worker of a killed run. ``open_partial`` clears leftovers.
    """
    return path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:8]}.tmp")


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap_in(partial: Path, out_dir: Path) -> None:
    (partial / _RECIPE_NAME).unlink(missing_ok=True)
    old = _old_dir(out_dir)
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    partial.rename(out_dir)
    fsync_folder(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old_dir(out_dir: Path) -> Path:
    return out_dir.parent / f".{out_dir.name}.old"


def _finish_interrupted_publish(out_dir: Path, recipe: Recipe) -> None:
    """Publish a whole partial folder, which a kill between writing the manifest and the renames leaves."""
    if out_dir.exists():  # a kill after the renames leaves the version before
        shutil.rmtree(_old_dir(out_dir), ignore_errors=True)
    partial = partial_dir(out_dir)
    if not (partial / MANIFEST_NAME).exists():
        return
    try:
        manifest = read_manifest(partial)
        check_files(partial, manifest)
    except ArtifactError:
        return
    if recipe.difference(manifest.recipe) is None:
        _swap_in(partial, out_dir)


def _without_credentials(inputs: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    return [(without_credentials(uri), size, modified_ns) for uri, size, modified_ns in inputs]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = without_credentials(name)
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
