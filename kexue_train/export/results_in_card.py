"""What is found out about a model after its export goes into its card; loads neither torch nor transformers.

The card is for people, who may change it, and it grows. So it is no file of the artifact: the manifest does not list it
(``artifacts.CARD_NAME``), and no stage that reads the model becomes stale through it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kexue_train.foundation.artifacts import CARD_NAME, read_manifest, write_atomic

_BEGIN, _END = "<!-- results of kexue report: begin -->", "<!-- results of kexue report: end -->"


def write_results(folder: Path, model_index: list[dict[str, Any]], section: str) -> bool:
    """Put results into ``folder/README.md``, in the place of earlier ones; everything else in it stays as it is.

    Args:
        folder: An exported model.
        model_index: ``model-index`` of the card's metadata, in Hugging Face's form.
        section: Markdown, which goes to the end at first and then stays where people move it.

    Returns:
        Whether the card holds them: not if there is no card, or if an older manifest lists it.
    """
    path = folder / CARD_NAME
    if not path.is_file() or CARD_NAME in read_manifest(folder).files:
        return False
    old = path.read_text(encoding="utf-8")
    card = _replace_section(_replace_model_index(old, model_index), section)
    if card != old:
        write_atomic(path, card)
    return True


def _replace_model_index(card: str, model_index: list[dict[str, Any]]) -> str:
    opening, _, rest = card.partition("---\n")
    metadata, closing, body = rest.partition("\n---\n")
    try:
        values = yaml.safe_load(metadata) if closing and not opening else None
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        return card  # somebody took the metadata out, or broke them
    values["model-index"] = model_index
    return f"---\n{yaml.safe_dump(values, allow_unicode=True, sort_keys=False)}---\n{body}"


def _replace_section(card: str, section: str) -> str:
    block = f"{_BEGIN}\n{section.strip()}\n{_END}"
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{block}{after}" if begin and end else f"{card.rstrip()}\n\n{block}\n"
