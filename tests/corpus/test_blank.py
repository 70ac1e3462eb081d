"""Which texts are blank."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.corpus.records import make_block


def accepted(texts: list[str]) -> list[str]:
    block = make_block(np.arange(len(texts), dtype=np.uint64), pa.array(texts, pa.large_string()))
    assert block.blank == len(texts) - len(block.texts)
    return block.texts.to_pylist()


def test_every_character_that_is_white_space_makes_a_blank_text() -> None:
    characters = pa.array([chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000])
    spaces = characters.filter(pc.utf8_is_space(characters)).to_pylist()
    assert {" ", "\t", "\r", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"} <= set(spaces)
    assert accepted([*spaces, "".join(spaces), ""]) == []


def test_white_space_around_a_text_stays() -> None:
    texts = [" a", "\u3000b\u3000", "\u2028c", "\xe9", "\u30c6", "\u2603", "\ufeff"]
    assert accepted(["", *texts, " "]) == texts


def test_no_texts() -> None:
    assert accepted([]) == []
