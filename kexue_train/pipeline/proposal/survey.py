"""What there is to train on and to train with, from a look at the beginnings of the inputs and at the machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.foundation.errors import CorpusError
from kexue_train.foundation.runtime import available_cpus, available_memory_bytes, free_disk_bytes, parse_size
from kexue_train.samples.sentences import sentence_cuts
from kexue_train.shuffle.plan import estimate_text_bytes

_LOOKED_AT_BYTES, _LOOKED_AT_FILES = 1 << 18, 32
_CHINESE = range(0x4E00, 0xA000)
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")
INSTALLED_DOCS_SIZE = "16MB"
"""Of the corpus that a run makes of the machine's documentation where no data is named."""


@dataclass(frozen=True, slots=True)
class Data:
    """The inputs, as far as their beginnings tell."""

    inputs: tuple[str, ...]
    """As given; none: the run makes a corpus of the documentation on the machine."""
    num_files: int
    text_bytes: int
    """Estimated, by usual rates of compression."""
    num_looked_at: int
    """Documents; the shares below are of them."""
    mean_bytes: float
    """Of a document, in UTF-8."""
    chinese_share: float
    """Of letters."""
    repeated_share: float
    """Of documents that came before, byte for byte."""
    pair_share: float
    """Of documents with two sentences or more, which next sentences are taken from."""
    num_words: int
    """Different ones that occur twice or more in what was looked at; of Chinese, characters. All can become pieces."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """This machine."""

    cpus: int
    memory_bytes: int
    """Free."""
    disk_bytes: int
    """Free where the run would write."""
    gpus: tuple[str, ...] = ()
    """Names with memory, as nvidia-smi tells them."""


def survey_data(inputs: Sequence[str], text_key: str = "text") -> Data:
    """Look at the first documents of some of the inputs, or say what is known of a corpus of installed documentation.

    Raises:
        CorpusError: If an input is missing, unusable, a pipe, or holds no text.
    """
    if not inputs:
        text_bytes = parse_size(INSTALLED_DOCS_SIZE)
        return Data(
            (),
            0,
            text_bytes,
            0,
            mean_bytes=4000.0,
            chinese_share=0.0,
            repeated_share=0.0,
            pair_share=1.0,
            num_words=20_000,
        )
    if "-" in inputs:
        raise CorpusError("-: is read once, so nothing can be known of it beforehand; name a file")
    sources = find_inputs(inputs)
    texts = list(_first_texts(sources, ReadOptions(text_keys=(text_key,), block_bytes=_LOOKED_AT_BYTES)))
    if not texts:
        raise CorpusError(
            f"{', '.join(inputs)}: the first records hold no text under {text_key!r}; name another key with --text-key"
        )
    letters = [char for text in texts for char in text if char.isalpha()]
    return Data(
        inputs=tuple(inputs),
        num_files=len(sources),
        text_bytes=estimate_text_bytes(sources),
        num_looked_at=len(texts),
        mean_bytes=sum(len(text.encode()) for text in texts) / len(texts),
        chinese_share=sum(ord(char) in _CHINESE for char in letters) / max(len(letters), 1),
        repeated_share=1 - len(set(texts)) / len(texts),
        pair_share=sum(bool(len(sentence_cuts(text))) for text in texts) / len(texts),
        num_words=_count_words(texts),
    )


def _count_words(texts: Sequence[str]) -> int:
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    return sum(count > 1 for count in counts.values())


def _first_texts(sources: Sequence[Source], options: ReadOptions) -> Iterator[str]:
    for source in sources[:: -(-len(sources) // _LOOKED_AT_FILES)]:
        for block in islice(read_records(source, options), 1):
            yield from block.texts.to_pylist()


def survey_hardware(folder: Path) -> Hardware:
    """Look at this machine; ``folder`` need not exist."""
    return Hardware(available_cpus(), available_memory_bytes(), free_disk_bytes(folder), _gpus())


def _gpus() -> tuple[str, ...]:
    if not shutil.which("nvidia-smi"):
        return ()
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer is none
        return ()
    return tuple(line.strip() for line in said.splitlines() if line.strip())
