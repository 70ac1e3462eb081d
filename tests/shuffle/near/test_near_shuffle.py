from __future__ import annotations

import json
import random
from collections import defaultdict
from types import SimpleNamespace

import pytest

from kexue_train.executor import LocalExecutor
from kexue_train.executor.interface import machine_lost
from kexue_train.foundation.artifacts import partial_dir
from kexue_train.foundation.errors import ArtifactError, ConfigError, ResourceError
from kexue_train.shuffle import passes, single_file
from kexue_train.shuffle import shuffle_corpus as stage
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.near import find, match
from kexue_train.shuffle.plan import MemoryBudget
from kexue_train.shuffle.text_shards import verify_text_shards
from tests.reference import near_duplicates as reference
from tests.shuffle.shard_texts import iter_texts

SURE = {"threshold": 0.6, "ngram": 3, "bands": 64, "rows": 3}
"""Finds a pair at the threshold but for one in six million."""
SETTINGS = {"dedup": "near", "keep_dropped": True, "shards": 2, "near": {"ngram": 3, "bands": 16, "rows": 4}}
SMALL = MemoryBudget(
    workers=1, task_bytes=1, block_bytes=2000, reader_bytes=2**24, buffer_bytes=9000, bucket_bytes=20_000
)


def edited(words, share, rng):
    return [rng.choice("abcdefghij") + str(rng.randrange(10**6)) if rng.random() < share else word for word in words]


def make_texts(seed=0, families=18, words=60):
    """Return texts of families that differ in 0 to 30 % of their words, Chinese ones, copies, texts without words."""
    rng = random.Random(seed)
    texts = ["", "...", "...", "one", "One!"]
    for family in range(families):
        first = [f"w{rng.randrange(10**6)}" for _ in range(words)]
        texts += [" ".join(edited(first, rng.choice([0, 0.02, 0.05, 0.1, 0.3]), rng)) for _ in range(family % 6)]
        chinese = [chr(rng.randrange(0x4E00, 0x9000)) for _ in range(words)]
        texts += ["".join(chinese), "".join(chinese[: words - family])] if family % 3 else []
    texts += texts[10:20]
    rng.shuffle(texts)
    return [text for text in texts if text]


def found_clusters(texts, folder, corpus):
    """Return the clusters that the kept records tell."""
    place = {}
    position = 0
    for number, line in enumerate(corpus.read_bytes().splitlines(keepends=True)):
        place[position] = number
        position += len(line)
    clusters = defaultdict(set)
    for line in (folder / "dropped" / "records.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        assert record["reason"] == "near duplicate"
        number, kept = place[record["position"]], place[record["kept"]["position"]]
        assert texts[number] == record["text"]
        clusters[kept] |= {kept, number}
    return {frozenset(cluster) for cluster in clusters.values()}


@pytest.fixture(scope="module")
def near_corpus(tmp_path_factory, make_corpus):
    return make_corpus(tmp_path_factory.mktemp("near") / "in.jsonl", make_texts())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, near_corpus, shuffle, contents):
    """The files of an undisturbed shuffle with ``SETTINGS``."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5_000)
        shuffle(near_corpus, out, **SETTINGS)
    return contents(out)


def test_every_pair_above_the_threshold_is_found_and_none_below(tmp_path, near_corpus, shuffle):
    texts = make_texts()
    manifest = shuffle(near_corpus, tmp_path / "out", dedup="near", near=SURE, keep_dropped=True, shards=3)
    expected = reference.clusters(texts, 3, 0.6)
    assert found_clusters(texts, tmp_path / "out", near_corpus) == expected
    assert len(expected) > 10
    lost = {number for cluster in expected for number in cluster - {min(cluster)}}
    kept = {text for number, text in enumerate(texts) if texts.index(text) not in lost}
    assert sorted(iter_texts(tmp_path / "out")) == sorted(kept)
    told = manifest.statistics["near_duplicates"]
    sizes = [len(cluster) for cluster in expected]
    assert told["sizes"] == {str(size): sizes.count(size) for size in sorted(set(sizes))}
    assert (told["removed"], told["texts"], told["clusters"]) == (len(lost), sum(sizes), len(sizes))
    assert manifest.statistics["offered"] == len(texts)
    assert manifest.rows == len(texts) - len(lost) - manifest.statistics["duplicates"]
    first, *_ = told["largest"]
    assert first["texts"] == max(sizes)
    assert [entry["is_kept"] for entry in first["documents"]] == [True, False, False]
    assert all(any(text.startswith(entry["text"]) for text in texts) for entry in first["documents"])
    verify_text_shards(tmp_path / "out")


def test_memory_and_the_way_to_cut_the_input_change_no_byte(tmp_path, near_corpus, shuffle, contents, monkeypatch):
    monkeypatch.setattr(match, "_PIECE", 8)
    shuffle(near_corpus, tmp_path / "whole", **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "split_memory", lambda *_: SMALL)
        patch.setattr(find, "BYTES_PER_DOCUMENT", 0)
        patch.setattr("kexue_train.shuffle.plan._MAX_BUCKETS", 1)
        shuffle(near_corpus, tmp_path / "split", **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5000)
        patch.setattr("kexue_train.shuffle.plan._MAX_RANGE_BYTES", 5000)
        shuffle(near_corpus, tmp_path / "cut", **SETTINGS)
    assert contents(tmp_path / "split") == contents(tmp_path / "whole")
    files = [tmp_path / name / "dropped" / "records.jsonl" for name in ("whole", "cut")]
    dropped = [sorted(file.read_text(encoding="utf-8").splitlines()) for file in files]
    assert dropped[0] == dropped[1]
    assert list(iter_texts(tmp_path / "cut")) == list(iter_texts(tmp_path / "whole"))


class KilledError(RuntimeError):
    """Stands for a kill."""


STEPS = [
    (passes, "scatter"),
    (find, "match"),
    (find, "write_verdicts"),
    (find.Search, "remove_files"),
    (passes, "gather"),
]


@pytest.mark.parametrize(("where", "name"), STEPS, ids=[name for _, name in STEPS])
def test_work_that_was_killed_in_any_step_goes_on_and_gives_the_same_bytes(
    tmp_path, near_corpus, shuffle, contents, monkeypatch, whole, where, name
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5_000)
    original, done = getattr(where, name), []
    calls = {"scatter": 2, "match": 3, "gather": 1}.get(name, 0)

    def kill(*arguments):
        if len(done) == calls:
            raise KilledError
        done.append(arguments)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, kill)
        with pytest.raises(KilledError):
            shuffle(near_corpus, tmp_path / "out", **SETTINGS)
    again = []
    monkeypatch.setattr(where, name, lambda *arguments: (again.append(arguments), original(*arguments))[1])
    shuffle(near_corpus, tmp_path / "out", **SETTINGS)
    assert contents(tmp_path / "out") == whole
    assert not partial_dir(tmp_path / "out").exists()
    if name in ("match", "gather"):
        assert len(again) == {"match": 16, "gather": 2}[name] - calls


def test_files_of_the_first_pass_that_are_gone_are_made_again(
    tmp_path, near_corpus, shuffle, contents, monkeypatch, whole
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5_000)
    with monkeypatch.context() as patch:
        patch.setattr(find, "match", lambda _: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            shuffle(near_corpus, tmp_path / "out", **SETTINGS)
    bands, *_ = sorted((partial_dir(tmp_path / "out") / ".spill").glob("*.samples"))
    bands.write_bytes(b"")
    shuffle(near_corpus, tmp_path / "out", **SETTINGS)
    assert contents(tmp_path / "out") == whole


def test_spill_files_on_the_machines_own_disks_change_no_byte(
    tmp_path, near_corpus, shuffle, contents, monkeypatch, whole
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5_000)
    shuffle(near_corpus, tmp_path / "out", spill=str(tmp_path / "spill"), **SETTINGS)
    assert contents(tmp_path / "out") == whole
    assert not list(tmp_path.glob("spill/*"))


def test_a_machine_that_is_lost_after_the_search_is_read_again_without_it(
    tmp_path, near_corpus, shuffle, contents, monkeypatch, whole
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5_000)
    signed = []
    scatter = passes.scatter
    monkeypatch.setattr(passes, "scatter", lambda task: (signed.append(task.near is not None), scatter(task))[1])
    with monkeypatch.context() as patch:
        patch.setattr(passes, "gather", lambda *_: (_ for _ in ()).throw(machine_lost(["local"])))
        patch.setattr(passes.Passes, "forget", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            shuffle(near_corpus, tmp_path / "out", spill=str(tmp_path / "spill"), **SETTINGS)
    for marker in (partial_dir(tmp_path / "out") / ".spill").glob("task-*.json"):
        marker.unlink()
    first = len(signed)
    shuffle(near_corpus, tmp_path / "out", spill=str(tmp_path / "spill"), **SETTINGS)
    assert contents(tmp_path / "out") == whole
    assert (all(signed[:first]), any(signed[first:]), len(signed)) == (True, False, 2 * first)


def test_without_near_duplicates_the_shards_are_those_of_exact(tmp_path, make_corpus, shuffle, contents):
    corpus = make_corpus(tmp_path / "in.jsonl", [f"{i} {i * i} {i * 7919}" for i in [*range(200), *range(20)]])
    for dedup in ("exact", "near"):
        shuffle(corpus, tmp_path / dedup, dedup=dedup, shards=2)
    exact, near = (contents(tmp_path / dedup) for dedup in ("exact", "near"))
    assert {name for name in exact if exact[name] != near[name]} == {"manifest.json"}
    assert json.loads(near["manifest.json"])["statistics"]["near_duplicates"]["clusters"] == 0


def test_one_text_over_and_over_is_compared_with_nothing(tmp_path, make_corpus, shuffle):
    corpus = make_corpus(tmp_path / "in.jsonl", ["the same text again and again " * 5] * 20_000)
    manifest = shuffle(corpus, tmp_path / "out", dedup="near")
    assert (manifest.rows, manifest.statistics["duplicates"]) == (1, 19_999)
    assert manifest.statistics["near_duplicates"]["compared"] == 0


def test_half_of_the_corpus_in_one_cluster_takes_few_comparisons(tmp_path, make_corpus, shuffle):
    body = " ".join(f"word{i}" for i in range(150))
    texts = [text for i in range(700) for text in (f"{i} {body}", f"{i} " + " ".join(str(i * j) for j in range(20)))]
    manifest = shuffle(make_corpus(tmp_path / "in.jsonl", texts), tmp_path / "out", dedup="near")
    told = manifest.statistics["near_duplicates"]
    assert told["sizes"] == {"700": 1}
    assert told["compared"] < 3 * 700 * 14
    assert manifest.rows == 701


def test_weights_take_the_kept_text_as_often_and_no_copy_of_the_others(tmp_path, make_corpus, shuffle):
    body = " ".join(f"word{i}" for i in range(100))
    first = make_corpus(tmp_path / "a.jsonl", [f"{body} one"])
    second = make_corpus(tmp_path / "b.jsonl", [f"{body} two", "else"])
    settings = {"dedup": "near", "shards": 3}
    shuffle([first, second], tmp_path / "out", weights={str(first): 3.0, str(second): 2.0}, **settings)
    assert sorted(iter_texts(tmp_path / "out")) == ["else"] * 2 + [f"{body} one"] * 3


def test_near_duplicates_are_left_out_of_a_single_file(tmp_path, near_corpus, shuffle):
    settings = {"dedup": "near", "near": SURE, "keep_dropped": True}
    shuffle(near_corpus, tmp_path / "out", **settings)
    single_file.shuffle_to_file(
        ShuffleConfig(**settings, output="jsonl"), [str(near_corpus)], str(tmp_path / "out.jsonl"), seed=0,
        executor=LocalExecutor(1),
    )  # fmt: skip
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == list(iter_texts(tmp_path / "out"))
    kept = (tmp_path / "out.jsonl.dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(kept) == sorted((tmp_path / "out/dropped/records.jsonl").read_text(encoding="utf-8").splitlines())


def test_any_bytes_and_long_lines_are_compared_too(tmp_path):
    body = b" ".join(b"%d" % i for i in range(200_000))  # longer than what is worked on at a time
    (tmp_path / "in.txt").write_bytes(b"\n".join([body, b"\xff\xfe", body + b" \xff", b"", b"\xc3", b"\xfe"]))
    manifest = single_file.shuffle_to_file(
        ShuffleConfig(dedup="near", output="lines"), [str(tmp_path / "in.txt")], str(tmp_path / "out.txt"), seed=0,
        executor=LocalExecutor(1),
    )  # fmt: skip
    assert sorted((tmp_path / "out.txt").read_bytes().splitlines()) == [b"", body, b"\xc3", b"\xfe", b"\xff\xfe"]
    assert manifest.statistics["near_duplicates"]["removed"] == 1


def test_a_document_that_is_lost_between_the_passes_fails_the_run(tmp_path, near_corpus, shuffle, monkeypatch):
    original = find.write_verdicts

    def change(folder, verdicts, *more):
        verdicts["low"][0] ^= 1
        original(folder, verdicts, *more)

    monkeypatch.setattr(find, "write_verdicts", change)
    with pytest.raises(ArtifactError, match="lacks 1 of the documents that were compared"):
        shuffle(near_corpus, tmp_path / "out", dedup="near", near=SURE)


def test_too_many_clustered_documents_for_the_memory_are_refused_and_the_work_is_kept(
    tmp_path, near_corpus, shuffle, contents, monkeypatch, whole
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 5_000)
    with monkeypatch.context() as patch:
        patch.setattr(find, "BYTES_PER_DOCUMENT", 10**9)
        with pytest.raises(ResourceError, match=r"grouping them takes .* of memory .*finished work is kept"):
            shuffle(near_corpus, tmp_path / "out", **SETTINGS)
    monkeypatch.setattr(find, "match", None)
    shuffle(near_corpus, tmp_path / "out", **SETTINGS)
    assert contents(tmp_path / "out") == whole


def test_the_disk_that_the_bands_take_is_told_before_work_starts(tmp_path, make_corpus, shuffle, monkeypatch):
    corpus = make_corpus(tmp_path / "in.jsonl", [f"{i} short" for i in range(40_000)])
    free = 60 * 10**6  # enough for the shuffle of 1 MB, not for 20 bytes in 200 bands of each document
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(passes, "scatter", None)
    with pytest.raises(ResourceError, match=r"the shuffle needs about \d+ MB of disk and 60 MB are free"):
        shuffle(corpus, tmp_path / "out", dedup="near", near={"bands": 200, "rows": 5})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"near": {"threshold": 0.8}}, "threshold=0.8 has no effect with dedup=none"),
        ({"dedup": "exact", "near": {"bands": 9}}, "bands=9 has no effect with dedup=exact"),
        ({"dedup": "near", "near": {"threshold": 0.5}}, r"find only 5.3%; raise it to 0.69 or more"),
        ({"dedup": "near", "near": {"threshold": 0.0}}, "greater than or equal to 0.3"),
        ({"dedup": "near", "near": {"threshold": 1.1}}, "less than or equal to 1"),
        ({"dedup": "near", "near": {"bands": 256, "rows": 8}}, r"bands \* rows is 2048"),
        ({"dedup": "near", "weights": {"a": 0.5}}, "with dedup: near, weights must be whole numbers"),
    ],
)
def test_settings_that_do_nothing_or_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ShuffleConfig.parse(settings, where="test")


@pytest.mark.slow
def test_workers_and_ray_give_the_same_bytes(tmp_path, make_corpus, shuffle, contents, monkeypatch, local_ray):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 50_000)
    corpus = make_corpus(tmp_path / "in.jsonl", make_texts(families=200))
    settings = {"dedup": "near", "keep_dropped": True, "shards": 3}
    for name, executor in [
        ("1", LocalExecutor(1)),
        ("2", LocalExecutor(2)),
        ("4", LocalExecutor(4)),
        ("ray", local_ray),
    ]:
        shuffle(corpus, tmp_path / name, executor=executor, **settings)
        assert contents(tmp_path / name) == contents(tmp_path / "1")
    assert json.loads(contents(tmp_path / "1")["manifest.json"])["statistics"]["near_duplicates"]["clusters"] > 50
