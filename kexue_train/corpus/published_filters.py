"""Filters of published corpora, by name and with their published limits.

* ``gopher`` and ``gopher_repetition``: Rae et al. 2021, https://arxiv.org/abs/2112.11446, section A.1.1 and table A1
* ``c4``: Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2, on whole documents: no line is taken out
* ``fineweb``: Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6

They were made for English web pages. Rules about words mean nothing in scripts that do not set them apart, so a text
that is mostly in one of these (Chinese, Japanese, Thai...) is judged by its lines and paragraphs alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from kexue_train.corpus.text_view import Bools, Spans, TextView, hash_words, repeats

Values = npt.NDArray[Any]
_REPETITION = "gopher_repetition"
_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = "•‣⁃▪▫◦●○■□–—-*·・‧∙⦿"
_ELLIPSIS = "…"
_ENDS = ".?!。！？…।؟՞｡।”\"'’」』）)"
_SENTENCE_ENDS = ".?!。！？"


class PublishedRule(NamedTuple):
    """One limit of a published filter."""

    filter: str
    reason: str
    """Why a text is dropped, in a few words."""
    measure: Callable[[TextView], Values]
    """One number for each text."""
    limit: float
    is_lower_limit: bool = False
    includes_limit: bool = False
    """Whether a value that equals the limit drops a text too."""
    is_about_words: bool = False

    def drops(self, view: TextView) -> Bools:
        """Return which texts it drops."""
        values = self.measure(view)
        is_beyond: Bools = values < self.limit if self.is_lower_limit else values > self.limit
        if self.includes_limit:
            is_beyond = is_beyond | (values == self.limit)
        return is_beyond & ~view.is_unspaced if self.is_about_words else is_beyond


def _among(codes: npt.NDArray[np.uint32], chars: str) -> Bools:
    return np.isin(codes, np.array([ord(char) for char in chars], np.uint32))


def _num_words(view: TextView) -> Values:
    return view.words.numbers


def _mean_word_length(view: TextView) -> Values:
    return view.words.chars / np.maximum(view.words.numbers, 1)


def _hashes_per_word(view: TextView) -> Values:
    return view.count(view.codes == ord("#")) / np.maximum(view.words.numbers, 1)


def _ellipses_per_word(view: TextView) -> Values:
    dots = _ends_of_three_dots(view)
    return view.count(dots | (view.codes == ord(_ELLIPSIS))) / np.maximum(view.words.numbers, 1)


def _ends_of_three_dots(view: TextView) -> Bools:
    """Return the third, sixth... of dots that follow each other."""
    is_dot = view.codes == ord(".")
    places = np.arange(1, len(is_dot) + 1)
    before = np.maximum.accumulate(np.where(is_dot, (places - 1) * view.begins_text, places))
    result: Bools = is_dot & ((places - before) % 3 == 0)
    return result


def _bullet_lines(view: TextView) -> Values:
    return view.lines.share(_among(view.first_chars(view.lines), _BULLETS))


def _ellipsis_lines(view: TextView) -> Values:
    dots = np.concatenate([[0], np.cumsum(_ends_of_three_dots(view))])
    ends = view.lines.ends
    return view.lines.share((view.last_chars(view.lines) == ord(_ELLIPSIS)) | (dots[ends] > dots[ends - 1]))


def _words_with_letters(view: TextView) -> Values:
    return np.where(view.words.numbers > 0, view.words.share(view.word_has_letter), 1.0)


def _stop_words(view: TextView) -> Values:
    """Count how many of the eight a text has."""
    found = np.zeros(view.num_texts, np.int64)
    for word in _hashes_of_stop_words():
        found += view.words.sum(view.lower_hashes == word) > 0
    return found


@functools.cache
def _hashes_of_stop_words() -> list[np.uint64]:
    return list(hash_words(*_STOP_WORDS))


def _repeated(choose: Callable[[TextView], Spans]) -> Callable[[TextView], Values]:
    return lambda view: choose(view).share(choose(view).is_repeat)


def _repeated_chars(choose: Callable[[TextView], Spans]) -> Callable[[TextView], Values]:
    return lambda view: choose(view).char_share(choose(view).is_repeat)


def _top_gram(length: int) -> Callable[[TextView], Values]:
    """Return the share of the words' characters in the run of ``length`` words that occurs most; 0 if none repeats."""

    def measure(view: TextView) -> Values:
        hashes, first = view.grams(length)
        shares = np.zeros(view.num_texts)
        if not len(first):
            return shares
        words = view.words
        ends = np.concatenate([[0], np.cumsum(words.lengths)])
        order = np.lexsort((hashes, words.owners[first]))
        keys, owners = hashes[order], words.owners[first][order]
        is_new = np.concatenate([[True], (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])])
        at = np.flatnonzero(is_new)
        counts = np.diff(np.append(at, len(keys)))
        chars = (ends[first + length] - ends[first])[order][at] * counts
        chars[counts < 2] = 0
        # The most frequent one, the longest of several: a maximum over (count, characters).
        best = np.lexsort((chars, counts, owners[at]))
        last = np.flatnonzero(np.append(owners[at][best][1:] != owners[at][best][:-1], True))
        shares[owners[at][best][last]] = chars[best][last]
        return shares / np.maximum(words.chars, 1)

    return measure


def _repeated_grams(length: int) -> Callable[[TextView], Values]:
    """Return the share of the words' characters in runs of ``length`` words that stood before; each counts once."""

    def measure(view: TextView) -> Values:
        hashes, first = view.grams(length)
        words = view.words
        again = first[repeats(hashes, words.owners[first])]
        covered = np.zeros(len(words.owners) + 1, np.int64)
        np.add.at(covered, again, 1)
        np.add.at(covered, again + length, -1)
        return words.char_share(np.cumsum(covered)[:-1] > 0)

    return measure


def _num_sentences(view: TextView) -> Values:
    """Count the sentences in lines that C4 keeps: of three words or more, with a mark at their end."""
    lines = view.lines
    begins = np.zeros(len(view.codes), bool)
    begins[view.words.starts] = True
    is_kept = (view.count_in(lines, begins) >= 3) & _among(view.last_chars(lines), _ENDS)
    is_mark = _among(view.codes, _SENTENCE_ENDS)
    is_mark[:-1] &= ~is_mark[1:] | view.begins_text[1:]  # of several marks the last one
    return lines.sum(np.maximum(view.count_in(lines, is_mark), 1) * is_kept)


def _curly_brackets(view: TextView) -> Values:
    return view.count(view.codes == ord("{"))


def _lorem_ipsum(view: TextView) -> Values:
    return np.asarray(pc.count_substring(view.texts, "lorem ipsum", ignore_case=True), np.int64)


def _lines_with_end(view: TextView) -> Values:
    share = view.lines.share(_among(view.last_chars(view.lines), _ENDS))
    return np.where(view.lines.numbers > 0, share, 1.0)


def _short_lines(view: TextView) -> Values:
    return view.lines.share(view.lines.lengths < 30)


def _lines(view: TextView) -> Spans:
    return view.lines


def _paragraphs(view: TextView) -> Spans:
    return view.paragraphs


_about_words = functools.partial(PublishedRule, is_about_words=True)

RULES: tuple[PublishedRule, ...] = (
    _about_words("gopher", "fewer than 50 words", _num_words, 50, is_lower_limit=True),
    _about_words("gopher", "more than 100,000 words", _num_words, 100_000),
    _about_words("gopher", "words shorter than 3 in the mean", _mean_word_length, 3, is_lower_limit=True),
    _about_words("gopher", "words longer than 10 in the mean", _mean_word_length, 10),
    _about_words("gopher", "more than 0.1 hashes per word", _hashes_per_word, 0.1),
    _about_words("gopher", "more than 0.1 ellipses per word", _ellipses_per_word, 0.1),
    PublishedRule("gopher", "more than 90% of the lines begin with a bullet", _bullet_lines, 0.9),
    PublishedRule("gopher", "more than 30% of the lines end with an ellipsis", _ellipsis_lines, 0.3),
    _about_words("gopher", "fewer than 80% of the words have a letter", _words_with_letters, 0.8, is_lower_limit=True),
    _about_words("gopher", "fewer than 2 of 8 English stop words", _stop_words, 2, is_lower_limit=True),
    PublishedRule(_REPETITION, "more than 30% of the lines are repeats", _repeated(_lines), 0.3),
    PublishedRule(_REPETITION, "more than 30% of the paragraphs are repeats", _repeated(_paragraphs), 0.3),
    PublishedRule(_REPETITION, "more than 20% of it in repeated lines", _repeated_chars(_lines), 0.2),
    PublishedRule(_REPETITION, "more than 20% of it in repeated paragraphs", _repeated_chars(_paragraphs), 0.2),
    *(
        _about_words(_REPETITION, f"more than {limit:.0%} of it in one run of {length} words", _top_gram(length), limit)
        for length, limit in ((2, 0.20), (3, 0.18), (4, 0.16))
    ),
    *(
        _about_words(
            _REPETITION, f"more than {limit:.0%} of it in repeated runs of {length} words", _repeated_grams(length),
            limit,
        )
        for length, limit in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    PublishedRule("c4", "a curly bracket", _curly_brackets, 0),
    PublishedRule("c4", "lorem ipsum", _lorem_ipsum, 0),
    _about_words("c4", "fewer than 5 sentences", _num_sentences, 5, is_lower_limit=True),
    PublishedRule(
        "fineweb", "at most 12% of the lines end with a mark", _lines_with_end, 0.12,
        is_lower_limit=True, includes_limit=True,
    ),
    PublishedRule("fineweb", "at least 10% of it in repeated lines", _repeated_chars(_lines), 0.1, includes_limit=True),
    PublishedRule(
        "fineweb", "at least 67% of the lines have fewer than 30 characters", _short_lines, 0.67, includes_limit=True
    ),
)  # fmt: skip
"""In the order in which they are tried; the first that drops a text is counted."""


def published_reason(rule: PublishedRule) -> str:
    """Return the reason with the filter's name, as it is counted."""
    return f"{rule.filter}: {rule.reason}"
