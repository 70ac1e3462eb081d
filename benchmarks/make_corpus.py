"""Synthetic corpora for the benchmark: seeded, made once, about as compressible by lz4 as real text, a third Chinese.

A document is one language, its length log-normal, its words drawn by Zipf from a vocabulary: the commonest words and
characters of the language as they are, and below them made-up words of its syllables or characters. Only `kind` decides
how the same documents are written: as JSON Lines, as plain lines, or as lines of about 80 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

VERSION = 1  # part of the file name: other text means another file
KINDS = ("lines", "jsonl", "short-lines")
MEAN_LINE_BYTES = {"lines": 1500, "jsonl": 1550, "short-lines": 80}  # about, of a large corpus, without the newline
_CHINESE_DOCUMENTS = 1 / 3
_BLOCK_BYTES = 2 * 10**6
_WORD_BYTES = 24
_NUM_ENDINGS = 4  # the last ends the document
_SLOTS = 2**20  # a word's share of them is its probability
_SOURCES = ("web", "books", "wiki", "news", "forum")

_ENGLISH = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off before must well back through years where much your way down should because long each
just state those people too mr how little good world make very year still see own work men day get here between both
life being under three never know same last another while us might great go come since against right came take used
himself few house american use place during high without again home around small however found mrs part school thought
went say general once upon war left every don does got united number hand course water until always away public put
something fact less though far head yet set almost took better system government told nothing end why called find going
look asked later point knew next city give group social several days toward order early light room business"""
_ONSETS = "b c d f g h l m n p r s t v w st tr pr ch sh th cl gr br pl sp cr fr"
_NUCLEI = "a e i o u ea ai ou io ee"
_CODAS = "n r s t l d m ng st nt ck"
_ENDINGS = "s ed ing er ly ion al"
_CHINESE = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事"
    "成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此"
    "已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代"
    "内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安"
    "少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光"
    "放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运"
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file of one record per line and what is known of it."""

    kind: str
    path: Path
    rows: int
    bytes: int
    lz4_ratio: float
    """How many times smaller lz4 makes its first blocks; real text: 1.4 (Chinese Wikipedia) to 1.7 (English)."""

    @property
    def mean_line_bytes(self) -> float:
        """Without the newline."""
        return self.bytes / self.rows - 1


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    words: np.ndarray
    """(W,) void of 24 bytes: words with what follows them, padded with zeros; four endings of a word in a row."""
    draws: np.ndarray
    """(language, slot): the word that the slot stands for."""
    mean_word_bytes: np.ndarray
    """(language,)"""


def make_corpus(folder: Path, kind: str, num_bytes: int, *, seed: int = 0) -> Corpus:
    """The corpus of that kind with at least ``num_bytes``; made now unless ``folder`` already has it."""
    suffix = ".jsonl" if kind == "jsonl" else ".txt"
    path = folder / f"{kind}-{num_bytes}-seed{seed}-v{VERSION}{suffix}"
    facts = path.with_suffix(".facts.json")
    if facts.exists() and path.exists():
        known = json.loads(facts.read_text(encoding="utf-8"))
        if path.stat().st_size == known["bytes"]:
            return Corpus(kind=kind, path=path, **known)
    folder.mkdir(parents=True, exist_ok=True)
    rows, size, sample = 0, 0, b""
    with path.open("wb") as file:
        for block in generate(kind, seed=seed, num_bytes=num_bytes):
            file.write(block)
            rows += block.count(b"\n")
            size += len(block)
            sample += block if len(sample) < 32 * 10**6 else b""
    ratio = len(sample) / len(pa.compress(sample, codec="lz4", asbytes=True))
    corpus = Corpus(kind, path, rows, size, round(ratio, 3))
    facts.write_text(json.dumps({key: value for key, value in asdict(corpus).items() if key not in ("kind", "path")}))
    return corpus


def generate(kind: str, *, seed: int, num_bytes: int) -> Iterator[bytes]:
    """Blocks of whole lines, together at least ``num_bytes`` and at most a line more."""
    vocabulary = _make_vocabulary(seed)
    done, row = 0, 0
    for index in range(2**32):
        rng = np.random.default_rng([seed, VERSION, index])
        text = _make_block(rng, kind, vocabulary)
        if kind == "jsonl":
            text = _wrap(text, row)
        if done + len(text) >= num_bytes:
            yield text[: text.index(b"\n", num_bytes - done - 1) + 1]
            return
        yield text
        done += len(text)
        row += text.count(b"\n")


def _make_block(rng: np.random.Generator, kind: str, vocabulary: _Vocabulary) -> bytes:
    mean, sigma = (80, 0.35) if kind == "short-lines" else (1500, 0.8)
    num_documents = _BLOCK_BYTES // mean
    language = (rng.random(num_documents) < _CHINESE_DOCUMENTS).astype(np.int32)
    num_bytes = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, num_documents)
    num_words = np.maximum(np.rint(num_bytes / vocabulary.mean_word_bytes[language]), 1).astype(np.int64)
    slots = rng.integers(0, _SLOTS, num_words.sum(), dtype=np.int32) + np.repeat(language * _SLOTS, num_words)
    words = vocabulary.draws.reshape(-1).take(slots)
    last = np.cumsum(num_words) - 1
    words[last] += _NUM_ENDINGS - 1 - words[last] % _NUM_ENDINGS
    return vocabulary.words.take(words).tobytes().translate(None, b"\0")


def _wrap(text: bytes, row: int) -> bytes:
    """Lines as JSON objects; the words hold nothing that JSON would escape."""
    lines = text.split(b"\n")[:-1]
    return b"".join(
        b'{"id": %d, "source": "%s", "text": "%s"}\n' % (i, _SOURCES[i * 7 % 5].encode(), line)
        for i, line in enumerate(lines, row)
    )


def _make_vocabulary(seed: int) -> _Vocabulary:
    rng = np.random.default_rng([seed, VERSION])
    words: list[bytes] = []
    draws = np.empty((2, _SLOTS), np.int32)
    languages = [
        (_english_words(rng), {" ": 0.88, ", ": 0.06, ". ": 0.06, ".\n": 0.0}),
        (_chinese_words(rng), {"": 0.86, ",": 0.08, "。": 0.06, "。\n": 0.0}),
    ]
    for row, (language, endings) in zip(draws, languages, strict=True):
        zipf = 1 / np.arange(1, len(language) + 1) ** 0.95
        shares = np.outer(zipf / zipf.sum(), list(endings.values())).reshape(-1)
        bounds = np.rint(np.cumsum(shares) * _SLOTS).astype(np.int64)
        row[:] = np.repeat(np.arange(len(shares)) + len(words), np.diff(bounds, prepend=0))
        words += [(word + ending).encode() for word in language for ending in endings]
    lengths = np.array([len(word) for word in words])
    table = np.frombuffer(b"".join(word.ljust(_WORD_BYTES, b"\0") for word in words), f"V{_WORD_BYTES}")
    return _Vocabulary(table, draws, lengths[draws].mean(axis=1))


def _english_words(rng: np.random.Generator, num_words: int = 12_000) -> list[str]:
    def draw(parts: str, num_empty: int = 0) -> np.ndarray:
        return rng.choice(parts.split() + [""] * num_empty, num_words)

    parts = [draw(_ONSETS), draw(_NUCLEI), draw(_CODAS, 1), draw(_ONSETS, 1), draw(_NUCLEI), draw(_CODAS, 1)]
    made = map("".join, zip(*parts, draw(_ENDINGS, 3), strict=True))
    return _with_phrases(rng, list(dict.fromkeys([*_ENGLISH.split(), *made])), " ")


def _chinese_words(rng: np.random.Generator, num_words: int = 12_000) -> list[str]:
    characters = np.array(list(dict.fromkeys(_CHINESE)))
    common = 1 / np.arange(8, len(characters) + 8)
    pairs = rng.choice(characters, (num_words, 2), p=common / common.sum())
    return _with_phrases(rng, list(dict.fromkeys([*characters[:150], *map("".join, pairs)])), "")


def _with_phrases(rng: np.random.Generator, words: list[str], space: str) -> list[str]:
    """Words and phrases of two to four of them in turns; the phrases make the text as repetitive as real text is."""
    zipf = 1 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), (len(words), 4), p=zipf / zipf.sum())
    sizes = rng.integers(2, 5, len(words))
    phrases = [space.join(words[i] for i in row[:size]) for row, size in zip(drawn, sizes, strict=True)]
    mixed = [item for pair in zip(words, phrases, strict=True) for item in pair]
    return [item for item in dict.fromkeys(mixed) if len(item.encode()) <= _WORD_BYTES - 4]
