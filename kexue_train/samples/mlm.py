"""Whole-word masking at load time: pure NumPy, a pure function of (seed, epoch, row).

The published rule of RoFormerV2 (``train_mlm.py`` of github.com/ZhuiyiTechnology/roformer-v2): one number u is drawn
per *word*. u < 0.12: every piece becomes [MASK]; u < 0.135: kept but predicted; u < 0.15: every piece becomes an
independent uniform id; else not predicted. One deviation: no special token is drawn (the original excludes only [PAD]).

u has 32 bits, so a rate holds to within 2^-33; an id is drawn by multiplying 32 bits, so its chance to within 2^-32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.counter_rng import Purpose, philox, random_words
from kexue_train.samples.schema import ranges

IGNORE_INDEX = -100
_EPOCH_SHIFT = np.uint64(40)  # a stream is (epoch, row): 2^24 epochs of 2^40 rows
_REPLACEMENTS = np.uint64(1 << 32)  # added to a slot: apart from the counters of the words' draws
_ROUNDING = 1e-9  # by which a sum of decimal fractions may miss 1
_MASK, _KEEP, _RANDOM = range(3)


@dataclass(frozen=True)
class MaskingRates:
    """Shares of words: what becomes of a word, by one draw.

    Raises:
        ValueError: If one is not in [0, 1], or they sum to more than 1.
    """

    mask_probability: float = 0.12
    """Every piece becomes [MASK] and is predicted."""
    keep_probability: float = 0.015
    """Every piece stays and is predicted."""
    random_probability: float = 0.015
    """Every piece becomes a random one and is predicted."""

    def __post_init__(self) -> None:
        shares = (self.mask_probability, self.keep_probability, self.random_probability)
        if not all(0 <= share <= 1 for share in shares) or self.total > 1 + _ROUNDING:
            raise ValueError(
                f"{', '.join(f'{name}={share:g}' for name, share in vars(self).items())} sum to {self.total:g}; "
                "each must be in [0, 1] and their sum at most 1"
            )

    @property
    def total(self) -> float:
        """Share of words that are predicted."""
        return self.mask_probability + self.keep_probability + self.random_probability


class MaskedRows(NamedTuple):
    """Rows to train on, and what is to be predicted in them."""

    input_ids: npt.NDArray[np.int64]
    """(B, S), masked."""
    slots: npt.NDArray[np.int64]
    """(n,) rising numbers of the predicted slots, counted through all rows: row * S + slot."""
    labels: npt.NDArray[np.int64]
    """(n,) the original ids there."""


def mask_rows(
    input_ids: npt.NDArray[np.integer],
    word_starts: npt.NDArray[np.bool_],
    *,
    seed: int,
    epoch: npt.ArrayLike,
    rows: npt.ArrayLike,
    vocab_size: int,
    special_token_ids: Mapping[str, int],
    rates: MaskingRates,
) -> MaskedRows:
    """Choose words to predict and hide them.

    Args:
        input_ids: (B, S) ids below ``vocab_size``.
        word_starts: (B, S) bool; a word is [start, next start). Slot 0 of a row always starts one.
        seed: The run's seed, ``0 <= seed < 2**32``.
        epoch: Epoch of each row: scalar or (B,), below 2²⁴.
        rows: Row number of each row in the sample shards: scalar or (B,), below 2⁴⁰.
        vocab_size: Ids are drawn from ``range(vocab_size)`` without the special ones.
        special_token_ids: Name -> id, with at least "mask"; never hidden, predicted or drawn.
        rates: Shares of words to hide, keep and replace.
    """
    batch, length = input_ids.shape
    streams = np.broadcast_to((np.asarray(epoch, np.uint64) << _EPOCH_SHIFT) | np.asarray(rows, np.uint64), (batch,))
    specials = sorted(set(special_token_ids.values()))
    ids = input_ids.astype(np.int64).ravel()
    slots, fates = _predicted_slots(word_starts, _draws(streams, length, seed), rates)
    ordinary = ~np.isin(ids[slots], specials)
    slots, fates = slots[ordinary], fates[ordinary]
    labels = ids[slots]
    ids[slots[fates == _MASK]] = special_token_ids["mask"]
    replaced = slots[fates == _RANDOM]
    row, slot = np.divmod(replaced, length)
    words = random_words(seed, Purpose.MASKING, streams[row], slot.astype(np.uint64) + _REPLACEMENTS)[0]
    ids[replaced] = _ordinary_ids(words, vocab_size, specials)
    return MaskedRows(ids.reshape(batch, length), slots, labels)


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
    """``mask_rows`` with a label per slot; returns (masked input ids, labels), both (B, S) int64.

    Labels are the original ids where a piece is predicted and -100 elsewhere.
    """
    masked = mask_rows(
        input_ids,
        word_starts,
        seed=seed,
        epoch=epoch,
        rows=rows,
        vocab_size=vocab_size,
        special_token_ids=special_token_ids,
        rates=MaskingRates(mask_probability, keep_probability, random_probability),
    )
    labels = np.full(input_ids.shape, IGNORE_INDEX, np.int64)
    labels.ravel()[masked.slots] = masked.labels
    return masked.input_ids, labels


def _draws(streams: npt.NDArray[np.uint64], length: int, seed: int) -> npt.NDArray[np.uint32]:
    """Return 32 random bits for every slot, (B, length): word s mod 4 of the generator at (stream, s div 4)."""
    counters = np.arange((length + 3) // 4, dtype=np.uint64)
    low, high = streams & np.uint64(0xFFFFFFFF), streams >> np.uint64(32)
    words = philox((counters, 0, low[:, None], high[:, None]), (seed & 0xFFFFFFFF, int(Purpose.MASKING)))
    draws = np.empty((len(streams), len(counters), 4), np.uint32)
    for i in range(4):
        draws[:, :, i] = words[i]
    return draws.reshape(len(streams), -1)[:, :length]


def _predicted_slots(
    word_starts: npt.NDArray[np.bool_], draws: npt.NDArray[np.uint32], rates: MaskingRates
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Return the slots of the words that are chosen by the draw at their first slot, and the fate of each slot."""
    starts = word_starts.astype(np.bool_)
    starts[:, 0] = True
    first_slots = np.flatnonzero(starts)
    draw_of_word = draws.ravel()[first_slots]
    shares = np.cumsum([rates.mask_probability, rates.keep_probability, rates.random_probability])
    masked, kept, replaced = np.rint(shares.clip(max=1.0) * 2.0**32).astype(np.uint64)
    chosen = np.flatnonzero(draw_of_word < replaced)
    draw = draw_of_word[chosen]
    fates = (draw >= masked).astype(np.int8) + (draw >= kept)
    first = first_slots[chosen]
    lengths = np.append(first_slots, draws.size)[chosen + 1] - first
    return ranges(first, lengths), np.repeat(fates, lengths)


def _ordinary_ids(words: npt.NDArray[np.uint64], vocab_size: int, specials: list[int]) -> npt.NDArray[np.int64]:
    """Map random words to uniform ids below ``vocab_size`` that are not in ``specials`` (sorted)."""
    num_ordinary = np.uint64(vocab_size - len(specials))
    ids = (((words >> np.uint64(32)) * num_ordinary) >> np.uint64(32)).astype(np.int64)
    for special in specials:
        ids += ids >= special
    return ids
