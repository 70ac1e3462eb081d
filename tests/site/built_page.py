"""What the tests read of a built page: its anchors, where it leads, and what it loads."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

_LOADING = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload", "dns-prefetch", "manifest"}


class BuiltPage(HTMLParser):
    """One page, parsed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.language = ""
        self.anchors: set[str] = set()
        self.links: list[str] = []
        """Targets of links."""
        self.loaded: list[str] = []
        """Addresses of what a browser fetches with the page."""
        self.alternates: dict[str, str] = {}
        self._is_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self._is_style = tag == "style"
        if tag == "html":
            self.language = values.get("lang", "")
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if "hreflang" in values:
                self.alternates[values["hreflang"]] = values["href"]
        if tag == "link" and set(values.get("rel", "").split()) & _LOADING:
            self.loaded.append(values.get("href", ""))
        self.loaded += [values[name] for name in ("src", "data", "poster") if name in values]
        self.loaded += [entry.split()[0] for entry in values.get("srcset", "").split(",") if entry.strip()]
        self.loaded += style_addresses(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._is_style:
            self.loaded += style_addresses(data)


def style_addresses(css: str) -> list[str]:
    """Return what a style sheet has fetched."""
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", css)
