from __future__ import annotations

import numpy as np
import pytest

from kexue_train.foundation.arrow_arrays import to_binary
from kexue_train.shuffle.near import minhash
from kexue_train.shuffle.near.config import NearConfig
from kexue_train.shuffle.near.minhash import sign, similarities
from tests.reference.near_duplicates import jaccard, ngrams


def pairs_of(share, count, words=200):
    """Return pairs of texts in which about ``share`` of the words differ, and their similarities."""
    rng = np.random.default_rng(7)
    lefts = rng.integers(0, 5000, (count, words))
    rights = np.where(rng.random(lefts.shape) < share, rng.integers(0, 5000, lefts.shape), lefts)
    texts = [[" ".join(f"w{i}" for i in row) for row in rows.tolist()] for rows in (lefts, rights)]
    exact = [jaccard(ngrams(a, 3), ngrams(b, 3)) for a, b in zip(*texts, strict=True)]
    return [text.encode() for pair in zip(*texts, strict=True) for text in pair], np.array(exact)


def of_pairs(samples, count):
    return similarities(samples, np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2))


def test_the_similarity_of_texts_below_the_sample_size_is_exact():
    texts, exact = pairs_of(0.05, 30)
    signed = sign(to_binary(texts), NearConfig(ngram=3), 0)
    assert of_pairs(signed.samples, 30).tolist() == exact.tolist()


def test_the_similarity_of_longer_texts_has_the_stated_error(monkeypatch):
    monkeypatch.setattr(minhash, "SAMPLE_SIZE", 64)
    texts, exact = pairs_of(0.05, 400)
    found = of_pairs(sign(to_binary(texts), NearConfig(ngram=3), 0).samples, 400)
    errors = (found - exact) / np.sqrt(exact * (1 - exact) / 64)
    assert abs(errors.mean()) < 0.2  # 4 standard errors of a mean of 400
    assert errors.std() < 1.1


@pytest.mark.parametrize("share", [0.03, 0.08])
def test_bands_are_shared_with_the_stated_chance(share):
    texts, exact = pairs_of(share, 600)
    near = NearConfig(ngram=3, bands=6, rows=4, threshold=0.7)
    keys = sign(to_binary(texts), near, 3).keys
    found = (keys[::2] == keys[1::2]).any(axis=1)
    chances = np.array([near.chance(value) for value in exact])
    deviation = np.sqrt((chances * (1 - chances)).sum())
    assert abs(found.sum() - chances.sum()) < 4 * deviation


def test_a_signature_depends_on_its_text_and_the_seed_alone(monkeypatch):
    texts = [f"{'word ' * (i % 7)}{i} and {i * i} of {i % 3} 的一是 {i}".encode() * (1 + i % 40) for i in range(60)]
    near = NearConfig(bands=4, rows=2, ngram=2, threshold=0.8)
    together = sign(to_binary(texts), near, 1)
    monkeypatch.setattr("kexue_train.shuffle.near.ngrams.PIECE_BYTES", 300)
    monkeypatch.setattr("kexue_train.shuffle.near.ngrams._LOOK_BACK", 64)
    monkeypatch.setattr(minhash, "_CHUNK_GRAMS", 7)
    for i in (0, 5, 39, 59):
        alone = sign(to_binary(texts[i : i + 1]), near, 1)
        assert alone.keys.tolist() == together.keys[i : i + 1].tolist()
        first, end = together.samples.bounds[i : i + 2]
        assert alone.samples.hashes.tolist() == together.samples.hashes[first:end].tolist()
    assert not (sign(to_binary(texts), near, 2).keys == together.keys).any()
