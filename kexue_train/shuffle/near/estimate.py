"""How much disk the search for near duplicates will take, from the first documents of some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.streams import is_pipe
from kexue_train.foundation.arrow_arrays import values_bytes
from kexue_train.foundation.errors import KexueError
from kexue_train.shuffle.near.config import NearConfig
from kexue_train.shuffle.near.documents import ENTRY
from kexue_train.shuffle.near.minhash import sign
from kexue_train.shuffle.rows import as_binary

_NUM_INPUTS, _LOOK_BYTES = 8, 2**18
_BAND_BYTES = 20
"""Of a document's number under a band's key: both, and a length."""
_USUAL_RATE = 1.2
"""For inputs that can be read only once; measured 0.7 on English texts of 1,800 bytes, 1.3 on Chinese."""


def measure_disk_rate(sources: Sequence[Source], options: ReadOptions, near: NearConfig) -> float:
    """Return the bytes on disk for a byte of text that lie there between the passes, beside the spill."""
    chosen = [source for source in sources if not is_pipe(source.path)]
    chosen = chosen[:: -(-len(chosen) // _NUM_INPUTS)] if chosen else []
    text_bytes = disk_bytes = 0
    for source in chosen:
        with suppress(KexueError, OSError):  # the first pass will say so
            for block in islice(read_records(source, replace(options, block_bytes=_LOOK_BYTES)), 1):
                texts = as_binary(block.texts)
                samples = sign(texts, near, 0).samples
                text_bytes += values_bytes(texts)
                disk_bytes += len(texts) * (near.bands * _BAND_BYTES + ENTRY.itemsize) + samples.hashes.nbytes
    return disk_bytes / text_bytes if text_bytes else _USUAL_RATE
