"""The documentation as a site: built without a warning, whole, without dead links, and without another host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from kexue_train.cli.app import TREE
from kexue_train.pipeline.run_config import RunConfig
from tests.report.test_browser import CHROMIUM, QUIET
from tests.site.built_page import BuiltPage, style_addresses

pytestmark = pytest.mark.slow
Pages = dict[str, BuiltPage]


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site") / "built"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> Pages:
    paths = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]  # for servers, which have roots
    return {str(path.relative_to(site)): BuiltPage(path) for path in paths}


def test_every_document_is_in_the_navigation(repository: Path, pages: Pages) -> None:
    documents = {path.relative_to(repository / "docs") for path in (repository / "docs").rglob("*.md")}
    assert len(documents) >= 15
    linked = {link.partition("#")[0] for link in pages["index.html"].links}
    assert [str(path) for path in sorted(documents) if str(path.with_suffix(".html")) not in linked] == []


def test_no_page_loads_anything_from_another_host(site: Path, pages: Pages) -> None:
    elsewhere = [(name, address) for name, page in pages.items() for address in page.loaded if _is_remote(address)]
    for path in site.rglob("*.css"):
        elsewhere += [
            (path.name, address) for address in style_addresses(path.read_text("utf-8")) if _is_remote(address)
        ]
    assert elsewhere == []
    assert sum(len(page.loaded) for page in pages.values()) > len(pages)


def test_every_link_leads_to_a_page_and_an_anchor_of_it(site: Path, pages: Pages) -> None:
    dead = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            if _is_remote(link) or ":" in link.partition("/")[0] or not link:
                continue
            path, _, anchor = unquote(link).partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name  # noqa: PTH118, PTH120
            is_there = (site / target).is_file()
            if not is_there or (anchor and target in pages and anchor not in pages[target].anchors | {"", "__skip"}):
                dead.append((name, link))
    assert dead == []


def test_the_reference_has_every_command_and_every_key(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert [name for names in TREE.values() for name in names if f'id="kexue-{name}' not in commands] == []
    keys = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    schema = RunConfig.model_json_schema()
    assert [name for name in schema["properties"] if f"<code>{name}</code>" not in keys] == []
    train = schema["$defs"]["TrainConfig"]["properties"]
    assert len(train) > 10
    assert [key for key in train if f"<code>{key}</code>" not in keys] == []


def test_chinese_pages_are_chinese_and_each_language_leads_to_the_other(pages: Pages) -> None:
    chinese = {name: page for name, page in pages.items() if name.startswith("zh/")}
    assert {page.language for page in chinese.values()} == {"zh"}
    assert pages["index.html"].language == "en"
    for name, page in chinese.items():
        assert f"{'../' * name.count('/')}{name.removeprefix('zh/')}" in page.alternates["en"]
    assert pages["index.html"].alternates["zh"] == "zh/index.html"


def test_chinese_words_are_found(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert index["config"]["lang"] == ["en", "zh"]
    [home] = [entry for entry in index["docs"] if entry["location"] == "zh/index.html"]
    assert "编码器\u200b" in home["text"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to search")
@pytest.mark.parametrize(("page", "words"), [("index.html", "momentum"), ("zh/index.html", "编码器")])
def test_search_works_in_pages_that_are_opened_as_files(site: Path, tmp_path: Path, page: str, words: str) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", *QUIET.split(), "--virtual-time-budget=20000", "--dump-dom"]
    address = f"{(site / page).as_uri()}?q={quote(words)}"
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.count("md-search-result__item") >= 3


def _is_remote(address: str) -> bool:
    return address.startswith(("http:", "https:", "//", "ftp:"))
