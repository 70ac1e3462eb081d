"""A published ``vocab.txt`` -> the tokenizer's files of an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

from kexue_train.foundation.errors import ArtifactError
from kexue_train.model import RoFormerV2Config
from kexue_train.model.hf_folder import limit_tokenizer
from kexue_train.samples.bert_tokenizer import read_vocabulary, write_tokenizer

_REMEDY = "give the model's own file"


def write_tokenizer_of(source: Path, folder: Path, config: RoFormerV2Config) -> None:
    """Write BERT's WordPiece tokenizer over ``source/vocab.txt`` into ``folder``.

    Text is lower-cased unless ``source/tokenizer_config.json`` says ``"do_lower_case": false``.

    Raises:
        ArtifactError: If the vocabulary has another size than the model, a piece twice, or lacks a special token.
    """
    path = source / "vocab.txt"
    tokenizer = read_vocabulary(path, lowercase=_lowercases(source / "tokenizer_config.json"), remedy=_REMEDY)
    size = tokenizer.get_vocab_size()
    if size != (config.num_tokens or config.vocab_size):
        name = "vocab_size" if config.num_tokens is None else "num_tokens"
        raise ArtifactError(f"{path}: {size} pieces, but {name}={getattr(config, name)}; {_REMEDY}")
    write_tokenizer(tokenizer, folder)
    limit_tokenizer(folder, config)


def _lowercases(settings: Path) -> bool:
    try:
        return not settings.exists() or bool(json.loads(_read(settings)).get("do_lower_case", True))
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{settings}: not a JSON object ({error}); give the model's own file, or none") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read as UTF-8 text ({error}); give the model's own file") from None
