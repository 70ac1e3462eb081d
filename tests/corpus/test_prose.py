from __future__ import annotations

import pytest

from kexue_train.corpus.docs_pages import MAX_DOCUMENT_CHARS, cut_page, is_prose, module_prose, page_prose

SENTENCE = "The river rose during the night, and by the morning the bridge was under the water."


@pytest.mark.parametrize(
    "paragraph",
    [
        "for i in range(10): x[i] = y[i] + z[i] * 2; print(x, y, z, sep='|')",
        "0.12 3.45 6.78 9.10 11.12 13.14 15.16 17.18 19.20 21.22 23.24 25.26",
        "TWFuIGlzIGRpc3Rpbmd1aXNoZWQsIG5vdCBvbmx5IGJ5IGhpcyByZWFzb24sIGJ1dCBieQ==",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda omicron",
        "Der Fluss stieg in der Nacht, und am Morgen stand die Brücke unter Wasser.",
        "河水在夜里上涨，到了早晨桥已经被水淹没了。没有人在中午之前过河。河水在夜里上涨，到了早晨桥已经被水淹没了。",
        "Too short to keep.",
    ],
)
def test_code_tables_lists_and_other_languages_are_no_prose(paragraph):
    assert is_prose(SENTENCE)
    assert not is_prose(paragraph)


def test_docstrings_are_taken_in_the_order_of_the_source_and_cleaned():
    source = f'''"""{SENTENCE} One."""
import os
raise SystemExit("a module is never run")
class A:
    """
    {SENTENCE}
    Two.
    """
    def f(self):
        """{SENTENCE} Three.

        >>> code()
        """
def g():
    """{SENTENCE} Four."""
'''
    found = module_prose(source.encode()).split("\n\n")
    assert found == [f"{SENTENCE} {number}." for number in ("One", "Two", "Three", "Four")]


@pytest.mark.parametrize("source", [b"def broken(:", b"x = '\0'", b"# coding: nonsense\n", b"(" * 5000, b"'\\d'"])
def test_a_module_that_does_not_parse_gives_nothing(source):
    assert module_prose(source) == ""


def test_markup_is_taken_off():
    page = f"""Title
=====

<p align="center">[![badge](https://x/y.svg)](https://x)</p>

**{SENTENCE}** See [the guide](https://example.org/a) and :class:`~a.B`.

```python
{SENTENCE}
```

.. note:: {SENTENCE}
"""
    assert page_prose(page) == f"{SENTENCE} See the guide and ~a.B."


def test_a_long_page_is_cut_at_a_paragraph():
    page = "\n\n".join(["x" * 999] * 30)
    assert len(cut_page(page)) == 18 * 1001 + 999 <= MAX_DOCUMENT_CHARS
    assert set(cut_page(page).split("\n\n")) == {"x" * 999}
