"""STAGE 2: text shards -> a WordPiece tokenizer in the Hugging Face folder form, trained on them or taken as given.

The shards are in uniformly random order, so their first rows are a uniform sample of the corpus, and the rows after
those that a vocabulary was trained on are text it has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from kexue_train.foundation.artifacts import (
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    file_checksum,
    find_complete,
    open_partial,
    publish,
    read_manifest,
)
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.runtime import parse_size
from kexue_train.foundation.stage import Outlook, Stage, StagePlan
from kexue_train.samples.bert_tokenizer import (
    SPECIAL_TOKENS,
    find_vocabulary,
    read_tokenizer,
    read_vocabulary,
    write_tokenizer,
)
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.missing_pairs import note_documents_without_pairs
from kexue_train.samples.shard_texts import iter_text_blocks, text_bytes
from kexue_train.samples.train_wordpiece import train_wordpiece
from kexue_train.samples.vocabulary_coverage import Coverage, measure_coverage

_MEASURE_BYTES = 1_000_000
_MUCH_UNKNOWN = float(TokenizerConfig.model_fields["max_unknown_rate"].default)
_MEASURED = "unknown_character_rate"
_BYTES_PER_SECOND = 2.3e6
"""WordPiece of 8,192 pieces: 15.3 MB in 6.8 s, most of it words that were new (benchmarks/RESULTS.md, "demo run")."""


def train_tokenizer(
    config: TokenizerConfig, shards: Path, out_dir: Path, *, replace: bool = False, progress: Progress = SILENT
) -> Manifest:
    """Train a vocabulary on the first rows of ``shards``, or take ``config.source``, for ``AutoTokenizer`` to read.

    Raises:
        ConfigError: If the text yields fewer than ``config.vocab_size`` pieces, ``config.source`` does not exist or
            contradicts the other settings, or more than ``config.max_unknown_rate`` of the tokens or of the characters
            would be unknown.
        CorpusError: If the shards hold no text.
        ArtifactError: If ``shards``, ``out_dir`` or ``config.source`` is not what it should be.
    """
    source = find_vocabulary(config.source) if config.source else None
    recipe = _recipe_of(config, source, shards)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    partial = open_partial(out_dir, recipe)
    if source:
        num_bytes, tokenizer = 0, read_vocabulary(source, lowercase=config.lowercase)
        _require_as_given(config, source, tokenizer)
    else:
        num_bytes = _training_bytes(shards, parse_size(config.max_size))
        tokenizer = train_wordpiece(
            shards,
            num_bytes,
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            lowercase=config.lowercase,
            progress=progress,
        )
    coverage = _measure(tokenizer, shards, num_bytes)
    _require_coverage(coverage, config, shards)
    write_tokenizer(tokenizer, partial)
    statistics = {
        "vocab_size": tokenizer.get_vocab_size(),
        "special_token_ids": special_token_ids(tokenizer),
        "training_bytes": num_bytes,
        "bytes_per_token": round(coverage.bytes_per_token, 4),
        "unknown_rate": round(coverage.unknown_rate, 6),
        _MEASURED: round(coverage.unknown_character_rate, 6),
    }
    return publish(partial, out_dir, build_manifest(recipe, describe_files(partial), statistics=statistics))


def note_unknown_text(folder: Path, shards: Path, progress: Progress) -> None:
    """Warn if the tokenizer in ``folder``, made for other text, leaves much of ``shards`` unknown.

    Raises:
        ArtifactError: If either is damaged.
    """
    made = read_manifest(folder)
    if made.parents.get("text_shards") == read_manifest(shards).content_digest and _MEASURED in made.statistics:
        return
    coverage = measure_coverage(load_tokenizer(folder), iter_text_blocks(shards, _MEASURE_BYTES))
    if max(coverage.unknown_rate, coverage.unknown_character_rate) > _MUCH_UNKNOWN:
        progress.note(
            f"warning: {coverage.describe_rates()} of {shards} are [UNK] to the tokenizer {folder}; "
            f"{coverage.describe_causes()}; make a tokenizer for this text with 'kexue tokenizer'"
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load ``folder/tokenizer.json``.

    Raises:
        ArtifactError: If it is missing, damaged or not of BERT's form, lacks a special token, or [PAD] is not 0.
    """
    return read_tokenizer(folder / "tokenizer.json", remedy="make the tokenizer again with 'kexue tokenizer'")


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return ids of pad, unk, cls, sep and mask; the tokenizer must have them (``load_tokenizer`` checks)."""
    vocab = tokenizer.get_vocab()
    return {name: vocab[token] for name, token in SPECIAL_TOKENS.items()}


def describe_coverage(statistics: Mapping[str, Any]) -> str:
    """Return, from the statistics of a tokenizer's manifest, how much text a token holds and what is unknown."""
    unknown = f"{statistics['unknown_rate']:.2%} of the tokens"
    if (rate := statistics.get(_MEASURED)) is not None:  # older manifests lack it
        unknown += f" and {rate:.2%} of the characters"
    return f"{statistics['bytes_per_token']:.2f} bytes per token, {unknown} unknown"


def _recipe_of(config: TokenizerConfig, source: Path | None, shards: Path) -> Recipe:
    """Return what determines the result; of a given vocabulary its contents, not where they lie."""
    settings: dict[str, Any] = config.model_dump(mode="json")
    settings["source"] = file_checksum(source) if source else None
    parents = {"text_shards": read_manifest(shards).content_digest}
    return Recipe(kind="tokenizer", settings=settings, parents=parents)


def _training_bytes(shards: Path, limit: int) -> int:
    """Return how much text to train on: at most ``limit``, and not quite all: the rest measures the result."""
    total = text_bytes(shards, 2 * limit)
    if not any(text.strip() for text in iter_text_blocks(shards, 1 << 62, block_bytes=1)):
        raise CorpusError(f"{shards}: the text shards hold no text; check the inputs of the corpus")
    return max(1, min(limit, total - total // 100))


def _measure(tokenizer: Tokenizer, shards: Path, training_bytes: int) -> Coverage:
    """Measure on text after the training text, or on the training text where there is no other."""
    coverage = measure_coverage(tokenizer, iter_text_blocks(shards, _MEASURE_BYTES, skip_bytes=training_bytes))
    return coverage if coverage.tokens else measure_coverage(tokenizer, iter_text_blocks(shards, _MEASURE_BYTES))


def _require_as_given(config: TokenizerConfig, source: Path, tokenizer: Tokenizer) -> None:
    size, lowercase = tokenizer.get_vocab_size(), tokenizer.normalizer.lowercase
    if config.vocab_size not in (size, TokenizerConfig.model_fields["vocab_size"].default):
        raise ConfigError(
            f"tokenizer.vocab_size={config.vocab_size} has no effect beside tokenizer.source: {source} has {size} "
            "pieces and is taken as it is; remove it"
        )
    if lowercase and not config.lowercase:
        raise ConfigError(
            f"tokenizer.lowercase=false has no effect beside tokenizer.source: {source} says itself that text is "
            "lower-cased; remove it, or take another vocabulary"
        )


def _require_coverage(coverage: Coverage, config: TokenizerConfig, shards: Path) -> None:
    if max(coverage.unknown_rate, coverage.unknown_character_rate) <= config.max_unknown_rate:
        return
    remedies = []
    if coverage.missing_pieces:
        remedies += [] if config.source else ["set a larger tokenizer.vocab_size"]
        remedies.append("take another vocabulary with tokenizer.source (--from)")
    if coverage.long_scripts:
        remedies.append(
            "put spaces between the words of a script that has none (with a segmenter of its language) before the "
            "shuffle, or drop documents full of long codes with shuffle.filters.max_unbroken_share"
        )
    raise ConfigError(
        f"tokenizer.max_unknown_rate={config.max_unknown_rate:g}: {coverage.describe_rates()} of {shards} would be "
        f"[UNK]; {coverage.describe_causes()}; {', '.join(remedies)}, or allow more with tokenizer.max_unknown_rate"
    )


class _Config(Protocol):
    @property
    def tokenizer(self) -> TokenizerConfig: ...
    @property
    def samples(self) -> SampleConfig: ...


def _recipe(config: _Config, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    source = find_vocabulary(config.tokenizer.source) if config.tokenizer.source else None
    return {out: _recipe_of(config.tokenizer, source, inputs[0])}


def _make(config: _Config, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    if config.samples.nsp:  # said before the vocabulary is trained, not only once the samples are made
        note_documents_without_pairs(inputs[0], progress)
    train_tokenizer(config.tokenizer, inputs[0], out, replace=True, progress=progress)


def _describe(_config: _Config, out: Path) -> str:
    found = read_manifest(out).statistics
    return f"{found['vocab_size']:,} pieces, {describe_coverage(found)}"


def _plan(config: _Config, outlook: Outlook) -> StagePlan:
    if config.tokenizer.source:
        return StagePlan(seconds=1.0, basis="taken as it is")
    read = min(outlook.text_bytes, parse_size(config.tokenizer.max_size))
    basis = "demo run: 2.3 MB/s; less time per byte of a large corpus, whose words come again"
    return StagePlan(disk_bytes=250_000, seconds=read / _BYTES_PER_SECOND, basis=basis)


TOKENIZER = Stage(
    name="tokenizer",
    folder="tokenizer",
    title="Tokenizer",
    reads=("shuffle",),
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan,
)
"""The vocabulary, trained on the shards or taken as given."""
