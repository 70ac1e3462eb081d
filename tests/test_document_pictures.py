"""The pictures of the documents are those that the script draws, and can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.document_pictures import PICTURES
from tests.draw_documents import draw, is_readable


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn_by_the_script_and_shown_by_its_document(repository: Path, name: str) -> None:
    document = repository / "docs" / f"{name}.md"
    assert document.with_suffix(".svg").read_text("utf-8") == draw(PICTURES[name]), (
        "write it anew: python -m tests.draw_documents"
    )
    assert f"]({document.stem}.svg)" in document.read_text("utf-8")


@pytest.mark.parametrize("name", PICTURES)
def test_every_text_of_a_picture_fits_and_no_box_lies_on_another(name: str) -> None:
    assert is_readable(PICTURES[name])
