from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.sentences import sentence_cuts, split_sentences

PIECES = st.sampled_from(
    [
        *"。！？；…”’」)］ \n\t.!?\"'aZ好\x00\u200f😀؟।",
        "...",
        "\n\n",
        "Mr.",
        "e.g.",
        "3.14",
        "http://a.b/c?d=e",
        "U.S.",
        "……",
        "1. ",
        "No. ",
        *"《》（）「」“[(",
        ". . .",
        "Yahoo!",
        "2.)",
    ]
)
MESSY = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


@given(MESSY)
def test_sentences_joined_are_the_text(text: str) -> None:
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert all(sentences)


@given(MESSY)
def test_cuts_rise_inside_the_text(text: str) -> None:
    cuts = sentence_cuts(text)
    assert cuts == sorted(set(cuts))
    assert all(0 < cut < len(text) for cut in cuts)


@given(MESSY)
def test_a_sentence_begins_behind_a_mark_or_an_empty_line_and_never_with_white_space(text: str) -> None:
    for cut in sentence_cuts(text):
        before = text[:cut].rstrip()
        assert not text[cut].isspace()
        assert text[len(before) : cut].count("\n") > 1 or before.rstrip("\"'”’»」』】）》〉)]")[-1] in "。！？；…؟।.!?"


@pytest.mark.parametrize(
    "sentences",
    [
        ["One. ", "Two! ", "Three?"],
        ["Dr. Gray met Mrs. Brown at 3.14 p.m. on the U.S. border. ", "They left."],
        ["He joined the U.S. Army in 1942. ", "He left it at once!"],
        ["J. K. Rowling wrote it. ", "See Fig. 3, p. 5 and e.g. the rest."],
        ["She was No. 1 in the world. ", "He said no. ", "Five came."],
        ["Visit https://example.org/a.b?c=d!e. ", "Then rest. ", "Or http://b.c/?q=1! ", "Done."],
        ['"Is it so?" ', "She nodded."],
        ['"Is it so?" she asked. ', "He nodded."],
        ["“Stop!” ", "(It was so.) ", "[See it.] ", "End"],
        ["It is Bob's. ", "He can't. ", "She won't."],
        ["He waited... and waited. ", "Then he left."],
        ["He waited… and waited. ", "Then… ", "Nothing."],
        ["What?! ", "Really?? ", "Yes!!!"],
        ["Is it the U.S.? ", "It is."],
        ["Nice :) Great:-) indeed. ", ":) Then."],
        ["1. Foo is it. ", "Bar.\n", "2. Qux is it.\n", "10. Last"],
        ["A heading\n\n", "A paragraph"],
        ["Mr.\n \n", "lower case"],
        ["A line\nthat goes on"],
        ["他说：“今天很好。”", "我同意！", "你呢？", "好；", "走吧……", "嗯"],
        ["他说：「好。」", "『真的？！』", "她问……", "『是。』"],
        ["（他走了。）", "真的！！！", "【好？】", "是"],
        ["你好吗?", "我很好!", "再见."],
        ["圆周率是3.14。", "版本v1.2发布了。"],
        ["他用iPhone。", "eBay很大"],
        ["هل أنت بخير؟ ", "نعم."],
        ["यह एक वाक्य है। ", "यह दूसरा है॥ ", "तीसरा"],
        ["He sat. ", "It was hot."],
        ["..."],
        [" \n\n ", "A"],
        ["我们去看《摔跤吧！爸爸》好吗？", "好！"],
        ["他看了《你好！世界。》。", "很好。"],
        ["他看了《什么？》《为什么？》两本书。", "〈走吧！〉也看了。"],
        ["映画『君の名は。』を見た。", "「おはよう。」と言った。", "彼は笑った。"],
        ["他（真的！太好了）走了。", "（他走了。", "我也走了。）", "真的。"],
        ["他高喊“打倒！”的口号。", "看【重要！】通知。", "“你好！”，他说。"],
        ["他说：“今天很好。", "我们去吧。”", "然后走了。"],
        ["舰长五千公里（5000公里；3100英里）。", "他称“这违反法律。”", "因为如此。"],
        ["他玩《SAY!YOU!》的游戏。", "用Yahoo!奇摩。", "好… …", "走了。"],
        ["He left (it was late. Really late.) and slept. ", "She too. ", "(It was late. ", "He slept.)"],
        ["The song “Help! I need somebody” was good. ", "Yes. ", "He said, “It is late. ", "Go.” ", "He left."],
        ["He cut it [...] and left. ", "We chose (...) ", "There it is."],
        ["Wait . . . what an honor. ", "Indeed. ", "The thing is . . . I did not mean it. ", "Why ? ! ", "So."],
        ["It is less complex. . . . ", "He left . . . . ", "What . . . ? ", "Nothing. . . ."],
        ["I like it. ", ".NET is fine."],
        ["Yahoo! Inc. was founded in 1994. ", "It grew. ", "Yum! Brands too. ", "So! ", "E! Group."],
        ["1.) The first item. ", "2.) The second item. ", "(12.) Twelve. ", "IV.) The fourth."],
        [
            "1. The first. ",
            "2. The second. ",
            "II. The third. ",
            "He came in 1942. ",
            "He was No. 5. ",
            "Or 6. ",
            "So.",
        ],
    ],
    ids=lambda sentences: sentences[0],
)
def test_known_texts_are_cut_at_their_sentences(sentences: list[str]) -> None:
    assert split_sentences("".join(sentences)) == sentences


def test_no_text_has_no_sentence() -> None:
    assert split_sentences("") == []


@pytest.mark.parametrize(
    "unit", ["!", ".", "…", "?.", '!"', " .", "\n", "\n ", "。", "Dr. ", "\n1. ", "“", "a“", "a (", "《"]
)
@pytest.mark.parametrize("end", ["", "a", "好"])
def test_long_runs_of_marks_are_cut_in_linear_time(unit: str, end: str) -> None:
    text = unit * 500_000 + end
    assert "".join(split_sentences(text)) == text
