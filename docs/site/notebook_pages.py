"""Pages of the site for the notebooks in ``docs/notebooks``: text, code and outputs as they are in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from links import ROOT, page_of


def notebook_pages() -> dict[str, str]:
    """Return the text of each page by its place on the site."""
    paths = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    return {page_of(str(path.relative_to(ROOT))): _page(json.loads(path.read_text(encoding="utf-8"))) for path in paths}


def _page(notebook: dict[str, Any]) -> str:
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        else:
            parts += [f"````python\n{text}\n````", *_outputs(cell["outputs"])]
    return "\n\n".join([*parts, ""])


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", {})
        if "text/html" in data:
            lines = "".join(data["text/html"]).split("\n")
            yield f'<div class="output">{" ".join(line for line in lines if line.strip())}</div>'
        elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
            yield f"````text\n{text}\n````"
