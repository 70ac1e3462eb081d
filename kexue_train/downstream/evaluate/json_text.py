"""How results are written."""

from __future__ import annotations

import json
from typing import Any

_DIGITS = 7  # more would be noise of the order of summation


def json_text(value: Any) -> str:
    """``value`` as indented JSON, floats to seven digits."""
    return json.dumps(rounded(value), indent=2, ensure_ascii=False) + "\n"


def rounded(value: Any) -> Any:
    """``value`` with every float in it to seven digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return value
