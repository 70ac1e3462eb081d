"""Mixtures: several corpora with names and weights in one shuffle, counted by hand from what lies in the shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from kexue_train.corpus.config import CorpusConfig, NamedSource
from kexue_train.corpus.mixture import find_mixture, read_sources
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.artifacts import Manifest
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.publication.documents import compare_documents
from kexue_train.shuffle import passes
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus
from kexue_train.shuffle.text_shards import verify_text_shards
from tests.shuffle.conftest import read_bytes, write_jsonl

WEB = [f"web page {number} about things" for number in range(41)]
CODE = [f"def f{number}(): return {number}" for number in range(30)]
WIKI = [f"维基百科第{number}条" for number in range(23)]
WEIGHTS = {"web": 0.5, "code": 2.25, "wiki": 3.0}


class KilledError(Exception):
    pass


def named(folder: Path, name: str, **settings) -> NamedSource:
    inputs = settings.pop("inputs", [str(folder / f"{name}.jsonl")])
    return CorpusConfig.parse({"sources": [{"name": name, "inputs": inputs} | settings]}, where="test").sources[0]


def mix(sources, out: Path, *, workers: int = 1, seed: int = 5, **settings) -> Manifest:
    return shuffle_corpus(ShuffleConfig(**settings), sources, out, seed=seed, executor=LocalExecutor(workers))


def rows_of(folder: Path) -> list[tuple[str, str]]:
    tables = [read_shard(path) for path in shard_paths(folder)]
    return [
        pair for table in tables for pair in zip(*(table[name].to_pylist() for name in ("text", "source")), strict=True)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    for name, texts in (("web", WEB), ("code", CODE), ("wiki", WIKI)):
        write_jsonl(folder / f"{name}.jsonl", texts)
    return folder


@pytest.fixture(scope="module")
def three(folder) -> list[NamedSource]:
    return [named(folder, name, weight=weight) for name, weight in WEIGHTS.items()]


@pytest.fixture(scope="module")
def mixed(folder, three) -> Path:
    mix(three, folder / "mixed", shards=3)
    return folder / "mixed"


def test_every_document_is_taken_as_often_as_its_weight_says(mixed):
    found = Counter(rows_of(mixed))
    for name, texts, weight in (("web", WEB, 0.5), ("code", CODE, 2.25), ("wiki", WIKI, 3.0)):
        copies = [found.pop((text, name), 0) for text in texts]
        assert set(copies) <= {int(weight), int(weight) + (weight % 1 > 0)}
        assert sum(copies) == int(weight) * len(texts) + round(weight % 1 * len(texts))
    assert not found


def test_the_manifest_counts_what_lies_in_the_shards(mixed):
    manifest, rows = verify_text_shards(mixed), rows_of(mixed)
    told = manifest.statistics["sources"]
    total = sum(len(text.encode()) for text, _ in rows)
    assert list(told) == list(WEIGHTS)
    for name, entry in told.items():
        own = [len(text.encode()) for text, source in rows if source == name]
        assert (entry["documents"], entry["text_bytes"]) == (len(own), sum(own))
        assert entry["share"] == pytest.approx(sum(own) / total, abs=1e-6)
        assert entry["offered"] == entry["documents"] + entry["sampled_out"]


def test_an_input_knows_its_source_but_not_the_other_inputs(folder, three):
    found = find_mixture(three, format="auto", document="line")
    assert [(Path(source.path).stem, source.named.name, source.weight) for source in found if source.named] == [
        (name, name, weight) for name, weight in WEIGHTS.items()
    ]
    assert not any(source.named.inputs for source in found if source.named)


def test_sources_of_equal_weight_are_each_halved_exactly(folder, tmp_path):
    mix([named(folder, name, weight=0.5) for name in ("web", "code", "wiki")], tmp_path / "out", shards=2)
    assert Counter(source for _, source in rows_of(tmp_path / "out")) == {"web": 20, "code": 15, "wiki": 12}


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(mixed, three, tmp_path):
    mix(three, tmp_path / "out", workers=2, shards=3, memory="400MB")
    assert read_bytes(tmp_path / "out") == read_bytes(mixed)


@pytest.mark.parametrize("kill_after", [1, 4])
def test_a_killed_mixture_goes_on_with_the_same_bytes(mixed, three, tmp_path, monkeypatch, kill_after):
    with monkeypatch.context() as patch:
        for name in ("scatter", "gather"):
            original = getattr(passes, name)
            patch.setattr(passes, name, lambda task, original=original: _count_down(calls) or original(task))
        calls = [None] * kill_after
        with pytest.raises(KilledError):
            mix(three, tmp_path / "out", shards=3)
    mix(three, tmp_path / "out", shards=3)
    assert read_bytes(tmp_path / "out") == read_bytes(mixed)


def _count_down(calls: list[None]) -> None:
    if not calls:
        raise KilledError
    calls.pop()


def test_a_source_has_a_format_a_text_key_and_filters_of_its_own(folder, tmp_path):
    (tmp_path / "table.data").write_text("title,body\na,short\nb,a longer text of the table\n")
    table = {"inputs": [str(tmp_path / "table.data")], "format": "csv", "text_key": ["title", "body"]}
    sources = [
        named(folder, "table", **table, filters={"min_chars": 10}),
        named(folder, "code", filters={}),
        named(folder, "wiki"),
    ]
    manifest = mix(sources, tmp_path / "out", filters={"min_chars": 8})
    told = manifest.statistics["sources"]
    assert [row for row in rows_of(tmp_path / "out") if row[1] == "table"] == [
        ("b\na longer text of the table", "table")
    ]
    assert {name: sum(entry["dropped"].values()) for name, entry in told.items()} == {
        "table": 1,
        "code": 0,
        "wiki": sum(len(text) < 8 for text in WIKI),
    }


def test_other_columns_are_kept_beside_the_source(folder, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": 7}\n{"text": "b"}\n')
    mix([named(folder, "ä", inputs=[str(tmp_path / "a.jsonl")]), named(folder, "web")], tmp_path / "out", keep=("id",))
    table = read_shard(shard_paths(tmp_path / "out")[0]).to_pylist()
    assert [row for row in sorted(table, key=lambda row: row["text"]) if row["source"] == "ä"] == [
        {"text": "a", "id": "7", "source": "ä"},
        {"text": "b", "id": None, "source": "ä"},
    ]


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_a_document_of_two_sources_stays_where_it_is_taken_most_often(folder, tmp_path, dedup):
    write_jsonl(tmp_path / "copies.jsonl", [*WEB[:9], "only here, in one place", WEB[0]])
    sources = [named(folder, "web"), named(folder, "copies", inputs=[str(tmp_path / "copies.jsonl")], weight=2)]
    manifest = mix(sources, tmp_path / "out", dedup=dedup, near={"threshold": 1.0} if dedup == "near" else {})
    expected = dict.fromkeys([(text, "copies") for text in [*WEB[:9], "only here, in one place"]], 2)
    assert Counter(rows_of(tmp_path / "out")) == expected | dict.fromkeys([(text, "web") for text in WEB[9:]], 1)
    told = manifest.statistics["sources"]
    assert (told["web"]["duplicates"], told["copies"]["duplicates"]) == (9, 2)


def test_a_fraction_of_what_duplicates_leave_is_drawn_after_them(folder, tmp_path):
    write_jsonl(tmp_path / "copies.jsonl", WEB * 3)
    sources = [named(folder, "web", inputs=[str(tmp_path / "copies.jsonl")], weight=0.5), named(folder, "code")]
    found = []
    for seed in range(12):
        mix(sources, tmp_path / str(seed), dedup="exact", seed=seed)
        copies = Counter(text for text, source in rows_of(tmp_path / str(seed)) if source == "web")
        assert set(copies.values()) == {1}
        found.append(len(copies))
    # Of 41 different documents among 123 offered: in the mean 20.5, with a standard deviation of about 2.6.
    assert len(set(found)) > 1
    assert abs(sum(found) / 12 - 20.5) < 4 * 2.6 / 12**0.5


def test_complete_shards_do_not_need_the_sources_any_more(folder, tmp_path):
    (tmp_path / "own").mkdir()
    for name in ("web", "code"):
        (tmp_path / "own" / f"{name}.jsonl").write_bytes((folder / f"{name}.jsonl").read_bytes())
    sources = [named(tmp_path / "own", "web", weight=1.5), named(tmp_path / "own", "code")]
    made = mix(sources, tmp_path / "out")
    (tmp_path / "own" / "web.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert mix(sources, tmp_path / "out") == made
    for other in ([sources[1], sources[0]], sources[:1], [named(tmp_path / "own", "web"), sources[1]]):
        with pytest.raises(CorpusError, match="source 'web'"):
            mix(other, tmp_path / "out")


def test_the_documents_of_published_shards_are_found_in_the_sources(folder, mixed):
    manifest = verify_text_shards(mixed)
    compared = compare_documents(manifest, [str(folder / f"{name}.jsonl") for name in ("wiki", "code", "web")])
    assert [Path(str(entry.found_in)).stem for entry in compared] == list(WEIGHTS)


def test_without_sources_nothing_says_source(folder, tmp_path, shuffle):
    manifest = shuffle([folder / "web.jsonl", folder / "code.jsonl"], tmp_path / "out")
    assert read_shard(shard_paths(tmp_path / "out")[0]).column_names == ["text"]
    assert "sources" not in manifest.statistics
    assert "sources" not in manifest.settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": [{"name": "a", "inputs": ["x"], "weight": 0}]}, "would take no document; remove the source"),
        ({"sources": [{"name": "a", "inputs": ["x"], "weight": -1}]}, "above 0, at most 1000"),
        ({"sources": [{"name": "a", "inputs": ["x"], "weight": 1e9}]}, "at most 1000; a weight is how often"),
        ({"sources": [{"name": "a", "inputs": ["x"], "weight": float("nan")}]}, "finite number"),
        ({"sources": [{"name": "a", "inputs": []}]}, "at least 1 item"),
        ({"sources": [{"name": "a b", "inputs": ["x"]}]}, "should match pattern"),
        ({"sources": [{"name": "a", "inputs": ["x"], "wieght": 2}]}, "did you mean 'weight'"),
        ({"sources": [{"name": "a", "inputs": ["x"]}] * 2}, "2 sources are called 'a'"),
        ({"sources": [{"name": "a", "inputs": ["x"]}], "inputs": ["y"]}, r"\{name: other, inputs: \[y\]\}"),
        ({"sources": [{"name": "a", "inputs": ["x"]}], "source": "installed_docs"}, "'sources' is given though"),
    ],
)
def test_sources_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        CorpusConfig.parse(values, where="test.yaml")


def test_a_file_of_sources_names_inputs_from_where_it_lies(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = folder / "mix.yaml"
    file.write_text("sources:\n- {name: web, inputs: [web.jsonl], weight: 2}\n- {name: all, inputs: ['*.csv']}\n")
    assert [(source.name, source.weight, *source.inputs) for source in read_sources(file)] == [
        ("web", 2.0, str(folder / "web.jsonl")),
        ("all", 1.0, str(folder / "*.csv")),
    ]
    file.write_text("inputs: [web.jsonl]\n")
    with pytest.raises(ConfigError, match="must hold one list, such as sources"):
        read_sources(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": 2.0}}, "weights of their own"),
        ({"keep": ("source",)}, "leave it out of keep"),
        ({"output": "lines"}, "plain lines cannot say"),
        ({"text_key": "body"}, "has no effect: every source"),
    ],
)
def test_settings_that_do_not_go_with_sources_are_refused(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        mix([named(folder, "web", text_key="text")], tmp_path / "out", **settings)


def test_a_missing_input_an_input_of_two_sources_and_an_empty_source_are_refused(folder, tmp_path):
    with pytest.raises(CorpusError, match=r"source 'wbe': .*: no such input file"):
        mix([named(folder, "web"), named(folder, "wbe")], tmp_path / "out")
    with pytest.raises(CorpusError, match="an input of the sources 'web' and 'all'"):
        mix([named(folder, "web"), named(folder, "all", inputs=[str(folder / "*.jsonl")])], tmp_path / "out")
    with pytest.raises(CorpusError, match=r"source 'code' gives no document \(0 blank, 0 rejected, 30 dropped"):
        mix([named(folder, "web"), named(folder, "code", filters={"min_chars": 1000})], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_much_larger_than_another_leaves_it_exact(tmp_path):
    write_jsonl(tmp_path / "large.jsonl", (f"{number}" for number in range(20_000)))
    write_jsonl(tmp_path / "small.jsonl", ["the only one"])
    sources = [named(tmp_path, "large", weight=0.25), named(tmp_path, "small", weight=1.5)]
    manifest = mix(sources, tmp_path / "out", shards=4)
    counts = Counter(source for _, source in rows_of(tmp_path / "out"))
    assert counts == {"large": 5000, "small": 1 + round(0.5)}
    assert json.loads(json.dumps(manifest.statistics["sources"]))["small"]["documents"] == counts["small"]
