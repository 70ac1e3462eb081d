from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.samples import mask_tokens
from kexue_train.samples.mlm import MaskingRates, mask_rows

SPECIALS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 64


def make(batch: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB, (batch, length)).astype(np.uint16)
    starts = rng.random((batch, length)) < 0.6
    starts[:, 0] = True
    return ids, starts


def run(ids: np.ndarray, starts: np.ndarray, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    arguments = {"seed": 7, "epoch": 0, "rows": np.arange(len(ids)), "vocab_size": VOCAB, "special_token_ids": SPECIALS}
    return mask_tokens(ids, starts, **(arguments | changes))


def philox_4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """The generator in plain integers (Salmon et al., 2011)."""
    x, (k0, k1) = list(counter), key
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(x[0] * 0xD2511F53, 2**32), divmod(x[2] * 0xCD9E8D57, 2**32)
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x


def by_hand(
    ids: np.ndarray, starts: np.ndarray, seed: int, epoch: int, rows: list[int], rates: tuple[float, float, float]
) -> tuple[list, list]:
    """The published rule, one word and one piece at a time, in plain integers and floats."""
    ordinary = [i for i in range(VOCAB) if i not in SPECIALS.values()]
    mask, keep, random = rates
    masked, labels = ids.astype(int).tolist(), np.full(ids.shape, -100).tolist()
    for b, row in enumerate(rows):
        high, low = divmod((epoch << 40) | row, 2**32)
        for s in range(ids.shape[1]):
            if starts[b, s] or s == 0:
                u = philox_4x32((s // 4, 0, low, high), (seed, 4))[s % 4] / 2**32
            if ids[b, s] in SPECIALS.values() or u >= mask + keep + random:
                continue
            labels[b][s] = int(ids[b, s])
            if u < mask:
                masked[b][s] = SPECIALS["mask"]
            elif u >= mask + keep:
                masked[b][s] = ordinary[philox_4x32((s, 1, low, high), (seed, 4))[0] * len(ordinary) >> 32]
    return masked, labels


@settings(deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**24 - 1),
    st.sampled_from([(0.12, 0.015, 0.015), (0.3, 0.3, 0.3), (0.0, 0.0, 1.0), (0.8, 0.1, 0.1), (0.0, 0.0, 0.0)]),
)
def test_masks_are_those_of_the_rule_by_hand(
    batch: int, length: int, seed: int, epoch: int, rates: tuple[float, float, float]
) -> None:
    ids, starts = make(batch, length, seed)
    starts[:, 0] = seed % 2  # slot 0 starts a word whether it is marked or not
    rows = [(seed + 3 * i) % 2**40 for i in range(batch)]
    names = ("mask_probability", "keep_probability", "random_probability")
    chances = dict(zip(names, rates, strict=True))
    masked, labels = run(ids, starts, seed=seed, epoch=epoch, rows=rows, **chances)
    assert (masked.tolist(), labels.tolist()) == by_hand(ids, starts, seed, epoch, rows, rates)


def test_slots_of_predictions_rise_and_hold_what_the_dense_labels_hold() -> None:
    ids, starts = make(5, 37)
    arguments = {"seed": 7, "epoch": 0, "rows": np.arange(5), "vocab_size": VOCAB, "special_token_ids": SPECIALS}
    found = mask_rows(ids, starts, **arguments, rates=MaskingRates())
    masked, labels = run(ids, starts)
    assert found.slots.tolist() == np.flatnonzero(labels != -100).tolist()
    assert found.labels.tolist() == labels[labels != -100].tolist()
    np.testing.assert_array_equal(found.input_ids, masked)


@pytest.mark.parametrize("shares", [(-0.1, 0.1, 0.1), (1.1, 0.0, 0.0), (0.6, 0.3, 0.2), (float("nan"), 0.0, 0.0)])
def test_rates_that_are_no_probabilities_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="their sum at most 1"):
        MaskingRates(*shares)


def test_shares_by_word_are_12_and_1_5_and_1_5_percent() -> None:
    ids = np.full((400, 512), 9)
    starts = make(400, 512)[1]
    masked, labels = run(ids, starts)
    first = starts & (labels != -100)
    num_words = starts.sum()
    replaced = first & ~np.isin(masked, [4, 9])
    for share, expected in (
        (first.sum(), 0.15),
        ((first & (masked == 4)).sum(), 0.12),
        ((first & (masked == 9)).sum(), 0.015 + 0.015 / (VOCAB - 5)),
        (replaced.sum(), 0.015 * (1 - 1 / (VOCAB - 5))),
    ):
        assert abs(share / num_words - expected) < 4 * np.sqrt(expected * (1 - expected) / num_words)


def test_pieces_of_a_word_share_its_fate() -> None:
    ids, starts = make(50, 256)
    ids = np.maximum(ids, 5)
    masked, labels = run(ids, starts)
    word = np.cumsum(starts.ravel())
    for flag in (labels != -100, masked == 4):
        per_word = np.bincount(word, flag.ravel()) / np.bincount(word).clip(1)
        assert set(np.unique(per_word)) == {0.0, 1.0}


def test_special_tokens_are_never_hidden_predicted_or_drawn() -> None:
    ids, starts = make(50, 256)
    masked, labels = run(ids, starts, mask_probability=0.0, keep_probability=0.0, random_probability=1.0)
    special = ids < 5
    assert (masked[special] == ids[special]).all()
    assert (labels[special] == -100).all()
    assert set(np.unique(masked[~special])) == set(range(5, VOCAB))


def test_labels_are_the_original_ids_where_predicted_and_the_rest_is_untouched() -> None:
    ids, starts = make(50, 256)
    masked, labels = run(ids, starts)
    assert (labels[labels != -100] == ids[labels != -100]).all()
    assert (masked[labels == -100] == ids[labels == -100]).all()
    assert masked.dtype == labels.dtype == np.int64


def test_a_row_has_the_same_mask_in_any_batch() -> None:
    ids, starts = make(8, 128)
    rows, epochs = np.arange(8) + 1000, np.array([0, 0, 1, 1, 2, 2, 3, 3])
    together = run(ids, starts, rows=rows, epoch=epochs)
    for i in (5, 0, 7):
        alone = run(ids[[i]], starts[[i]], rows=rows[[i]], epoch=int(epochs[i]))
        assert all((a[i] == b[0]).all() for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 8}, {"rows": np.arange(1, 5)}])
def test_another_epoch_seed_or_row_has_another_mask(change: dict) -> None:
    ids, starts = make(4, 128)
    assert (run(ids, starts)[1] != run(ids, starts, **change)[1]).any()


def test_nothing_is_changed_in_place() -> None:
    ids, starts = make(4, 32)
    starts[:, 0] = False
    before = ids.copy(), starts.copy()
    run(ids, starts)
    np.testing.assert_array_equal(ids, before[0])
    np.testing.assert_array_equal(starts, before[1])
