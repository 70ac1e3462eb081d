from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.sentences import sentence_cuts, split_sentences

PIECES = st.sampled_from(
    [
        *"。！？；…”’」)］ \n\t.!?\"'aZ好\x00\u200f😀",
        "...",
        "\n\n",
        "Mr.",
        "e.g.",
        "3.14",
        "http://a.b/c?d=e",
        "U.S.",
        "……",
    ]
)
MESSY = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


@given(MESSY, st.integers(1, 50))
def test_sentences_joined_are_the_text(text: str, max_chars: int) -> None:
    sentences = split_sentences(text, max_chars)
    assert "".join(sentences) == text
    assert all(0 < len(sentence) <= max_chars for sentence in sentences)


@given(MESSY)
def test_cuts_rise_inside_the_text(text: str) -> None:
    cuts = sentence_cuts(text)
    assert cuts == sorted(set(cuts))
    assert all(0 < cut < len(text) for cut in cuts)


@pytest.mark.parametrize(
    "sentences",
    [
        ["One. ", "Two! ", "Three?"],
        ["Dr. Gray met Mrs. Brown at 3.14 p.m. on the U.S. border. ", "They left."],
        ["J. K. Rowling wrote it. ", "See Fig. 3 and e.g. the rest."],
        ["Visit https://example.org/a.b?c=d. ", "Then rest."],
        ['"Is it so?" ', "She nodded."],
        ['"Is it so?" she asked. ', "He nodded."],
        ["He waited... and waited. ", "Then he left."],
        ["A heading\n\n", "A paragraph"],
        ["A line\nthat goes on"],
        ["他说：“今天很好。”", "我同意！", "你呢？", "好；", "走吧……", "嗯"],
        ["你好吗?", "我很好!", "再见."],
        ["圆周率是3.14。", "版本v1.2发布了。"],
        ["He sat. ", "It was hot."],
    ],
)
def test_known_texts_are_cut_at_their_sentences(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences), 10_000) == sentences


def test_a_long_sentence_is_cut_after_white_space_where_there_is_some() -> None:
    assert split_sentences("aaa bbb ccc", 9) == ["aaa bbb ", "ccc"]
    assert split_sentences("aaaaaaa", 3) == ["aaa", "aaa", "a"]
