"""Samples of what filters dropped: the same on any number of workers and after a kill, and of the right documents."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import xxhash

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.artifacts import InputFile
from kexue_train.report.dropped_documents import dropped_document_tables
from kexue_train.shuffle.dropped_samples import SHOWN_PER_RULE, join_samples
from kexue_train.shuffle.scatter_result import ScatterResult

SHORT, BRACKET = "shorter than min_chars", "c4: a curly bracket"


@pytest.fixture
def corpus(tmp_path, make_corpus):
    """Two files with many documents that two rules drop, some of them equal."""
    good = ["One two three four five. " * 6 + f"It is number {number}." for number in range(30)]
    for name in "ab":
        texts = [f"x{number % 20}" for number in range(40)] + ["{ " + text for text in good[:8]] + good
        make_corpus(tmp_path / "corpus" / f"{name}.jsonl", texts)
    return tmp_path / "corpus"


def shuffled(shuffle, corpus, out, workers):
    filters = {"min_chars": 10, "published": ("c4",)}
    executor = LocalExecutor(workers)
    return shuffle(corpus, out, shards=2, filters=filters, executor=executor, memory="64MB")


def test_the_samples_are_the_smallest_hashes_whatever_the_workers(tmp_path, corpus, shuffle):
    one, two = (shuffled(shuffle, corpus, tmp_path / str(workers), workers) for workers in (1, 2))
    samples = one.statistics["dropped_samples"]
    assert two.statistics["dropped_samples"] == samples
    assert one.inputs[0].dropped == {BRACKET: 8, SHORT: 40}
    lines = [json.loads(line)["text"] for line in (corpus / "a.jsonl").read_text().splitlines()]
    for reason, texts in {SHORT: {t for t in lines if len(t) < 10}, BRACKET: {t for t in lines if "{" in t}}.items():
        expected = sorted(texts, key=lambda text: xxhash.xxh3_128_digest(text.encode()))[:SHOWN_PER_RULE]
        assert [document["text"] for document in samples[reason]] == [text[:200] for text in expected]
        assert {document["file"] for document in samples[reason]} == {str(corpus / "a.jsonl")}


def test_without_a_filter_nothing_is_sampled(tmp_path, corpus, shuffle):
    assert "dropped_samples" not in shuffle(corpus, tmp_path / "out", shards=2).statistics


def test_samples_survive_a_resume_and_any_grouping():
    documents = [{"hash": f"{number:032x}", "file": 0, "position": number, "text": "t"} for number in range(9)]
    parts = [{"rule": [document]} for document in documents]
    order = np.random.default_rng(0).permutation(9)
    joined = join_samples([join_samples(parts[i] for i in order[:4]), join_samples(parts[i] for i in order[4:])])
    assert joined == {"rule": documents[:SHOWN_PER_RULE]}
    assert ScatterResult.from_json(ScatterResult(dropped_samples=joined).to_json()).dropped_samples == joined


def test_the_page_counts_every_rule_and_shows_its_samples():
    samples = {SHORT: [{"hash": "0", "file": "a.jsonl", "position": 1234, "text": "x\n1"}]}
    inputs = [InputFile(uri="a.jsonl", bytes=1, rows=7, dropped={SHORT: 2, BRACKET: 1})]
    shards = SimpleNamespace(inputs=inputs, statistics={"dropped_samples": samples})
    (table,) = dropped_document_tables(SimpleNamespace(manifests={"shards": shards}))
    assert table.rows == [[SHORT, "2", "a.jsonl, 1,234", "x 1"], [BRACKET, "1", "", ""]]
    assert table.notes == ["Of 10 documents 3 were left out."]
    nothing = SimpleNamespace(inputs=[InputFile(uri="a", bytes=1, rows=7)], statistics={})
    assert dropped_document_tables(SimpleNamespace(manifests={"shards": nothing})) == []
    assert dropped_document_tables(SimpleNamespace(manifests={})) == []
