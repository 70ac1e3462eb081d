import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.downstream.evaluate.zero_shot.prompt_scores import EncodedText, Layout

CLS, SEP = 101, 102


def ids(*numbers):
    return np.array(numbers, np.int64)


def text(before, middle, after, *, has_blank=False):
    return EncodedText(ids(*before), ids(*middle), ids(*after), has_blank)


def layout(order, max_length=128):
    return Layout(CLS, SEP, order, max_length)


@pytest.mark.parametrize(
    ("order", "expected", "second"),
    [("prefix", [CLS, 7, 8, SEP, 1, 2, 3, SEP], 4), ("suffix", [CLS, 1, 2, 3, SEP, 7, 8, SEP], 5)],
)
def test_the_order_says_which_comes_first(order, expected, second):
    pair = layout(order).join(text([1], [2], [3]), ids(7, 8))
    assert (pair.ids.tolist(), pair.second_starts, pair.positions) == (expected, second, None)


def test_the_prompt_stands_at_the_positions_of_the_blank():
    idiom, around = ids(7, 8), text([1, 2], [], [3], has_blank=True)
    suffix = layout("suffix").join(around, idiom)
    assert suffix.ids.tolist() == [CLS, 1, 2, 3, SEP, 7, 8, SEP]
    assert suffix.positions.tolist() == [0, 1, 2, 5, 6, 3, 4, 7]
    prefix = layout("prefix").join(around, idiom)
    assert prefix.ids.tolist() == [CLS, 7, 8, SEP, 1, 2, 3, SEP]
    assert prefix.positions.tolist() == [0, 4, 5, 1, 2, 3, 6, 7]


sides = st.integers(0, 30)


@given(sides, sides, sides, st.integers(1, 20), st.sampled_from(["prefix", "suffix"]), st.booleans())
def test_positions_are_a_permutation_and_nothing_is_longer_than_allowed(
    before, middle, after, prompt, order, has_blank
):
    whole = text(range(before), [] if has_blank else range(middle), range(after), has_blank=has_blank)
    pair = layout(order, 24).join(whole, np.arange(prompt))
    assert len(pair.ids) == min(24, whole.size + prompt + 3)
    if has_blank:
        assert sorted(pair.positions.tolist()) == list(range(len(pair.ids)))
    else:
        assert pair.positions is None


def test_the_longest_value_loses_its_end_and_the_template_stays():
    cut = text([1, 2], [3, 4, 5, 6], [7, 8]).cut(6)
    assert [part.tolist() for part in cut[:3]] == [[1, 2], [3, 4], [7, 8]]


def test_the_words_around_a_blank_stay():
    cut = text(range(10), [], range(20, 22), has_blank=True).cut(5)
    assert [part.tolist() for part in cut[:3]] == [[7, 8, 9], [], [20, 21]]
    both = text(range(10), [], range(20, 40), has_blank=True).cut(6)
    assert [part.tolist() for part in both[:3]] == [[7, 8, 9], [], [20, 21, 22]]


def test_a_prompt_keeps_half_of_the_room_beside_a_long_text_and_more_beside_a_short_one():
    prompt = np.arange(50)
    beside_long = layout("prefix", 23).join(text([], range(50), []), prompt)
    assert beside_long.second_starts == 1 + 10 + 1
    beside_short = layout("prefix", 23).join(text([], range(4), []), prompt)
    assert beside_short.second_starts == 1 + 16 + 1
