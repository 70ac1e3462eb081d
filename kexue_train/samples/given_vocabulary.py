"""A vocabulary that exists already: a ``vocab.txt``, a ``tokenizer.json``, or a folder that holds one."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, normalizers

from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.samples.bert_tokenizer import assemble, read_tokenizer, require_special_tokens

_NAMES = ("tokenizer.json", "vocab.txt")
TAKE_ANOTHER = "choose another vocabulary, or leave tokenizer.source (--from) out to train one"


def find_vocabulary(source: Path) -> Path:
    """The file that ``source`` is or holds; of a folder with both, ``tokenizer.json``, which says more.

    Raises:
        ConfigError: If there is none.
    """
    found = [path for path in (source, *(source / name for name in _NAMES)) if path.is_file()]
    if not found:
        raise ConfigError(
            f"tokenizer.source={source}: is no file and no folder that holds {' or '.join(_NAMES)}; check the path"
        )
    return found[0]


def read_vocabulary(path: Path, *, lowercase: bool, remedy: str = TAKE_ANOTHER) -> Tokenizer:
    """The tokenizer of a vocabulary file, ids as they are there.

    Args:
        path: ``*.json`` is a tokenizer file, anything else has one piece per line.
        lowercase: Whether text is lower-cased for a list of pieces; a tokenizer file says so itself.
        remedy: What to do if it cannot be used, in the imperative; ends every message.

    Raises:
        ArtifactError: If the file cannot be used; says why, with the line.
    """
    if path.suffix == ".json":
        return read_tokenizer(path, remedy=remedy)
    vocab = _read_pieces(path, remedy)
    require_special_tokens(vocab, path, remedy)
    return assemble(vocab, normalizers.BertNormalizer(lowercase=lowercase))


def _read_pieces(path: Path, remedy: str) -> dict[str, int]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read as UTF-8 text ({error}); {remedy}") from None
    # Not splitlines: U+2028 and its like are pieces of some vocabularies.
    pieces = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    vocab: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece:
            raise ArtifactError(f"{path}:{number + 1}: the line is empty, and each one is a piece; {remedy}")
        if piece in vocab:
            raise ArtifactError(
                f"{path}:{number + 1}: {piece!r} is also in line {vocab[piece] + 1}, so its id is not clear; {remedy}"
            )
        vocab[piece] = number
    return vocab
