from __future__ import annotations

import gzip
import json

import pytest

from kexue_train.corpus import docs_pages, installed_docs
from kexue_train.corpus.config import CorpusConfig
from kexue_train.corpus.docs_pages import find_pages
from kexue_train.corpus.installed_docs import DOCUMENTS_NAME, build_docs_corpus, write_docs_corpus
from kexue_train.foundation.artifacts import verify_artifact
from kexue_train.foundation.errors import CorpusError

CONFIG = CorpusConfig(source="installed_docs", max_size="1MB")


def paragraph(number: int) -> str:
    words = ["north", "south", "east", "west", "river", "bridge", "mill", "tower", "harbour", "market", "forest"]
    return " ".join(
        f"The {words[number % 11]} of the {words[number // 11 % 11]} is in the {words[i]} when it is not at the "
        f"{words[number // 121 % 11]}."
        for i in range(6)
    )


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Two packages, one much larger, and files that must not matter."""
    root = tmp_path / "site-packages"
    for i in range(40):
        (root / "large").mkdir(parents=True, exist_ok=True)
        (root / "large" / f"m{i}.py").write_text(f'"""{paragraph(i)}"""\n')
    (root / "small-1.0.dist-info").mkdir()
    (root / "small-1.0.dist-info" / "METADATA").write_text(f"Name: small\n\n{paragraph(100)}\n")
    (root / "small-1.0.dist-info" / "README.md.gz").write_bytes(gzip.compress(paragraph(101).encode()))
    (root / "small-1.0.dist-info" / "copy.txt").write_text(paragraph(100))
    (root / "small-1.0.dist-info" / "broken.txt.gz").write_bytes(b"\x1f\x8bnonsense")
    (root / "small-1.0.dist-info" / "binary.txt").write_bytes(b"\0\1\2" * 300)
    (root / "large" / "tests").mkdir()
    (root / "large" / "tests" / "t.py").write_text(f'"""{paragraph(200)}"""\n')
    (root / "large" / "dangling.py").symlink_to("nowhere.py")
    monkeypatch.setattr(docs_pages, "_roots", lambda: iter([("site-packages", root)]))
    return root


def documents(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pages_with_prose_become_documents_and_copies_are_dropped(installation, tmp_path):
    manifest = build_docs_corpus(CONFIG, tmp_path / "out")
    found = documents(tmp_path / "out" / DOCUMENTS_NAME)
    assert {entry["text"] for entry in found} == {paragraph(i) for i in [*range(40), 100, 101]}
    assert manifest.rows == len(found) == 42
    assert verify_artifact(tmp_path / "out") == manifest


def test_a_small_package_comes_whole_before_the_rest_of_a_large_one(installation):
    packages = [page.package for page in find_pages()]
    assert "site-packages/small" not in packages[10:]


def test_the_same_installation_gives_the_same_bytes_wherever_it_lies(installation, tmp_path, monkeypatch):
    write_docs_corpus(tmp_path / "a.jsonl", max_bytes=10**6)
    installation.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(docs_pages, "_roots", lambda: iter([("site-packages", tmp_path / "elsewhere")]))
    write_docs_corpus(tmp_path / "b.jsonl", max_bytes=10**6)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_one_process_and_several_write_the_same_bytes(installation, tmp_path, monkeypatch):
    """With tasks of two pages, so that many are read ahead of their turn, and of the place where the corpus is full."""
    monkeypatch.setattr(installed_docs, "_PAGES_OF_A_TASK", 2)
    for number in (1, 3):
        write_docs_corpus(tmp_path / f"{number}.jsonl", max_bytes=12_000, num_workers=number)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()


def test_the_size_is_kept_and_a_finished_corpus_is_returned_at_once(installation, tmp_path, monkeypatch):
    config = CorpusConfig(source="installed_docs", max_size="10kB")
    manifest = build_docs_corpus(config, tmp_path / "out")
    assert 8_000 < (tmp_path / "out" / DOCUMENTS_NAME).stat().st_size <= 10_000
    monkeypatch.setattr(docs_pages, "_roots", lambda: iter([]))
    assert build_docs_corpus(config, tmp_path / "out") == manifest


def test_a_bare_machine_is_told_to_give_files(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_pages, "_roots", lambda: iter([]))
    with pytest.raises(CorpusError, match="give input files"):
        build_docs_corpus(CONFIG, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_this_machine_has_real_documentation(tmp_path):
    statistics = write_docs_corpus(tmp_path / "a.jsonl", max_bytes=200_000)
    assert statistics["documents"] > 20
    assert 150_000 < (tmp_path / "a.jsonl").stat().st_size <= 200_000
