"""README.zh.md says what README.md says: the same commands, links and rows of tables, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

Texts = tuple[str, str]


@pytest.fixture
def texts(repository: Path) -> Texts:
    """Both files; a link to a Chinese page counts as one to the same page in English."""
    english, chinese = ((repository / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    return english, chinese.replace("](docs/zh/", "](docs/")


def without_prose(text: str, language: str) -> list[str]:
    """The lines of all code blocks of ``language``, without what is said behind # and with single spaces."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    of_language = [block for name, block in blocks if name == language]
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in of_language for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("language", ["sh", "python"])
def test_commands_and_code_are_the_same(texts: Texts, language: str) -> None:
    english, chinese = (without_prose(text, language) for text in texts)
    assert len(english) >= 3
    assert chinese == english


@pytest.mark.parametrize(
    "pattern", [r"\]\((?!README)([^)]*)\)", r"^(#+) ", r"^\| \[([\w./-]+)"], ids=["links", "headings", "rows"]
)
def test_the_same_stands_in_the_same_order(texts: Texts, pattern: str) -> None:
    english, chinese = (re.findall(pattern, text, re.MULTILINE) for text in texts)
    assert len(english) > 3
    assert chinese == english


def test_the_same_names_are_quoted(texts: Texts) -> None:
    english, chinese = (set(re.findall(r"`([^`\n]+)`", text)) for text in texts)
    assert chinese == english


def test_files_on_disk_are_the_same(texts: Texts) -> None:
    english, chinese = (
        re.findall(r"[\w.-]+(?:/|\.(?:jsonl?|yaml|html))", "\n".join(without_prose(t, "")), re.ASCII) for t in texts
    )
    assert len(english) > 8
    assert chinese == english
