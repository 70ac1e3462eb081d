from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kexue_train.samples.config import SampleConfig
from kexue_train.samples.phrases import count_neighbours, find_phrases
from kexue_train.samples.segmentation import segmenter, write_dictionary

TEXTS = st.lists(st.text(alphabet="甲乙丙丁豈𠀀a，", max_size=30), max_size=6)


def random_text(alphabet: str, num_chars: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(alphabet), num_chars))


@given(TEXTS)
def test_counts_are_those_of_a_plain_loop(texts: list[str]) -> None:
    counts = count_neighbours(texts)
    chinese = [c for text in texts for c in text if c not in "a，"]
    pairs = Counter(a + b for text in texts for a, b in pairwise(text) if not {a, b} & set("a，"))
    assert {chr(c): int(counts.characters[c]) for c in np.flatnonzero(counts.characters)} == Counter(chinese)
    found = zip(counts.pairs.tolist(), counts.pair_counts.tolist(), strict=True)
    assert {chr(pair >> 21) + chr(pair & 0x1FFFFF): count for pair, count in found} == pairs
    singles = Counter(chinese)
    pmi = [
        math.log(count / pairs.total() / (singles[a] / len(chinese) * singles[b] / len(chinese)))
        for (a, b), count in sorted(pairs.items())
    ]
    np.testing.assert_allclose(counts.pmi(), pmi, rtol=1e-9, atol=1e-12)


def test_independent_characters_do_not_attract_and_make_no_phrase() -> None:
    text = random_text("春夏秋冬东南西北", 200_000, seed=1)
    assert abs(count_neighbours([text]).pmi()).max() < 0.1
    assert find_phrases(lambda: [text], min_pmi=0.5).keys() == set(text)


def test_a_planted_phrase_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    alphabet = [chr(0x4E00 + i) for i in range(200)]
    planted = "龘靐齉"
    text = "".join(planted if rng.random() < 0.02 else rng.choice(alphabet) for _ in range(50_000))
    phrases = find_phrases(lambda: [text])
    assert [phrase for phrase in phrases if len(phrase) > 1] == [planted]
    assert phrases[planted] == text.count(planted)


@settings(max_examples=20)
@given(TEXTS, st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_matter(texts: list[str], random) -> None:
    texts = texts * 5
    mixed = random.sample(texts, len(texts))
    one, other = (find_phrases(lambda part=part: part, min_pmi=0.1) for part in (texts, mixed))
    assert one == other
    assert one.keys() >= set("".join(texts)) - set("a，")


def best_score(text: str, lexicon: dict[str, int]) -> float:
    """Largest sum of ln p over the covers of ``text``, by dynamic programming from left to right."""
    total = sum(lexicon.values())
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            if count := lexicon.get(text[start:end]):
                best[end] = max(best[end], best[start] + math.log(count / total))
    return best[-1]


LEXICON = {**dict.fromkeys("甲乙丙丁豈𠀀", 3), "甲": 9, "甲乙": 5, "乙丙": 7, "甲乙丙": 2, "丙丁豈": 4, "𠀀𠀀": 6}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="甲乙丙丁豈𠀀", min_size=1, max_size=25))
def test_a_text_is_covered_by_the_likeliest_words(tmp_path: Path, text: str) -> None:
    write_dictionary(tmp_path / "words.txt", LEXICON)
    words = segmenter(SampleConfig(words="pmi"), tmp_path / "words.txt")(text)
    assert "".join(words) == text
    score = sum(math.log(LEXICON[word] / sum(LEXICON.values())) for word in words)
    assert score == pytest.approx(best_score(text, LEXICON), abs=1e-9)
