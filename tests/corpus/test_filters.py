from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
import re
import unicodedata
from fractions import Fraction
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus import filters
from kexue_train.corpus.config import FilterConfig
from kexue_train.corpus.filters import REASONS, drop_reasons
from kexue_train.foundation.errors import ConfigError

SENSIBLE = FilterConfig(
    min_chars=50, min_letter_share=0.5, max_unbroken_share=0.2, max_repeated_line_share=0.2, max_repetition=0.3
)
FIELDS = tuple(name for name in FilterConfig.model_fields if name != "published")  # for which see its own tests


def reasons_of(texts, rules):
    return drop_reasons(pa.array(texts, pa.large_string()), rules).tolist()


def is_dropped(text, **rule):
    return reasons_of([text], FilterConfig(**rule)) != [0]


# The slow way: one text at a time, in plain Python, with exact fractions and this Python's own character database.


def letter_share(text):
    def kind(char):
        category = unicodedata.category(char)
        is_selector = "\ufe00" <= char <= "\ufe0f"
        return "" if char in "\t\n\v\f\r" or category[0] == "Z" or category == "Cf" or is_selector else category[0]

    visible = [kind(char) for char in text if kind(char)]
    return Fraction(sum(kind in "LM" for kind in visible), len(visible)) if visible else None


def unbroken_share(text):
    return Fraction(sum(map(len, re.findall(r"[!-~]{40,}", text))), len(text.encode())) if text else None


def repeated_line_share(text):
    lines = [line.strip("\t\n\v\f\r ") for line in text.split("\n")]
    repeated = sum(len(line) for index, line in enumerate(lines) if line in lines[:index])
    return Fraction(repeated, sum(map(len, lines))) if any(lines) else None


def repetition(text):
    data = text.encode()
    grams = [data[start : start + 32] for start in range(len(data) - 31)]
    return Fraction(len(grams) - len(set(grams)), len(grams)) if len(grams) > 1 else None


MEASURES = (len, len, letter_share, unbroken_share, repeated_line_share, repetition)


def expected_reason(text, rules):
    for number, (field, measure) in enumerate(zip(FIELDS, MEASURES, strict=True), 1):
        limit, value = getattr(rules, field), measure(text)
        if limit is None or value is None:
            continue
        if float(value) < limit if field.startswith("min") else float(value) > limit:
            return number
    return 0


# Letters of many scripts (the last three are younger than Unicode 3.2), marks, joiners, digits, signs, emoji, breaks.
CHARS = st.sampled_from(
    "aZé\u0301ßжعא中文字々かカ한हि्ग\u0e01\u0e31𠀀\u2c30\ua840𞤀"
    "0９٣½.,，。！-—_#$€+<|~`\x00\x7f\ufffd\u200b\u200d\ufe0f\u00ad\u3000\xa0😀❤🥲👩🏽₺ \t\n\r\n\n"
)
PHRASES = st.text(CHARS, min_size=1, max_size=25) | st.sampled_from(
    [
        "x" * 39,
        "/" * 40,
        "A1+/" * 30,
        "\n",
        "\r\n",
        "the same line of text again\n",
        "同一行文字，一再出现。\n",
        "好" * 11,
    ]
)
TEXTS = st.lists(PHRASES, max_size=12).flatmap(lambda parts: st.permutations(parts + parts[::2])).map("".join)
SHARES = st.none() | st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.9, 1.0]) | st.floats(0.01, 1)
RULES = st.builds(
    FilterConfig,
    min_chars=st.none() | st.integers(1, 60),
    max_chars=st.none() | st.integers(60, 400),
    **dict.fromkeys(FIELDS[2:], SHARES),
)


@given(st.lists(TEXTS, max_size=12), RULES)
def test_every_rule_agrees_with_plain_python(texts, rules):
    assert reasons_of(texts, rules) == [expected_reason(text, rules) for text in texts]


@given(st.lists(TEXTS, min_size=1, max_size=8), RULES, st.integers(1, 200), st.integers(0, 8))
def test_a_text_is_judged_alone_however_the_texts_are_cut(texts, rules, piece_bytes, first):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_PIECE_BYTES", piece_bytes)
        found = drop_reasons(pa.array(texts, pa.large_string()).slice(first), rules).tolist()
    assert found == [reasons_of([text], rules)[0] for text in texts[first:]]


@pytest.mark.parametrize("field", FIELDS[2:])
def test_every_measure_of_real_texts_is_that_of_plain_python(corpus, field):
    texts = [text for language in corpus.values() for text in language[:40]]
    rule, oracle = filters._RULES[FIELDS.index(field)], MEASURES[FIELDS.index(field)]
    found = rule.measure(pa.array(texts, pa.large_string()))
    assert found.tolist() == [float(oracle(text)) for text in texts]


@pytest.mark.parametrize(
    ("text", "field", "share"),
    [
        ("中文，好。", "min_letter_share", 3 / 5),  # punctuation is no letter
        ("हिन्दी है।", "min_letter_share", 8 / 9),  # vowel signs are, the space does not count, the danda is not
        ("a\u200d\ufe0f \n1", "min_letter_share", 1 / 2),  # joiner, selector and white space do not count
        ("ab\nab\ncd\n ab ", "max_repeated_line_share", 4 / 8),  # the second and the third "ab"
        ("ab\n\n\n\nab\nc", "max_repeated_line_share", 2 / 5),  # empty lines weigh nothing
        ("x" * 40 + " " + "y" * 39, "max_unbroken_share", 40 / 80),  # a run of 39 is none
        ("~" * 40 + "中文", "max_unbroken_share", 40 / 46),
        ("!" * 40, "max_unbroken_share", 1.0),
        ("a" * 41, "max_repetition", 9 / 10),  # ten stretches of 32 bytes, all the same
        ("0123456789abcdefghijklmnopqrstuv" * 2, "max_repetition", 1 / 33),  # only the last one stood before
        ("一二三四五六七八九十甲乙" * 2, "max_repetition", 5 / 41),  # 36 bytes twice: 32 + k fit the copy for k in 0..4
    ],
)
def test_a_share_counted_by_hand(text, field, share):
    kept, dropped = (share, np.nextafter(share, 0)) if field.startswith("max") else (share, np.nextafter(share, 1))
    assert not is_dropped(text, **{field: float(kept)})
    assert is_dropped(text, **{field: float(dropped)})


@pytest.mark.parametrize(("text", "length"), [("abc", 3), ("中文字", 3), ("नि", 2), ("e\u0301", 2), ("👩🏽", 2)])
def test_length_is_counted_in_code_points(text, length):
    assert not is_dropped(text, min_chars=length, max_chars=length)
    assert is_dropped(text, min_chars=length + 1)
    assert is_dropped(text, max_chars=length - 1)


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b", "a", "中", "one line", "31 bytes that say nothing twice"])
def test_a_text_too_short_to_be_measured_is_kept(text):
    strict = dict.fromkeys(FIELDS[2:], 0.01)
    assert not is_dropped(text, **strict)


def test_the_first_rule_that_drops_a_text_is_told():
    rules = FilterConfig(min_chars=3, max_chars=100, min_letter_share=0.5, max_repetition=0.5)
    texts = ["ab", "a" * 101, "...", "a" * 99, "good"]
    assert [REASONS[number - 1] if number else "" for number in reasons_of(texts, rules)] == [
        "shorter than min_chars",
        "longer than max_chars",
        "letters below min_letter_share",
        "repetition above max_repetition",
        "",
    ]


def test_each_rule_has_a_reason_that_names_its_key_in_the_order_of_the_keys():
    assert [reason.split()[-1] for reason in REASONS[: len(FIELDS)]] == list(FIELDS)


def test_no_rule_drops_nothing():
    assert not FilterConfig().is_active
    assert reasons_of(["", "." * 1000], FilterConfig()) == [0, 0]
    assert reasons_of([], SENSIBLE) == []


def test_only_the_beginning_of_a_long_text_is_measured():
    beginning = "中" * filters.HEAD_CHARS
    assert not is_dropped(beginning + "." * filters.HEAD_CHARS, min_letter_share=1.0)
    assert is_dropped("." + beginning, min_letter_share=1.0)


def test_characters_are_sorted_as_in_todays_unicode_but_for_rare_ones():
    kinds = filters._char_kinds()
    letters = [code for code in range(0x110000) if unicodedata.category(chr(code))[0] in "LM"]
    missed = [code for code in letters if kinds[code] != filters._LETTER]
    assert len(missed) < len(letters) / 300  # variation selectors on purpose, and modifier letters
    assert all(kinds[ord(char)] == filters._OTHER for char in "🥲🫠₿⯑⸺︐")  # younger than the table, by their block


def test_the_character_table_is_the_same_with_every_python():
    # Unicode 3.2 as CPython 3.6 to 3.13 hold it; computed with each.
    categories = "".join(unicodedata.ucd_3_2_0.category(chr(code)) for code in range(0x40000))
    assert hashlib.sha256(categories.encode()).hexdigest()[:16] == "ae7552f64123c1d3"


GENERATOR = random.Random(7)
BYTES = GENERATOR.randbytes(1500)


@pytest.mark.parametrize(
    "text",
    [
        "Buy cheap watches here, best prices online!\n" * 50,
        "点击这里，马上领取大奖，机会不容错过！\n" * 50,
        "Buy cheap watches here, best prices online! " * 50,
        "点击这里，马上领取大奖，机会不容错过！" * 50,
        "a" * 500,
        "哈" * 200,
        "=-" * 400,
        "！？。、" * 100,
        "\n".join("".join(GENERATOR.choices("!?.,-=*#~_|", k=30)) for _ in range(40)),
        "\n".join(" ".join(str(GENERATOR.randrange(10**6)) for _ in range(8)) for _ in range(30)),
        "".join(GENERATOR.choices("😀😂🎉🔥💯", k=200)),
        base64.b64encode(BYTES).decode(),
        base64.encodebytes(BYTES).decode(),
        BYTES.hex(),
        "\n".join(f"https://example.com/articles/{BYTES[i : i + 12].hex()}.html" for i in range(0, 600, 12)),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_spam_is_dropped(text):
    assert reasons_of([text], SENSIBLE) != [0]


HINDI = (
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। "
    "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।"
)
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ"


@pytest.mark.parametrize("text", [HINDI, THAI])
def test_prose_in_other_scripts_is_kept(text):
    assert reasons_of([text], SENSIBLE) == [0]


@pytest.fixture(scope="module")
def corpus(shared_data):
    """Some thousand articles of each language."""
    texts = {}
    for language in ("zh", "en"):
        path = shared_data / "corpus" / language / f"{language}wiki-000.jsonl.gz"
        if not path.is_file():
            pytest.skip(f"needs {path.relative_to(shared_data)} in shared/data")
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            texts[language] = [json.loads(line)["text"] for line in islice(file, 1500)]
    return texts


@pytest.mark.parametrize("language", ["zh", "en"])
def test_articles_pass_sensible_settings(corpus, language):
    dropped = np.array(reasons_of(corpus[language], SENSIBLE)) > 0
    assert dropped.mean() < 0.005


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_chars": 0}, "min_chars=0: Input should be greater than 0"),
        ({"max_chars": 1.5}, "max_chars=1.5: Input should be a valid integer"),
        ({"min_letter_share": 1.5}, "min_letter_share=1.5: Input should be less than or equal to 1"),
        ({"max_repetition": 0}, "max_repetition=0: Input should be greater than 0"),
        ({"max_repetitions": 0.5}, "unknown key 'max_repetitions', did you mean 'max_repetition'?"),
        ({"min_chars": 20, "max_chars": 10}, "min_chars (20) is above max_chars (10)"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        FilterConfig.parse(values, where="run.yaml")


def test_equal_lengths_and_a_share_of_one_are_allowed():
    rules = FilterConfig.parse({"min_chars": 10, "max_chars": 10, "min_letter_share": 1}, where="run.yaml")
    assert rules.is_active
