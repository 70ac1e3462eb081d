"""STAGE 2: text shards -> a WordPiece tokenizer in the Hugging Face folder form.

The shards are in uniformly random order, so their first rows are a uniform sample of the corpus. The vocabulary is a
pure function of them: the trainer of ``tokenizers`` numbers pieces in hash order, so everything it would number that
way (characters, "##" characters) is counted and handed to it here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kexue_train.arrow_shards import read_shard, shard_paths
from kexue_train.artifacts import (
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
    read_manifest,
    write_atomic,
)
from kexue_train.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.progress import SILENT, Progress
from kexue_train.runtime import format_size, parse_size
from kexue_train.samples.alphabet import count_characters
from kexue_train.samples.config import TokenizerConfig

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_PREFIX = "##"
_MEASURE_BYTES = 1_000_000


def train_tokenizer(
    config: TokenizerConfig, shards: Path, out_dir: Path, *, replace: bool = False, progress: Progress = SILENT
) -> Manifest:
    """Train a WordPiece vocabulary on the first rows of ``shards`` and write ``out_dir`` for ``AutoTokenizer``.

    Raises:
        ConfigError: If the text yields fewer than ``config.vocab_size`` pieces.
        CorpusError: If the shards hold no text.
        ArtifactError: If ``shards`` or ``out_dir`` is not what it should be.
    """
    parents = {"text_shards": read_manifest(shards).content_digest}
    recipe = Recipe(kind="tokenizer", settings=config.model_dump(mode="json"), parents=parents)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    partial = open_partial(out_dir, recipe)
    num_bytes = _training_bytes(shards, config)
    tokenizer = _train(config, shards, num_bytes, progress)
    write_tokenizer(tokenizer, partial, lowercase=config.lowercase)
    statistics = {
        "vocab_size": tokenizer.get_vocab_size(),
        "special_token_ids": special_token_ids(tokenizer),
        "training_bytes": num_bytes,
        **_measure(tokenizer, shards, num_bytes),
    }
    return publish(partial, out_dir, build_manifest(recipe, describe_files(partial), statistics=statistics))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load ``folder/tokenizer.json``.

    Raises:
        ArtifactError: If it is missing or damaged, lacks a special token, or [PAD] is not 0.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; give a tokenizer folder, such as 'kexue tokenizer' makes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); make the tokenizer anew") from None
    except Exception as error:  # noqa: BLE001  # the tokenizers library raises bare Exception for a damaged file
        raise ArtifactError(f"{path}: not a tokenizer file ({error}); make the tokenizer anew") from None
    missing = [token for token in SPECIAL_TOKENS.values() if tokenizer.token_to_id(token) is None]
    if missing:
        raise ArtifactError(
            f"{path}: the vocabulary lacks {', '.join(missing)}; all of {', '.join(SPECIAL_TOKENS.values())} are "
            "needed: make the tokenizer anew with 'kexue tokenizer'"
        )
    if tokenizer.token_to_id("[PAD]") != 0:
        raise ArtifactError(
            f"{path}: [PAD] has id {tokenizer.token_to_id('[PAD]')}, sample rows need it to be 0; "
            "make the tokenizer anew with 'kexue tokenizer'"
        )
    return tokenizer


def special_token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of pad, unk, cls, sep and mask; the tokenizer must have them (``load_tokenizer`` checks)."""
    vocab = tokenizer.get_vocab()
    return {name: vocab[token] for name, token in SPECIAL_TOKENS.items()}


def iter_text_blocks(shards: Path, num_bytes: int, *, skip_bytes: int = 0, block_bytes: int = 1 << 20) -> Iterator[str]:
    """Documents of ``shards`` in order, joined by newlines to blocks, from the first that begins after ``skip_bytes``.

    Stops after ``num_bytes`` of text; a document is never cut.
    """
    seen = 0
    block: list[str] = []
    block_size = 0
    for path in shard_paths(shards):
        for value in _texts(path):
            text = value.as_py()
            size = len(text.encode())
            is_skipped = seen < skip_bytes
            seen += size
            if is_skipped:
                continue
            block.append(text)
            block_size += size
            if block_size >= block_bytes or seen >= skip_bytes + num_bytes:
                yield "\n".join(block)
                block, block_size = [], 0
            if seen >= skip_bytes + num_bytes:
                return
    if block:
        yield "\n".join(block)


def _texts(path: Path) -> Any:
    table = read_shard(path)
    if "text" not in table.column_names:
        raise ArtifactError(f"{path}: has columns {table.column_names}, no 'text'; give a folder of text shards")
    return table.column("text")


def _training_bytes(shards: Path, config: TokenizerConfig) -> int:
    """How much text to train on: at most the limit, and not quite all, so that the rest can measure the result."""
    total: int = sum(_texts(path).nbytes for path in shard_paths(shards))
    if not any(text.strip() for text in iter_text_blocks(shards, 1 << 62)):
        raise CorpusError(f"{shards}: the text shards hold no text; check the inputs of the corpus")
    return max(1, min(parse_size(config.max_size), total - total // 100))


def _train(config: TokenizerConfig, shards: Path, num_bytes: int, progress: Progress) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    num_specials = len(SPECIAL_TOKENS)
    alphabet = count_characters(
        normalizer.normalize_str(block) for block in iter_text_blocks(shards, num_bytes)
    ).choose(
        # Three quarters at most: the rest is for pieces of several characters.
        max_pieces=(config.vocab_size - num_specials) * 3 // 4,
        min_frequency=config.min_frequency,
    )
    continuations = [_PREFIX + character for character in alphabet.continuing]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[*SPECIAL_TOKENS.values(), *continuations],
        initial_alphabet=alphabet.characters,
        limit_alphabet=len(alphabet.characters),
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer, scratch.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()

    def blocks() -> Iterator[str]:
        done = 0
        for block in iter_text_blocks(shards, num_bytes):
            yield block
            done += len(block.encode())
            progress.update(min(done, num_bytes), num_bytes, "bytes")

    scratch.train_from_iterator(blocks(), trainer)
    pieces = sorted(vocab := scratch.get_vocab(), key=vocab.__getitem__)
    if len(pieces) < config.vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size={config.vocab_size}: {format_size(num_bytes)} of text in {shards} yield only "
            f"{len(pieces)} pieces that occur at least tokenizer.min_frequency={config.min_frequency} times; set "
            f"tokenizer.vocab_size={len(pieces)} or less, or use a larger corpus"
        )
    return make_tokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=config.lowercase)


def make_tokenizer(vocab: dict[str, int], *, lowercase: bool) -> Tokenizer:
    """BERT's WordPiece tokenizer over ``vocab`` (piece -> id), which holds the special tokens."""
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix=_PREFIX)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, lowercase: bool) -> None:
    """Write the files from which ``AutoTokenizer`` makes the same tokenizer."""
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    vocab = tokenizer.get_vocab()
    write_atomic(folder / "vocab.txt", "".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__)))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": lowercase,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()},
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def _measure(tokenizer: Tokenizer, shards: Path, training_bytes: int) -> dict[str, float]:
    """Bytes per token and share of unknown tokens on text after the training text (on the training text if none is)."""
    blocks = list(iter_text_blocks(shards, _MEASURE_BYTES, skip_bytes=training_bytes))
    blocks = blocks or list(iter_text_blocks(shards, _MEASURE_BYTES))
    encodings = tokenizer.encode_batch_fast(blocks, add_special_tokens=False)
    num_tokens = max(1, sum(len(encoding.ids) for encoding in encodings))
    unknown_id = special_token_ids(tokenizer)["unk"]
    unknown = sum(encoding.ids.count(unknown_id) for encoding in encodings)
    return {
        "bytes_per_token": round(sum(len(block.encode()) for block in blocks) / num_tokens, 4),
        "unknown_rate": round(unknown / num_tokens, 6),
    }
