"""Whole-word masking at load time: pure NumPy, a pure function of (seed, epoch, row).

The published rule of RoFormerV2 (``train_mlm.py`` of github.com/ZhuiyiTechnology/roformer-v2): one number u is drawn
per *word*. u < 0.12: every piece becomes [MASK]; u < 0.135: kept but predicted; u < 0.15: every piece becomes an
independent uniform id; else not predicted. One deviation: no special token is drawn (the original excludes only [PAD]).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kexue_train.counter_rng import Purpose, random_words, uniform

IGNORE_INDEX = -100
_EPOCH_SHIFT = np.uint64(40)  # a stream is (epoch, row): 2^24 epochs of 2^40 rows


def mask_tokens(
    input_ids: npt.NDArray[np.integer],
    word_starts: npt.NDArray[np.bool_],
    *,
    seed: int,
    epoch: npt.ArrayLike,
    rows: npt.ArrayLike,
    vocab_size: int,
    special_token_ids: Mapping[str, int],
    mask_probability: float = 0.12,
    keep_probability: float = 0.015,
    random_probability: float = 0.015,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose words to predict and hide them; returns (masked input ids, labels), both (B, S) int64.

    Args:
        input_ids: (B, S) ids below ``vocab_size``.
        word_starts: (B, S) bool; a word is [start, next start). Slot 0 of a row always starts one.
        seed: The run's seed, ``0 <= seed < 2**32``.
        epoch: Epoch of each row: scalar or (B,), below 2²⁴.
        rows: Row number of each row in the sample shards: scalar or (B,), below 2⁴⁰.
        vocab_size: Ids are drawn from ``range(vocab_size)`` without the special ones.
        special_token_ids: Name -> id, with at least "mask"; never hidden, predicted or drawn.
        mask_probability: Share of words replaced by [MASK].
        keep_probability: Share of words predicted but left as they are.
        random_probability: Share of words whose pieces become random ids.

    Labels are the original ids where a piece is predicted and -100 elsewhere.
    """
    batch, length = input_ids.shape
    ids = input_ids.astype(np.int64).ravel()
    streams = np.broadcast_to((np.asarray(epoch, np.uint64) << _EPOCH_SHIFT) | np.asarray(rows, np.uint64), (batch,))
    starts = word_starts.astype(np.bool_)
    starts[:, 0] = True
    first_slots = np.flatnonzero(starts)
    draw = uniform(_words_at(first_slots, streams, length, seed)[0])
    # 0: not predicted, 1: [MASK], 2: kept, 3: random
    edges = np.cumsum([mask_probability, keep_probability, random_probability])
    fate_of_word = ((np.searchsorted(edges, draw, side="right") + 1) % 4).astype(np.int8)
    fate = np.repeat(fate_of_word, np.diff(first_slots, append=batch * length))
    specials = sorted(set(special_token_ids.values()))
    fate[np.isin(ids, specials)] = 0

    labels = np.where(fate > 0, ids, IGNORE_INDEX)
    ids[fate == 1] = special_token_ids["mask"]
    random_slots = np.flatnonzero(fate == 3)
    ids[random_slots] = _ordinary_ids(_words_at(random_slots, streams, length, seed)[1], vocab_size, specials)
    return ids.reshape(batch, length), labels.reshape(batch, length)


def _words_at(
    slots: npt.NDArray[np.intp], streams: npt.NDArray[np.uint64], length: int, seed: int
) -> npt.NDArray[np.uint64]:
    """Two 64-bit random words for each flat slot; only the slots asked for are computed."""
    in_batch, in_row = np.divmod(slots, length)
    return random_words(seed, Purpose.MASKING, streams[in_batch], in_row)


def _ordinary_ids(words: npt.NDArray[np.uint64], vocab_size: int, specials: list[int]) -> npt.NDArray[np.int64]:
    """Map random words to uniform ids below ``vocab_size`` that are not in ``specials`` (sorted)."""
    num_ordinary = np.uint64(vocab_size - len(specials))
    ids = (((words >> np.uint64(32)) * num_ordinary) >> np.uint64(32)).astype(np.int64)
    for special in specials:
        ids += ids >= special
    return ids
