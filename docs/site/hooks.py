"""What MkDocs does not do by itself; ``mkdocs.yml`` names this file. Nothing here is written into ``docs/``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import rjieba
from command_reference import command_reference
from configuration_reference import configuration_reference
from links import join_chinese_lines, rewrite_links, source_of
from material.plugins.search import plugin as search
from mkdocs.structure.files import File, Files
from notebook_pages import notebook_pages
from python_reference import python_reference
from repository_pages import repository_pages

LANGUAGES = {"en": "English", "zh": "中文"}


def on_config(config: Any) -> Any:
    """Let the search index segment Chinese with the tokenizer that the samples use; its own choice is not installed."""
    search.jieba = SimpleNamespace(cut=lambda text: rjieba.cut(text.decode()))
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are made of the code, and those of the repository's files that documents link to."""
    made = {"reference/commands.md": command_reference(), "reference/configuration.md": configuration_reference()}
    for page, text in {**made, **python_reference(), **notebook_pages(), **repository_pages()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links that are written for the repository, and join the lines of Chinese."""
    return join_chinese_lines(rewrite_links(markdown, source_of(page.file.src_uri)))


def on_page_context(context: Any, *, page: Any, config: Any, **_: Any) -> Any:
    """Show a Chinese page with Chinese labels, and offer the same page, else the first one, in the other language."""
    urls = {file.src_uri: file.url for file in context["pages"]}
    english = page.file.src_uri.removeprefix("zh/")
    pages = {"en": (english, "index.md"), "zh": (f"zh/{english}", "zh/index.md")}
    config.theme["language"] = "zh" if page.file.src_uri.startswith("zh/") else "en"
    config.extra["alternate"] = [
        {"name": name, "lang": language, "link": urls.get(pages[language][0]) or urls[pages[language][1]]}
        for language, name in LANGUAGES.items()
    ]
    return context
