"""The Chinese tutorials say what the English ones say: the same blocks, headings, links and rows of tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.site.tutorial import TUTORIALS, Block, read_blocks


def without_comments(blocks: list[Block]) -> list[Block]:
    return [Block(language, re.sub(r"\s+# .*", "", text)) for language, text in blocks]


@pytest.mark.parametrize("name", TUTORIALS)
def test_blocks_and_what_stands_around_them_are_the_same(repository: Path, name: str) -> None:
    docs = repository / "docs"
    english, chinese = docs / "tutorials" / f"{name}.md", docs / "zh" / "tutorials" / f"{name}.md"
    assert len(read_blocks(english)) >= 5
    assert without_comments(read_blocks(chinese)) == without_comments(read_blocks(english))
    texts = [path.read_text(encoding="utf-8") for path in (english, chinese)]
    for pattern in (r"^(#+ (?:\d\w*\.)?)", r"\]\((?:\.\./)*(?:zh/)?(?:tutorials/)?([^)]*)\)", r"^\| [^|]* (\|)"):
        first, second = (re.findall(pattern, text, re.MULTILINE) for text in texts)
        assert second == first
        assert first


def test_every_tutorial_is_there_in_both_languages(repository: Path) -> None:
    for folder in ("tutorials", "zh/tutorials"):
        assert {path.stem for path in (repository / "docs" / folder).glob("*.md")} == set(TUTORIALS)
