"""Sentences, or the moments that other workers left -> an encoder whose vectors are whitened."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.evaluate.sentence_vectors.sentence_transformers_folder import (
    write_sentence_transformers_folder,
)
from kexue_train.downstream.evaluate.sentence_vectors.whitening import WHITENING_NAME, Moments, Whitening
from kexue_train.downstream.load_model import LoadedHead, load_encoder
from kexue_train.downstream.settings import SENTENCE_LENGTH, Pooling
from kexue_train.foundation.artifacts import (
    InputFile,
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    digest_of,
    file_checksum,
    find_complete,
    open_partial,
    publish,
    read_manifest,
)
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

MOMENTS_NAME = "moments.safetensors"
KIND = "whitened_encoder"
_SENTENCES_AT_ONCE = 8192


def fit_whitening(
    model_dir: Path,
    inputs: Sequence[Path],
    out_dir: Path,
    *,
    pooling: Pooling = "mean",
    dimensions: int | None = None,
    max_length: int = SENTENCE_LENGTH,
    progress: Progress = SILENT,
) -> Manifest:
    """Whiten the vectors of ``model_dir`` by the sentences of ``inputs``, some thousand at a time.

    Args:
        model_dir: Any model that ``AutoModel`` opens, with its tokenizer.
        inputs: Text files (.gz too) with a sentence per line; a folder that this function made counts as the
            sentences it was made from, so workers share the work by files.
        out_dir: Receives the encoder with its whitening, for sentence-transformers, and the moments.
        pooling: How states become a vector.
        dimensions: How many to keep; None: all that vary.
        max_length: Tokens of a sentence, never more than the model was made for.
        progress: Receives sentences done.

    Raises:
        EvaluationError: If an input is missing, or of another model or pooling, or the sentences vary too little.
        ArtifactError: If ``out_dir`` holds other work.
    """
    files = [path for path in inputs if not path.is_dir()]
    folders = [path for path in inputs if path.is_dir()]
    parents = {"model": _digest_of_model(model_dir)} | {f"part {i}": _content(path) for i, path in enumerate(folders)}
    settings = {"pooling": pooling, "dimensions": dimensions, "max_length": max_length}
    described = [_describe(path) for path in files]
    stamps = [(entry.uri, entry.bytes, entry.modified_ns) for entry in described]
    recipe = Recipe(kind=KIND, settings=settings, parents=parents, inputs=stamps)
    if manifest := find_complete(out_dir, recipe, progress=progress):
        return manifest
    parts = [_moments_of_folder(path, recipe) for path in folders]
    loaded = load_encoder(model_dir)
    max_length = loaded.fitting(max_length)
    moments = Moments.merged(itertools.chain(parts, _moments_of_files(files, loaded, pooling, max_length, progress)))
    whitening = Whitening.fit(moments, dimensions)
    partial = open_partial(out_dir, recipe, progress)
    write_sentence_transformers_folder(
        loaded, partial, out_dir.name, pooling=pooling, max_length=max_length, whitening=whitening
    )
    whitening.save(partial / WHITENING_NAME, pooling=pooling)
    moments.save(partial / MOMENTS_NAME)
    facts = {"sentences": moments.count, "dimensions": whitening.transform.shape[1]}
    manifest = build_manifest(recipe, describe_files(partial), inputs=described, statistics=facts)
    return publish(partial, out_dir, manifest)


def _moments_of_files(
    files: Sequence[Path], loaded: LoadedHead, pooling: Pooling, max_length: int, progress: Progress
) -> Iterator[Moments]:
    lines = itertools.chain.from_iterable(map(_lines, files))
    for done in itertools.count(1):
        texts = list(itertools.islice(lines, _SENTENCES_AT_ONCE))
        if not texts:
            return
        vectors = encode_sentences(loaded, Sentences.read(loaded.tokenizer, texts, max_length), [pooling])
        yield Moments.of(vectors[pooling])
        progress.update((done - 1) * _SENTENCES_AT_ONCE + len(texts), None, "sentences")


def _lines(path: Path) -> Iterator[str]:
    """Return the lines of a text file that are not blank."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from (line.strip() for line in file if line.strip())
    except (OSError, EOFError, ValueError) as error:  # ValueError: what is not UTF-8
        raise EvaluationError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _moments_of_folder(folder: Path, wanted: Recipe) -> Moments:
    found = read_manifest(folder)
    different = [key for key in ("pooling", "max_length") if found.settings.get(key) != wanted.settings[key]]
    if found.kind != KIND or different or found.parents.get("model") != wanted.parents["model"]:
        what = f"another {different[0]}" if different else "another model"
        raise EvaluationError(f"{folder}: was not made by 'kexue finetune whitening' of this model, but with {what}")
    return Moments.load(folder / MOMENTS_NAME)


def _content(folder: Path) -> str:
    return read_manifest(folder).content_digest


def _describe(path: Path) -> InputFile:
    try:
        stat = path.stat()
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}; give text files with a sentence per line") from None
    return InputFile(uri=str(path), bytes=stat.st_size, modified_ns=stat.st_mtime_ns)


def _digest_of_model(folder: Path) -> str:
    """Return a digest of the bytes of the model's files."""
    return digest_of({path.name: file_checksum(path) for path in sorted(folder.glob("*")) if path.is_file()})
