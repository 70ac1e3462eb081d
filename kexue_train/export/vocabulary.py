"""A published ``vocab.txt`` -> the tokenizer's files of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

from kexue_train.errors import ArtifactError
from kexue_train.model import RoFormerV2Config
from kexue_train.samples.tokenizer import SPECIAL_TOKENS, make_tokenizer, write_tokenizer


def write_tokenizer_of(source: Path, folder: Path, config: RoFormerV2Config) -> None:
    """Write BERT's WordPiece tokenizer over ``source/vocab.txt`` into ``folder``.

    Text is lower-cased unless ``source/tokenizer_config.json`` says ``"do_lower_case": false``.

    Raises:
        ArtifactError: If the vocabulary has another size than the model, a piece twice, or lacks a special token.
    """
    path = source / "vocab.txt"
    pieces = [line.removesuffix("\r") for line in _read(path).removesuffix("\n").split("\n")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    if len(pieces) != config.vocab_size:
        raise ArtifactError(
            f"{path}: {len(pieces)} lines, but vocab_size={config.vocab_size}; give the model's own file"
        )
    if len(vocab) != len(pieces):
        twice = next(piece for number, piece in enumerate(pieces) if vocab[piece] != number)
        raise ArtifactError(f"{path}: the piece {twice!r} is there twice; give the model's own file")
    if missing := [token for token in SPECIAL_TOKENS.values() if token not in vocab]:
        raise ArtifactError(f"{path}: lacks {', '.join(missing)}; give the model's own file")
    if vocab[SPECIAL_TOKENS["pad"]] != config.pad_token_id:
        raise ArtifactError(
            f"{path}: [PAD] is number {vocab['[PAD]']}, but pad_token_id={config.pad_token_id}; give the model's own "
            "file"
        )
    lowercase = _lowercases(source / "tokenizer_config.json")
    write_tokenizer(make_tokenizer(vocab, lowercase=lowercase), folder, lowercase=lowercase)


def _lowercases(settings: Path) -> bool:
    try:
        return not settings.exists() or bool(json.loads(_read(settings)).get("do_lower_case", True))
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{settings}: no JSON object ({error}); give the model's own file, or none") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read as UTF-8 text ({error}); give the model's own file") from None
