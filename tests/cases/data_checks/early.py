"""What training would silently suffer from is said early, and texts are cut as the tokenizer and a reader cut them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.samples.encode import Encoder
from kexue_train.samples.sentences import split_sentences
from kexue_train.samples.tokenizer import load_tokenizer
from tests.cases.command import Ended, kexue


def _shards(data: Path, name: str) -> None:
    assert kexue(data, "shuffle", name, "-o", "shards", "--workers", "1").code == 0


def _samples(data: Path, *options: str) -> Ended:
    return kexue(data, "samples", "shards", "--tokenizer", "tokenizer", "--out", "samples", "--workers", "1", *options)


def _no_pairs(data: Path) -> None:
    ended = kexue(data, "shuffle", "sentence_per_line.txt", "-o", "shards", "--workers", "1")
    assert "--document block" in ended.err
    assert kexue(data, "tokenizer", "shards", "--out", "tokenizer", "--vocab-size", "128").code == 0
    ended = _samples(data)
    assert ended.code == 0
    assert "warning: samples.nsp is on" in ended.err
    assert "--document block" in ended.err
    run = {"name": "a", "corpus": {"inputs": ["sentence_per_line.txt"]}, "train": {"steps": 5000}}
    (data / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    ended = kexue(data, "plan", "--config", "run.yaml")
    assert ended.code == 0
    assert "warning: samples.nsp is on" in ended.err


def _unspaced_script(data: Path) -> None:
    _shards(data, "unspaced_thai.jsonl")
    ended = kexue(data, "tokenizer", "shards", "--out", "tokenizer", "--vocab-size", "100")
    assert ended.code == 2
    assert "% of the characters" in ended.err
    assert "Thai" in ended.err


def _added_special_token(data: Path) -> None:
    _shards(data, "user.jsonl")
    ended = kexue(data, "tokenizer", "shards", "--from", "special_added_tokenizer.json", "--out", "tokenizer")
    assert ended.code == 2
    assert "'<user>' (id 118)" in ended.err


def _sentences(data: Path) -> None:
    for line in (data / "sentences.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        assert split_sentences(case["text"]) == case["sentences"]


def _copies(data: Path) -> None:
    _shards(data, "copies.jsonl")
    assert kexue(data, "tokenizer", "shards", "--out", "tokenizer", "--vocab-size", "64").code == 0
    assert _samples(data, "--seq-len", "32").code == 0
    tokenizer = load_tokenizer(data / "tokenizer")
    texts = {json.loads(line)["text"] for line in (data / "copies.jsonl").read_text(encoding="utf-8").splitlines()}
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in sorted(texts)]
    negatives = [a + b for a, b, label in _pairs(data / "samples") if label == 1]
    assert len(negatives) > 10
    for ids in negatives:
        assert not any(ids == text[start : start + len(ids)] for text in whole for start in range(len(text)))


def _pairs(samples: Path) -> Iterator[tuple[list[int], list[int], int]]:
    """Yield A and B of every pair, and its label."""
    for row in (row for path in shard_paths(samples) for row in read_shard(path).to_pylist()):
        start, columns = 0, ("sequence_lengths", "segment_a_lengths", "next_sentence_labels")
        for length, a_length, label in zip(*(row[name] for name in columns), strict=True):
            ids = row["input_ids"][start : start + length]
            if label >= 0:
                yield ids[1 : a_length - 1], ids[a_length:-1], label
            start += length


def _canonical_order(data: Path) -> None:
    text = json.loads((data / "canonical_order.jsonl").read_text(encoding="utf-8"))["text"]
    lines = [json.dumps({"text": f"{text} {number}"}) for number in range(40)]
    (data / "marks.jsonl").write_text("\n".join(lines), encoding="utf-8")
    _shards(data, "marks.jsonl")
    assert (
        kexue(data, "tokenizer", "shards", "--out", "tokenizer", "--vocab-size", "64", "--min-frequency", "1").code == 0
    )
    tokenizer = load_tokenizer(data / "tokenizer")
    wanted = tokenizer.encode(text, add_special_tokens=False)
    assert "[UNK]" not in wanted.tokens
    assert Encoder(tokenizer, whole_word=True).encode([text]).token_ids.tolist() == wanted.ids


def _bare_kana(data: Path) -> None:
    _shards(data, "kana.jsonl")
    ended = kexue(data, "tokenizer", "shards", "--from", "kana_bare.txt", "--out", "tokenizer")
    assert ended.code == 2
    assert "##ニ" in ended.err


def _setting_without_effect(data: Path) -> None:
    run = {"name": "a", "corpus": {"inputs": ["forty.jsonl"], "max_size": "4MB"}, "train": {"steps": 5000}}
    (data / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    ended = kexue(data, "plan", "--config", "run.yaml")
    assert ended.code == 2
    assert "max_size" in ended.err


CHECKS: dict[str, Callable[[Path], None]] = {
    "D06": _no_pairs,
    "D07": _unspaced_script,
    "D08": _added_special_token,
    "D14": _sentences,
    "D18": _copies,
    "D19": _canonical_order,
    "D20: kana": _bare_kana,
    "D24": _setting_without_effect,
}
