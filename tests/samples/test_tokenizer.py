from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

from kexue_train.foundation.arrow_shards import shard_paths
from kexue_train.foundation.artifacts import check_files, read_manifest, verify_artifact
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError, StaleArtifactError
from kexue_train.samples.bert_tokenizer import assemble
from kexue_train.samples.config import TokenizerConfig
from kexue_train.samples.shard_texts import iter_text_blocks
from kexue_train.samples.tokenizer import describe_coverage, load_tokenizer, note_unknown_text, train_tokenizer
from kexue_train.samples.vocabulary_coverage import measure_coverage
from kexue_train.samples.words import BertWords

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "manifest.json")


def test_special_tokens_are_the_first_five_and_the_size_is_kept(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert [tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.get_vocab_size() == 256
    pieces = (tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert pieces == [tokenizer.id_to_token(i) for i in range(256)]


def test_pairs_get_the_template_of_bert(tokenizer_folder: Path) -> None:
    encoding = load_tokenizer(tokenizer_folder).encode("Boats", "公园")
    assert [encoding.tokens[0], encoding.tokens[-1]] == ["[CLS]", "[SEP]"]
    assert encoding.tokens[-4:] == ["[SEP]", "公", "园", "[SEP]"]
    assert encoding.type_ids == [0] * (len(encoding.ids) - 3) + [1] * 3


def test_training_twice_gives_the_same_bytes(tmp_path: Path, text_shards: Path, tokenizer_folder: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=256), text_shards, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tokenizer_folder / name).read_bytes()


def test_a_second_call_does_nothing(text_shards: Path, tokenizer_folder: Path) -> None:
    before = [(tokenizer_folder / name).stat().st_mtime_ns for name in FILES]
    manifest = train_tokenizer(TokenizerConfig(vocab_size=256), text_shards, tokenizer_folder)
    assert manifest == verify_artifact(tokenizer_folder)
    assert [(tokenizer_folder / name).stat().st_mtime_ns for name in FILES] == before


def test_statistics_describe_the_vocabulary(tokenizer_folder: Path) -> None:
    facts = read_manifest(tokenizer_folder).statistics
    assert facts["vocab_size"] == 256
    assert facts["special_token_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert 0 <= facts["unknown_rate"] < 0.01
    assert 1 < facts["bytes_per_token"] < 8


def test_a_vocabulary_beyond_the_data_is_refused_with_the_size_that_works(tmp_path: Path, text_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size=50000: .* yield only \d+ pieces") as caught:
        train_tokenizer(TokenizerConfig(vocab_size=50_000), text_shards, tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()
    size = int(re.search(r"set tokenizer\.vocab_size=(\d+)", str(caught.value))[1])
    train_tokenizer(TokenizerConfig(vocab_size=size), text_shards, tmp_path / "tokenizer")


@pytest.mark.parametrize("size", [490, 500])
def test_chinese_with_few_words_of_several_characters_fills_its_vocabulary_with_characters(
    tmp_path: Path, write_text_shards: Callable, size: int
) -> None:
    """BERT cuts Chinese into characters, so nearly all pieces are of one: more than the usual three quarters."""
    characters = [chr(0x4E00 + number) for number in range(490)]
    texts = ["".join(characters[start::7]) + " ab abc" for start in range(7) for _ in range(3)]
    shards, settings = write_text_shards(tmp_path / "shards", texts), {"min_frequency": 2}
    found = train_tokenizer(TokenizerConfig(vocab_size=size, **settings), shards, tmp_path / "vocabulary")
    assert found.statistics["vocab_size"] == size
    with pytest.raises(ConfigError, match=r"vocab_size=600: .* yield only 50\d pieces") as caught:
        train_tokenizer(TokenizerConfig(vocab_size=600, **settings), shards, tmp_path / "large")
    largest = int(re.search(r"vocab_size=(\d+) or less", str(caught.value))[1])
    train_tokenizer(TokenizerConfig(vocab_size=largest, **settings), shards, tmp_path / "large")


def test_only_so_much_text_is_read(text_shards: Path) -> None:
    everything = "\n".join(iter_text_blocks(text_shards, 1 << 40, block_bytes=100))
    first = "\n".join(iter_text_blocks(text_shards, 1000, block_bytes=100))
    rest = "\n".join(iter_text_blocks(text_shards, 1 << 40, skip_bytes=1000, block_bytes=100))
    assert first + "\n" + rest == everything
    assert 1000 <= len(first.encode()) < 3000


def test_case_is_kept_if_asked_for(tmp_path: Path, text_shards: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=256, lowercase=False), text_shards, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.token_to_id("D") is not None
    assert tokenizer.encode("Document").ids != tokenizer.encode("document").ids


@pytest.mark.parametrize("documents", [[""], ["", " \n "]])
def test_shards_without_text_are_refused(tmp_path: Path, write_text_shards: Callable, documents: list[str]) -> None:
    shards = write_text_shards(tmp_path / "shards", documents)
    with pytest.raises(CorpusError, match="hold no text"):
        train_tokenizer(TokenizerConfig(vocab_size=64), shards, tmp_path / "tokenizer")


@pytest.mark.parametrize("token", ["[MASK]", "[PAD]"])
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path: Path, tokenizer_folder: Path, token: str) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8").replace(token, "[OTHER]")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=re.escape(f"lacks {token}")):
        load_tokenizer(folder)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a tokenizer file"):
        load_tokenizer(tmp_path)


def test_padding_must_be_zero(tmp_path: Path, tokenizer_folder: Path) -> None:
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = raw["model"]["vocab"]
    vocab["[PAD]"], vocab["[MASK]"] = 4, 0
    raw["added_tokens"] = []
    raw["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"\[PAD\] has id 4; it must be 0"):
        load_tokenizer(tmp_path)


def test_text_beyond_the_limit_is_not_read(tmp_path: Path, write_text_shards: Callable, texts: list[str]) -> None:
    shards = write_text_shards(tmp_path / "shards", texts * 150, 3)  # a shard is longer than what is measured
    for path in shard_paths(shards)[1:]:
        path.write_bytes(b"no Arrow stream")
    train_tokenizer(
        TokenizerConfig(vocab_size=96, max_size="1KB", max_unknown_rate=1.0), shards, tmp_path / "tokenizer"
    )
    assert read_manifest(tmp_path / "tokenizer").statistics["training_bytes"] == 1000


PIECES = ["[PAD]", "the", "[UNK]", "##s", "[CLS]", "[SEP]", "[MASK]", "boat", "Boat", "公", "\u2028", *"abcdefgh.,!?"]


def write_pieces(folder: Path, pieces: list[str], end: str = "\n") -> Path:
    (folder / "vocab.txt").write_bytes("".join(piece + end for piece in pieces).encode())
    return folder / "vocab.txt"


def take(source: Path, shards: Path, out: Path, **values: Any) -> Tokenizer:
    train_tokenizer(TokenizerConfig(source=source, **{"max_unknown_rate": 1.0, **values}), shards, out)
    return load_tokenizer(out)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_pieces_is_taken_as_it_is(tmp_path: Path, text_shards: Path, end: str) -> None:
    tokenizer = take(write_pieces(tmp_path, PIECES, end), text_shards, tmp_path / "tokenizer")
    assert [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())] == PIECES
    assert tokenizer.encode("The Boats", add_special_tokens=False).tokens == ["the", "boat", "##s"]
    assert read_manifest(tmp_path / "tokenizer").statistics["special_token_ids"]["unk"] == 2


def test_case_is_kept_in_a_list_of_pieces_if_asked_for(tmp_path: Path, text_shards: Path) -> None:
    tokenizer = take(write_pieces(tmp_path, PIECES), text_shards, tmp_path / "tokenizer", lowercase=False)
    assert tokenizer.encode("The Boats", add_special_tokens=False).tokens == ["[UNK]", "Boat", "##s"]


def test_a_tokenizer_file_is_taken_with_its_own_case(tmp_path: Path, text_shards: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=256, lowercase=False), text_shards, tmp_path / "cased")
    cased = load_tokenizer(tmp_path / "cased")
    cased.enable_truncation(3)
    cased.save(str(tmp_path / "cased" / "tokenizer.json"))
    taken = take(tmp_path / "cased", text_shards, tmp_path / "tokenizer", lowercase=True)
    text = "Document 4 of Dr. Gray: 公园"
    assert taken.get_vocab() == cased.get_vocab()
    assert taken.encode(text).ids[:2] == cased.encode(text).ids[:2]
    assert len(taken.encode(text).ids) > 3


def test_a_changed_source_makes_the_stage_anew_a_moved_one_does_not(tmp_path: Path, text_shards: Path) -> None:
    source, out = write_pieces(tmp_path, PIECES), tmp_path / "tokenizer"
    take(source, text_shards, out)
    before = (out / "manifest.json").stat().st_mtime_ns
    take(Path(shutil.copy(source, tmp_path / "moved.txt")), text_shards, out)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(StaleArtifactError, match="source changed"):
        take(write_pieces(tmp_path, [*PIECES, "x"]), text_shards, out)


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([p for p in PIECES if p not in ("[CLS]", "[MASK]")], r"vocab\.txt: the vocabulary lacks \[CLS\], \[MASK\]"),
        ([*PIECES, "the"], r"vocab\.txt:24: 'the' is also in line 2"),
        (["a", *PIECES[:11]], r"vocab\.txt: \[PAD\] has id 1; it must be 0"),
        ([*PIECES, "", "x"], r"vocab\.txt:24: the line is empty"),
    ],
)
def test_a_list_of_pieces_that_cannot_be_used_is_refused(
    tmp_path: Path, text_shards: Path, pieces: list[str], problem: str
) -> None:
    with pytest.raises(ArtifactError, match=problem + r".* choose another vocabulary"):
        take(write_pieces(tmp_path, pieces), text_shards, tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "the model is 'BPE', .* it is 'WordPiece'"),
        ("normalizer", {"type": "NFKC"}, "the normalizer is 'NFKC'"),
        ("normalizer", None, "the normalizer is None"),
        ("pre_tokenizer", {"type": "WhitespaceSplit"}, "the pre-tokenizer is 'WhitespaceSplit'"),
    ],
)
def test_a_tokenizer_of_another_form_is_refused(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, part: str, value: Any, problem: str
) -> None:
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")) | {part: value}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ArtifactError, match=problem):
        take(tmp_path, text_shards, tmp_path / "tokenizer")


def added(content: str, **changes: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": 4, "content": content, **plain, "special": True} | changes


def write_tokenizer_file(folder: Path, tokenizer_folder: Path, **parts: Any) -> Path:
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")) | parts
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (added("<user>", id=256), r"the added token '<user>' \(id 256\) is kept whole in a text"),
        (added("<user>", id=256, special=False), "'<user>' .* kept whole"),
        (added("the", id=20), "'the' .* kept whole"),
        (added("[MASK]", special=False), r"'\[MASK\]' .* kept whole"),
        (added("[MASK]", normalized=True), r"'\[MASK\]' .* has normalized: true"),
        (added("[MASK]", single_word=True), r"'\[MASK\]' .* has single_word: true"),
    ],
    ids=lambda value: " ".join(f"{v}" for v in value.values()) if isinstance(value, dict) else "",
)
def test_added_tokens_that_the_samples_would_not_hold_are_refused(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, token: dict[str, Any], problem: str
) -> None:
    source = write_tokenizer_file(tmp_path, tokenizer_folder, added_tokens=[token])
    with pytest.raises(ArtifactError, match=problem):
        take(source, text_shards, tmp_path / "tokenizer")


def test_white_space_that_a_special_token_takes_along_makes_no_difference(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path
) -> None:
    tokens = [added("[MASK]", lstrip=True, rstrip=True)]
    source = write_tokenizer_file(tmp_path, tokenizer_folder, added_tokens=tokens)
    taken = take(source, text_shards, tmp_path / "tokenizer")
    text = "The [MASK] boat."
    assert taken.encode(text).ids == load_tokenizer(tokenizer_folder).encode(text).ids


SEP_AND_CLS = {"sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
A, B = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
PROCESSORS = {
    "BERT": ({"type": "BertProcessing"} | SEP_AND_CLS, True),
    "RoBERTa": ({"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False} | SEP_AND_CLS, False),
    "no special tokens": ({"type": "TemplateProcessing", "single": [A], "pair": [A, B], "special_tokens": {}}, False),
}


@pytest.mark.parametrize(("processor", "is_berts"), PROCESSORS.values(), ids=PROCESSORS)
def test_a_post_processor_that_pairs_texts_in_another_way_is_refused(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, processor: dict[str, Any], is_berts: bool
) -> None:
    source = write_tokenizer_file(tmp_path, tokenizer_folder, post_processor=processor)
    if is_berts:
        take(source, text_shards, tmp_path / "tokenizer")
    else:
        with pytest.raises(ArtifactError, match="the post-processor makes "):
            take(source, text_shards, tmp_path / "tokenizer")


def test_a_source_that_is_not_there_is_named(tmp_path: Path, text_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.source=.*nowhere: neither a file nor a folder that holds"):
        take(tmp_path / "nowhere", text_shards, tmp_path / "tokenizer")


def test_a_vocabulary_that_does_not_know_the_text_is_refused(tmp_path: Path, text_shards: Path) -> None:
    source = write_pieces(tmp_path, PIECES)
    with pytest.raises(ConfigError) as caught:
        take(source, text_shards, tmp_path / "tokenizer", max_unknown_rate=0.05)
    message = str(caught.value)
    rates = re.search(r"=0\.05: ([\d.]+)% of the tokens and ([\d.]+)% of the characters", message)
    rate = max(map(float, rates.groups()))
    assert rate > 50
    assert re.search(r"characters without a piece: (?:##)?\w \(U\+00[67]\w, \d+ times\)", message)
    assert "vocab_size" not in message
    take(source, text_shards, tmp_path / "tokenizer", max_unknown_rate=rate / 100 + 0.001)


@given(st.lists(st.text(alphabet="abz xy.公园é\x00", max_size=20), max_size=4))
def test_coverage_is_that_of_the_tokens(texts: list[str]) -> None:
    pieces = [piece for piece in PIECES if piece != "\u2028"] + ["##a"]
    tokenizer = assemble({piece: i for i, piece in enumerate(pieces)}, BertNormalizer(lowercase=True))
    tokens = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False).tokens]
    coverage = measure_coverage(tokenizer, texts)
    assert (coverage.tokens, coverage.unknown_tokens) == (len(tokens), tokens.count("[UNK]"))
    assert coverage.bytes == sum(len(text.encode()) for text in texts)
    unknown = [w for t in texts for w in BertWords(tokenizer).split(t) if tokenizer.encode(w).tokens[1] == "[UNK]"]
    assert {piece[-1] for piece in coverage.missing_pieces} <= set("".join(unknown))
    assert bool(coverage.missing_pieces) == bool(unknown)
    words = [word for text in texts for word in BertWords(tokenizer).split(text)]
    assert (coverage.characters, coverage.unknown_characters) == (len("".join(words)), len("".join(unknown)))


UNSPACED = {
    "Thai": "ก",
    "Khmer": "ក",
    "Lao": "ກ",
    "Myanmar": "က",
    "Tibetan": "ཀ",
    "Hiragana": "あ",
    "Latin": "a",
    "Digit": "7",
}


@pytest.mark.parametrize(("script", "letter"), UNSPACED.items(), ids=UNSPACED)
def test_words_beyond_the_limit_count_by_their_characters(
    tmp_path: Path, write_text_shards: Callable, script: str, letter: str
) -> None:
    source = write_pieces(tmp_path, [*PIECES, "was", "quiet"])
    shards = write_text_shards(tmp_path / "shards", [f"{'the boat was quiet ' * 6}{letter * 150}"] * 20)
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(TokenizerConfig(source=source), shards, tmp_path / "tokenizer")
    message = str(caught.value)
    assert re.search(r"=0\.05: [0-4]\.\d% of the tokens and 62\.5% of the characters", message)
    assert (
        f"more than 100 characters, which become one [UNK] each: {script} (3,000), such as '{letter * 30}'" in message
    )
    assert "put spaces between the words" in message
    assert "without a piece" not in message
    config = TokenizerConfig(source=source, max_unknown_rate=0.63)
    statistics = train_tokenizer(config, shards, tmp_path / "tokenizer").statistics
    assert statistics["unknown_character_rate"] == 0.625
    assert describe_coverage(statistics).endswith("and 62.50% of the characters unknown")


def test_text_that_is_unknown_to_the_tokenizer_of_other_text_is_said(
    tmp_path: Path, write_text_shards: Callable, text_shards: Path, tokenizer_folder: Path
) -> None:
    notes: list[str] = []
    progress = SimpleNamespace(note=notes.append)
    note_unknown_text(tokenizer_folder, text_shards, progress)
    note_unknown_text(tokenizer_folder, write_text_shards(tmp_path / "known", ["The boats came."] * 20), progress)
    assert notes == []
    texts = [f"{'the boats came at noon ' * 9}{'ก' * 150}"] * 20
    note_unknown_text(tokenizer_folder, write_text_shards(tmp_path / "thai", texts), progress)
    (note,) = notes
    assert re.search(r"warning: \d\.\d% of the tokens and 4\d\.\d% of the characters .* Thai", note)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"vocab_size": 100}, "vocab_size=100 has no effect"), ({"lowercase": False}, "lowercase=false has no effect")],
)
def test_settings_that_a_given_vocabulary_leaves_without_effect_are_refused(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        take(tokenizer_folder, text_shards, tmp_path / "tokenizer", **settings)
    take(tokenizer_folder, text_shards, tmp_path / "tokenizer", vocab_size=256)


def test_the_statistics_of_an_older_release_are_described() -> None:
    found = describe_coverage({"bytes_per_token": 4.4, "unknown_rate": 0.01})
    assert found == "4.40 bytes per token, 1.00% of the tokens unknown"


def test_a_character_that_lacks_its_piece_within_words_is_named_with_it(
    tmp_path: Path, write_text_shards: Callable
) -> None:
    source = write_pieces(tmp_path, [*PIECES, "ア", "ニ", "メ", "##メ"])
    shards = write_text_shards(tmp_path / "shards", ["アニメ a b c"] * 9)
    with pytest.raises(ConfigError, match=r"characters without a piece: ##ニ \(U\+30CB, 9 times\);"):
        take(source, shards, tmp_path / "tokenizer", max_unknown_rate=0.05)


@pytest.mark.slow
def test_transformers_opens_the_folder(tokenizer_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = load_tokenizer(tokenizer_folder), transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    encoded = theirs("The boats came.", "今天[MASK]")
    assert encoded["input_ids"] == ours.encode("The boats came.", "今天[MASK]").ids
    assert encoded["token_type_ids"] == ours.encode("The boats came.", "今天[MASK]").type_ids
    assert (theirs.pad_token_id, theirs.cls_token, theirs.sep_token, theirs.mask_token_id) == (0, "[CLS]", "[SEP]", 4)
    assert theirs.decode(encoded["input_ids"], skip_special_tokens=True) == "the boats came. 今 天"
    check_files(tokenizer_folder, read_manifest(tokenizer_folder))
