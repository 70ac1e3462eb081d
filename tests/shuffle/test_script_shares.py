from __future__ import annotations

import json

import pytest

from kexue_train.corpus.config import CorpusConfig
from kexue_train.corpus.scripts import count_scripts
from kexue_train.executor import LocalExecutor
from kexue_train.shuffle import script_shares
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
    monkeypatch.setattr(script_shares, "SAMPLE_BYTES", 50)
    monkeypatch.setattr(script_shares, "_MOST_OF_A_DOCUMENT", 5)  # within the second character of "中文"
    found = shuffle([path for source in sources for path in source.inputs], tmp_path / "out").statistics["scripts"]
    assert 50 <= found["text_bytes"] < 55
    assert set(found) == {"documents", "text_bytes", "shares"}
    assert set(found["shares"]) == {"Latin", "Han"}


def test_csv_is_not_read_again(sources, tmp_path):
    assert "scripts" not in shuffle(sources, tmp_path / "out", output="csv").statistics
