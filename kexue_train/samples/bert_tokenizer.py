"""The form every tokenizer here has: BERT's normalizer and pre-tokenizer, a WordPiece model, five special tokens.

Its normalizer and pre-tokenizer treat each character alone, which ``words.py`` relies on, and put every Chinese
character alone, which whole-word masking relies on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ArtifactError, ConfigError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
PREFIX = "##"
"""What a piece that continues a word begins with."""
_NAMES = ("tokenizer.json", "vocab.txt")
TAKE_ANOTHER = "choose another vocabulary, or leave tokenizer.source (--from) out to train one"


def assemble(vocab: dict[str, int], normalizer: normalizers.Normalizer) -> Tokenizer:
    """Return the tokenizer of a vocabulary (piece -> id) that holds the special tokens."""
    tokenizer = Tokenizer(
        models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix=PREFIX)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    tokenizer.post_processor = _pair_template(vocab)
    return tokenizer


def read_tokenizer(path: Path, *, remedy: str) -> Tokenizer:
    """Read a ``tokenizer.json``; without truncation and padding, which are not a tokenizer's business.

    Args:
        path: The file.
        remedy: What to do if it cannot be used, in the imperative; ends every message.

    Raises:
        ArtifactError: If it is missing, damaged or not of the form above, lacks a special token, or [PAD] is not 0; or
            if it would read a text, or pair two, in another way than the samples do.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; give a tokenizer folder, such as 'kexue tokenizer' makes") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {remedy}") from None
    except Exception as error:  # noqa: BLE001  # the tokenizers library raises bare Exception for a damaged file
        raise ArtifactError(f"{path}: not a tokenizer file ({error}); {remedy}") from None
    raw = json.loads(text)
    _require_form(raw, path, remedy)
    require_special_tokens(vocab := tokenizer.get_vocab(), path, remedy)
    _require_plain_text(raw["added_tokens"], path, remedy)
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ArtifactError(f"{path}: the ids of its {len(vocab)} pieces are not 0 to {len(vocab) - 1}; {remedy}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = tokenizer.post_processor or _pair_template(vocab)
    _require_pairs(tokenizer, path, remedy)
    tokenizer.decoder = tokenizer.decoder or decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def require_special_tokens(vocab: dict[str, int], path: Path, remedy: str) -> None:
    """Check that the five special tokens are there and [PAD] is 0.

    Raises:
        ArtifactError: Says which are missing, or where [PAD] is.
    """
    if missing := [token for token in SPECIAL_TOKENS.values() if token not in vocab]:
        raise ArtifactError(
            f"{path}: the vocabulary lacks {', '.join(missing)}; all of {', '.join(SPECIAL_TOKENS.values())} are "
            f"needed: {remedy}"
        )
    if vocab["[PAD]"] != 0:
        raise ArtifactError(
            f"{path}: [PAD] has id {vocab['[PAD]']}; it must be 0, since that is what fills sample rows: {remedy}"
        )


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that ``AutoTokenizer.from_pretrained(folder)`` reads."""
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    vocab = tokenizer.get_vocab()
    write_atomic(folder / "vocab.txt", "".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__)))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": tokenizer.normalizer.lowercase,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": token for name, token in SPECIAL_TOKENS.items()},
    }
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def _pair_template(vocab: dict[str, int]) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )


def _require_form(raw: dict[str, Any], path: Path, remedy: str) -> None:
    model, normalizer, pre_tokenizer = (raw[name] or {} for name in ("model", "normalizer", "pre_tokenizer"))
    wanted: tuple[tuple[str, Any, Any], ...] = (
        ("the model", "WordPiece", model.get("type")),
        ("unk_token", "[UNK]", model.get("unk_token")),
        ("continuing_subword_prefix", PREFIX, model.get("continuing_subword_prefix")),
        ("the normalizer", "BertNormalizer", normalizer.get("type")),
        ("clean_text", True, normalizer.get("clean_text")),
        ("handle_chinese_chars", True, normalizer.get("handle_chinese_chars")),
        ("the pre-tokenizer", "BertPreTokenizer", pre_tokenizer.get("type")),
    )
    for name, allowed, found in wanted:
        if found != allowed:
            raise ArtifactError(
                f"{path}: {name} is {found!r}, only BERT's form is read, where it is {allowed!r}; {remedy}"
            )


def _require_plain_text(added_tokens: list[dict[str, Any]], path: Path, remedy: str) -> None:
    """Refuse tokens that the tokenizer would keep whole in a text, which the samples read as words and pieces.

    The five special ones are an exception, in BERT's own form: nobody means them who writes them into a text.
    """
    for token in added_tokens:
        content, where = token["content"], f"{path}: the added token {token['content']!r} (id {token['id']})"
        if content not in SPECIAL_TOKENS.values() or not token["special"]:
            raise ArtifactError(
                f"{where} is kept whole in a text wherever the tokenizer is used, but samples are made of words and "
                f"pieces and would never hold it; remove it from added_tokens, or {remedy}"
            )
        # lstrip and rstrip take white space along, which is dropped anyway.
        if changed := [name for name in ("single_word", "normalized") if token[name]]:
            raise ArtifactError(
                f"{where} has {changed[0]}: true, so that it is found in other texts than BERT's; set it to false, or "
                f"{remedy}"
            )


def _require_pairs(tokenizer: Tokenizer, path: Path, remedy: str) -> None:
    """Refuse a post-processor that puts texts together in another way than the samples do."""
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("[MASK]", "[UNK]"))
    pair = tokenizer.post_process(first, second)
    single = ["[CLS]", *first.tokens, "[SEP]"]
    tokens = [*single, *second.tokens, "[SEP]"]
    kinds = [0] * len(single) + [1] * (len(tokens) - len(single))
    if (pair.tokens, pair.type_ids) != (tokens, kinds) or tokenizer.post_process(first).tokens != single:
        raise ArtifactError(
            f"{path}: the post-processor makes {' '.join(pair.tokens)} with the types {pair.type_ids} of a pair, only "
            f"BERT's form is read: {' '.join(tokens)} with {kinds}; {remedy}"
        )


def find_vocabulary(source: Path) -> Path:
    """Return the file that ``source`` is or holds; of a folder with both, ``tokenizer.json``, which says more.

    Raises:
        ConfigError: If it is missing.
    """
    found = [path for path in (source, *(source / name for name in _NAMES)) if path.is_file()]
    if not found:
        raise ConfigError(
            f"tokenizer.source={source}: neither a file nor a folder that holds {' or '.join(_NAMES)}; check the path"
        )
    return found[0]


def read_vocabulary(path: Path, *, lowercase: bool, remedy: str = TAKE_ANOTHER) -> Tokenizer:
    """Return the tokenizer of a vocabulary file, ids as they are there.

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
