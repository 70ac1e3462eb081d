"""Pages of the site for what its documents link to outside of ``docs/``: files with their text, folders as lists."""

from __future__ import annotations

import ast
from pathlib import Path

from links import ROOT, linked_files, page_of

_LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "sh", ".sbatch": "sh"}


def repository_pages() -> dict[str, str]:
    """Return the text of each page by its place on the site; ``links.rewrite_links`` has still to be applied."""
    written = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    waiting = ["README.md", "README.zh.md", "CHANGELOG.md", *written]
    pages, seen = {}, set(waiting)
    while waiting:
        path = waiting.pop(0)
        text = _text_of(path)
        if not path.startswith("docs/"):
            pages[page_of(path)] = text
        if path.endswith(".md"):
            found = [target for target in linked_files(text, path) if target not in seen]
            seen.update(found)
            waiting += [target for target in dict.fromkeys(found) if not target.startswith("docs/")]
    return pages


def _text_of(path: str) -> str:
    file = ROOT / path
    if file.is_dir():
        readme = file / "README.md"
        return readme.read_text(encoding="utf-8") if readme.exists() else _folder(path)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    fence = "````"  # no file that is linked to has so many
    return f"# `{path}`\n\n{fence}{_LANGUAGES.get(file.suffix, 'text')}\n{text}{fence}\n"


def _folder(path: str) -> str:
    """Return a page that lists the folder's files, each with the first sentence of what it says about itself."""
    lines = [f"# `{path}/`", ""]
    if (ROOT / path / "__init__.py").exists():
        lines += ["````text", _docstring(ROOT / path / "__init__.py"), "````", ""]
    lines += ["| file | |", "|---|---|"]
    for file in sorted((ROOT / path).iterdir()):
        if file.name.startswith((".", "__")):
            continue
        about = _docstring(file / "__init__.py" if file.is_dir() else file).partition("\n")[0]
        about = about.replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{file.name}{'/' * file.is_dir()}` | {about} |")
    return "\n".join([*lines, ""])


def _docstring(file: Path) -> str:
    if file.suffix != ".py" or not file.exists():
        return ""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
