"""Sets of pairs on disk, and vectors whose cosines are known."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_set(folder: Path, records: list[dict[str, object]], name: str = "test.jsonl.gz") -> Path:
    """A set's file, gzipped if its name says so."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder


def make_records(number: int = 200, *, seed: int = 0) -> list[dict[str, object]]:
    """Pairs of different sentences of letters; the score is a half of what the first says in its last word."""
    random = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(random.choice(list(LETTERS), 6))

    scores = random.integers(0, 11, number) / 2
    return [
        {"text_a": f"{words()} {i} says {int(2 * score)}", "text_b": f"{words()} {i} q", "score": float(score)}
        for i, score in enumerate(scores.tolist())
    ]


def known_vectors(sentences: list[str], scores_of: dict[str, float]) -> np.ndarray:
    """(n, 2): sentences in ``scores_of`` at an angle that falls with their score, the others along the first axis."""
    angles = np.array([np.pi / 2 * (1 - scores_of[s] / 5) if s in scores_of else 0.0 for s in sentences])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
