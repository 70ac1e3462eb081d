from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from kexue_train.corpus import languages
from kexue_train.corpus.config import CorpusConfig
from kexue_train.corpus.scripts import count_scripts
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.errors import ResourceError
from kexue_train.report.writing import writing_tables
from kexue_train.shuffle import writing
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc, 123! déjà", {"Latin": 7}),
        ("ＡＢ ｱ", {"Latin": 2, "Katakana": 1}),
        ("中文和English。ひらカタ", {"Han": 3, "Latin": 7, "Hiragana": 2, "Katakana": 2}),
        ("한국 русский ไทย عربي", {"Hangul": 2, "Cyrillic": 7, "Thai": 3, "Arabic": 4}),
        ("… 12 😀", {}),
    ],
)
def test_letters_are_counted_by_script(text, expected):
    assert count_scripts(text) == expected


@pytest.fixture
def sources(tmp_path):
    texts = {"en": ["abcd"] * 30, "zh": ["中文"] * 20}
    for name, own in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    entries = [{"name": name, "inputs": [str(tmp_path / f"{name}.jsonl")]} for name in texts]
    return CorpusConfig.parse({"sources": entries}, where="test").sources


def shuffle(documents, out, **settings):
    return shuffle_corpus(ShuffleConfig(**settings), documents, out, seed=1, executor=LocalExecutor(1))


@pytest.mark.parametrize("output", ["arrow", "jsonl", "parquet"])
def test_the_manifest_has_the_shares_of_all_and_of_every_source(sources, tmp_path, output):
    found = shuffle(sources, tmp_path / "out", shards=2, output=output).statistics["scripts"]
    assert found["documents"] == 50
    assert found["shares"] == {"Latin": 0.75, "Han": 0.25}
    assert found["by_source"] == {"en": {"Latin": 1.0}, "zh": {"Han": 1.0}}


def test_of_much_text_the_first_documents_are_looked_at(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SAMPLE_BYTES", 50)
    monkeypatch.setattr(writing, "_MOST_OF_A_DOCUMENT", 5)  # within the second character of "中文"
    found = shuffle([path for source in sources for path in source.inputs], tmp_path / "out").statistics["scripts"]
    assert 50 <= found["text_bytes"] < 55
    assert set(found) == {"documents", "text_bytes", "shares"}
    assert set(found["shares"]) == {"Latin", "Han"}


def test_csv_is_not_read_again(sources, tmp_path):
    assert "scripts" not in shuffle(sources, tmp_path / "out", output="csv").statistics


def test_languages_are_guessed_on_request(sources, tmp_path, monkeypatch):
    found = []
    guess = SimpleNamespace(classify=lambda text: found.append(text) or ("en" if text.isascii() else "zh", -1.0))
    monkeypatch.setitem(sys.modules, "py3langid", guess)
    monkeypatch.setattr(languages.importlib.util, "find_spec", lambda name: name == "py3langid")
    monkeypatch.setattr(languages, "version", lambda _: "1.2")
    told = shuffle(sources, tmp_path / "out", languages=True).statistics["languages"]
    assert (told["identifier"], told["documents"], len(found)) == ("py3langid 1.2", 50, 50)
    assert told["shares"] == {"en": 0.5, "zh": 0.5}  # of bytes: 30 x 4 and 20 x 6
    assert told["by_source"] == {"en": {"en": 1.0}, "zh": {"zh": 1.0}}


def test_languages_without_the_package_are_refused_before_anything_is_read(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(languages.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"pip install 'kexue_train\[languages\]'"):
        shuffle(sources, tmp_path / "out", languages=True)
    with pytest.raises(ValueError, match="languages=True has no effect with output=csv"):
        ShuffleConfig(languages=True, output="csv")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_package_tells_english_from_chinese():
    pytest.importorskip("py3langid", reason="the extra 'languages' is not installed")
    name, identify = languages.open_identifier()
    assert name.startswith("py3langid ")
    assert identify("The harbour was quiet that morning, and nobody expected the storm.") == "en"
    assert identify("今天天气很好，我们去公园散步。") == "zh"


def test_the_page_has_a_table_of_scripts_and_one_of_languages():
    scripts = {
        "documents": 1200,
        "text_bytes": 9,
        "shares": {"Han": 0.6, "Latin": 0.4},
        "by_source": {"a": {"Han": 1.0}},
    }
    guessed = {"identifier": "py3langid 1.2", "documents": 1200, "text_bytes": 9, "shares": {"zh": 1.0}}
    run = SimpleNamespace(manifests={"shards": SimpleNamespace(statistics={"scripts": scripts, "languages": guessed})})
    first, second = writing_tables(run)
    assert (first.header, first.rows) == (["Script", "all", "a"], [["Han", "60.0%", "100.0%"], ["Latin", "40.0%", "–"]])
    assert second.rows == [["zh", "100.0%"]]
    assert "py3langid 1.2 for each document, in the first 1,200 documents" in second.notes[0]
    assert writing_tables(SimpleNamespace(manifests={"shards": SimpleNamespace(statistics={})})) == []
