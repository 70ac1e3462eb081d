"""The published filters against a slow reading of their definitions, one text at a time in plain Python."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kexue_train.corpus.config import FilterConfig
from kexue_train.corpus.filters import REASONS, drop_reasons
from kexue_train.corpus.published_filters import RULES
from kexue_train.corpus.text_view import TextView
from kexue_train.foundation.errors import ConfigError

CORPUS = Path(__file__).parents[2].parent / "shared" / "data" / "corpus"
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
ENDS = ".?!。！？…।؟՞｡।”\"'’」』）)"
SPACE = " \t\n\x0b\x0c\r\u00a0\u3000"


def words_of(text):
    return re.findall(rf"[^{SPACE}]+", text)


def lines_of(text, separator="\n"):
    return [line.strip(SPACE) for line in re.split(separator, text) if line.strip(SPACE)]


def paragraphs_of(text):
    return lines_of(text, r"\n\n+")


def share(values, total):
    return sum(values) / max(total, 1)


def repeated(parts):
    return share((part in parts[:place] for place, part in enumerate(parts)), len(parts))


def repeated_chars(parts):
    return share((len(part) * (part in parts[:place]) for place, part in enumerate(parts)), sum(map(len, parts)))


def top_gram(text, length):
    words = words_of(text)
    grams = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    best = max(((count, sum(map(len, gram))) for gram, count in grams.items()), default=(0, 0))
    return best[0] * best[1] / max(sum(map(len, words)), 1) if best[0] > 1 else 0


def repeated_grams(text, length):
    words, covered, seen = words_of(text), set(), set()
    for start in range(len(words) - length + 1):
        gram = tuple(words[start : start + length])
        if gram in seen:
            covered |= set(range(start, start + length))
        seen.add(gram)
    return share((len(words[place]) for place in covered), sum(map(len, words)))


def sentences(text):
    kept = [line for line in lines_of(text) if len(words_of(line)) >= 3 and line[-1] in ENDS]
    return sum(max(1, len(re.findall(r"[.?!。！？]+", line))) for line in kept)


SLOW = {
    "fewer than 50 words": lambda t: len(words_of(t)),
    "more than 100,000 words": lambda t: len(words_of(t)),
    "words shorter than 3 in the mean": lambda t: share(map(len, words_of(t)), len(words_of(t))),
    "words longer than 10 in the mean": lambda t: share(map(len, words_of(t)), len(words_of(t))),
    "more than 0.1 hashes per word": lambda t: t.count("#") / max(len(words_of(t)), 1),
    "more than 0.1 ellipses per word": lambda t: (
        (t.count("…") + sum(len(run) // 3 for run in re.findall(r"\.+", t))) / max(len(words_of(t)), 1)
    ),
    "more than 90% of the lines begin with a bullet": lambda t: share(
        (line[0] in "•‣⁃▪▫◦●○■□–—-*·・‧∙⦿" for line in lines_of(t)), len(lines_of(t))
    ),
    "fewer than 80% of the words have a letter": lambda t: (
        share((any(c.isalpha() for c in word) for word in words_of(t)), len(words_of(t))) if words_of(t) else 1
    ),
    "fewer than 2 of 8 English stop words": lambda t: len(
        {re.sub(r"^[\W\d_]+|[\W\d_]+$", "", word.lower()) for word in words_of(t)} & STOP_WORDS
    ),
    "more than 30% of the lines are repeats": lambda t: repeated(lines_of(t)),
    "more than 30% of the paragraphs are repeats": lambda t: repeated(paragraphs_of(t)),
    "more than 20% of it in repeated lines": lambda t: repeated_chars(lines_of(t)),
    "more than 20% of it in repeated paragraphs": lambda t: repeated_chars(paragraphs_of(t)),
    "a curly bracket": lambda t: t.count("{"),
    "lorem ipsum": lambda t: t.lower().count("lorem ipsum"),
    "fewer than 5 sentences": sentences,
    "at most 12% of the lines end with a mark": lambda t: (
        share((line[-1] in ENDS for line in lines_of(t)), len(lines_of(t))) if lines_of(t) else 1
    ),
    "at least 10% of it in repeated lines": lambda t: repeated_chars(lines_of(t)),
    "at least 67% of the lines have fewer than 30 characters": lambda t: share(
        (len(line) < 30 for line in lines_of(t)), len(lines_of(t))
    ),
}


def slow_measure(rule):
    if found := re.search(r"in one run of (\d+) words", rule.reason):
        return lambda text: top_gram(text, int(found[1]))
    if found := re.search(r"in repeated runs of (\d+) words", rule.reason):
        return lambda text: repeated_grams(text, int(found[1]))
    return SLOW.get(rule.reason)


PIECES = st.sampled_from(
    ["the", "The", "of", "with,", "cat", "a", "12", "#", "…", "...", "....", ".", "!", "{", " ", " ", " ", "\n", "\n\n",
     "- item", "•", "中文", "。", "\u3000", "x" * 12, "(and)", "lorem ipsum", "one two three.", "\t"]
)  # fmt: skip
TEXTS = st.lists(st.lists(PIECES, max_size=60).map("".join), min_size=1, max_size=5)


@given(TEXTS)
@example(["", " ", "\n\n", "a"])
@example(["one two one two one two", "a b c d e f a b c d e f"])
def test_every_measure_is_what_its_definition_says(texts):
    view = TextView(pa.array(texts, pa.large_string()))
    for rule in RULES:
        if slow := slow_measure(rule):
            assert rule.measure(view).tolist() == pytest.approx([slow(text) for text in texts]), rule.reason


def test_every_rule_but_one_is_compared():
    alone = {rule.reason for rule in RULES if slow_measure(rule) is None}
    assert alone == {"more than 30% of the lines end with an ellipsis"}


def test_lines_that_end_with_an_ellipsis_are_counted():
    rule = next(rule for rule in RULES if "end with an ellipsis" in rule.reason)
    view = TextView(pa.array(["a...\nb…\nc\nd..\n... e"], pa.large_string()))
    assert rule.measure(view).tolist() == [0.4]


_RANDOM = random.Random(1)
_VOCABULARY = [
    "man",
    "dog",
    "river",
    "city",
    "people",
    "water",
    "number",
    "light",
    "story",
    "window",
    "of",
    "and",
    "have",
]
GOOD = " ".join(f"The {' '.join(_RANDOM.choices(_VOCABULARY, k=9))}." for _ in range(20))
BAD = {
    "gopher": ["too short", GOOD + " #" * 60, "word " * 60, "- a the of and\n" * 60],
    "gopher_repetition": ["The same line again and again.\n" * 9, "a b c d e f g h i j k. " * 9],
    "c4": [GOOD + " {", GOOD + " Lorem Ipsum", "One sentence only, that is all."],
    "fineweb": ["no mark at the end of this long line of words\n" * 3, "short.\nlines.\nall.\nof.\nthem."],
}


@pytest.mark.parametrize("name", BAD)
def test_a_filter_drops_by_its_own_rules_and_says_which(name):
    texts = pa.array([GOOD, *BAD[name]], pa.large_string())
    reasons = drop_reasons(texts, FilterConfig.parse({"published": [name]}, where="test")).tolist()
    assert reasons[0] == 0
    assert all(reasons[1:])
    assert all(REASONS[reason - 1].startswith(f"{name}: ") for reason in reasons[1:])


def test_neighbours_and_the_number_of_texts_change_nothing():
    texts = [GOOD, "x", *(text for texts in BAD.values() for text in texts)] * 40
    rules = FilterConfig.parse({"published": list(BAD)}, where="test")
    together = drop_reasons(pa.array(texts, pa.large_string()), rules).tolist()
    assert together == [drop_reasons(pa.array([text], pa.large_string()), rules)[0] for text in texts]


def test_rules_about_words_do_not_judge_chinese():
    texts = ["本文讨论中文网页的质量。" * 2 + "\n它没有空格。", "2014 年 : 12 、 34 , 网页 的 质量 (abc) 1999 %"]
    rules = FilterConfig.parse({"published": ["gopher", "c4"]}, where="test")
    assert drop_reasons(pa.array(texts, pa.large_string()), rules).tolist() == [0, 0]


@pytest.mark.parametrize("written", ["gopher", ["gopher"], {"published": ["gopher"]}])
def test_names_may_be_written_alone(written):
    assert FilterConfig.model_validate(written).published == ("gopher",)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="gopher_repetition"):
        FilterConfig.parse({"published": ["gofer"]}, where="test")


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the corpora")
@pytest.mark.parametrize(("file", "most"), [("en/enwiki-000", 0.05), ("zh/zhwiki-000", 0.12)])
def test_most_of_an_encyclopedia_stays(file, most):
    with gzip.open(CORPUS / f"{file}.jsonl.gz", "rt", encoding="utf-8", newline="\n") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(400), strict=False)]
    rules = FilterConfig.parse({"published": list(BAD)}, where="test")
    dropped = (drop_reasons(pa.array(texts, pa.large_string()), rules) > 0).mean()
    assert 0 < dropped < most
