from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kexue_train.foundation.arrow_shards import format_checksum
from kexue_train.foundation.artifacts import MANIFEST_NAME, partial_dir
from kexue_train.foundation.errors import ArtifactError, CorpusError, ResourceError, StaleArtifactError
from kexue_train.shuffle import passes
from kexue_train.shuffle import shuffle_corpus as stage
from kexue_train.shuffle.plan import MemoryBudget
from kexue_train.shuffle.text_shards import verify_text_shards
from tests.reference.row_hashes import sum_hashes, text_hashes
from tests.shuffle.shard_texts import iter_texts

# Every text begins with a letter: what is blank is another test's matter.
TEXT = st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: "x" + text)


def shards_of(files):
    return {name: data for name, data in files.items() if name.endswith(".arrow")}


def read_texts(folder):
    return [json.loads(line)["text"] for path in sorted(folder.iterdir()) for line in path.read_bytes().splitlines()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_every_document_comes_out_as_often_as_it_went_in(tmp_path_factory, make_corpus, shuffle, texts, shards, seed):
    folder = tmp_path_factory.mktemp("any")
    manifest = shuffle(make_corpus(folder / "a.jsonl", texts), folder / "out", shards=shards, seed=seed)
    assert Counter(iter_texts(folder / "out")) == Counter(texts)
    assert manifest.rows == len(texts)


def test_shards_are_the_same_bytes_for_any_memory_and_any_way_to_cut_the_input(
    tmp_path, corpus, shuffle, contents, monkeypatch
):
    shuffle(corpus, tmp_path / "reference", shards=3)
    for i, memory in enumerate(["1B", "130MB", "10GB"]):
        shuffle(corpus, tmp_path / str(i), shards=3, memory=memory)
        assert contents(tmp_path / str(i)) == contents(tmp_path / "reference")
    for step in (3000, 7777, 10**9):
        monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", step)
        monkeypatch.setattr("kexue_train.shuffle.plan._MAX_RANGE_BYTES", step)
        shuffle(corpus, tmp_path / str(step), shards=3)
        assert shards_of(contents(tmp_path / str(step))) == shards_of(contents(tmp_path / "reference"))


TINY = MemoryBudget(workers=1, task_bytes=1, block_bytes=300, reader_bytes=2**24, buffer_bytes=700, bucket_bytes=1000)


@pytest.mark.parametrize("keep", [(), ("id",)])
def test_a_bucket_larger_than_memory_gives_the_same_bytes(tmp_path, make_corpus, shuffle, contents, monkeypatch, keep):
    corpus = tmp_path / "in.jsonl"
    texts = [f"document {i % 280} " + "word " * (i * i % 97) for i in range(300)]
    corpus.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    for dedup in ("none", "exact"):
        settings = {"shards": 2, "dedup": dedup, "keep": keep}
        shuffle(corpus, tmp_path / f"whole {dedup}", **settings)
        with monkeypatch.context() as patch:
            patch.setattr(stage, "split_memory", lambda *_: TINY)
            patch.setattr("kexue_train.shuffle.plan._MAX_BUCKETS", 1)
            shuffle(corpus, tmp_path / f"split {dedup}", **settings)
        assert contents(tmp_path / f"split {dedup}") == contents(tmp_path / f"whole {dedup}")


def test_the_order_over_all_shards_is_the_same_for_any_number_of_them(tmp_path, corpus, shuffle):
    for shards in (1, 2, 7, 40):
        shuffle(corpus, tmp_path / str(shards), shards=shards)
    orders = [list(iter_texts(tmp_path / str(shards))) for shards in (1, 2, 7, 40)]
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert orders[0] != read_texts(corpus)


def test_another_seed_gives_another_order_of_the_same_documents(tmp_path, corpus, shuffle):
    for seed in (0, 1):
        shuffle(corpus, tmp_path / str(seed), seed=seed)
    first, second = (list(iter_texts(tmp_path / str(seed))) for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(read_texts(corpus))


def test_dedup_keeps_one_of_each_and_accounts_for_the_others(tmp_path, corpus, shuffle):
    manifest = shuffle(corpus, tmp_path / "out", dedup="exact", shards=2)
    texts = read_texts(corpus)
    assert sorted(iter_texts(tmp_path / "out")) == sorted(set(texts))
    assert (manifest.rows, manifest.statistics["duplicates"]) == (300, 20)
    hashes = {text: text_hashes([text.encode()])[0] for text in texts}
    expected = format_checksum(sum_hashes(hashes.values())), format_checksum(sum_hashes(hashes[t] for t in texts[-20:]))
    assert (manifest.rows_checksum.output, manifest.rows_checksum.dropped) == expected


def test_the_manifest_tells_rows_and_refusals_by_input_and_the_checksum_of_the_rows(tmp_path, make_corpus, shuffle):
    good = make_corpus(tmp_path / "in" / "a.jsonl", ["one", "two", " "])
    bad = tmp_path / "in" / "b.jsonl"
    bad.write_bytes(b'{"text": "three"}\n{"text": 4}\n\xff\n{"no": "text"}\n{"text": 5}\n')
    manifest = shuffle(tmp_path / "in", tmp_path / "out", on_bad_record="skip")
    assert [(entry.uri, entry.bytes, entry.rows) for entry in manifest.inputs] == [
        (str(good), good.stat().st_size, 2),
        (str(bad), bad.stat().st_size, 1),
    ]
    assert manifest.inputs[1].rejected == {"'text' is not a string": 2, "no key 'text'": 1, "not UTF-8": 1}
    assert manifest.statistics["rejected"] == manifest.inputs[1].rejected
    told = "4 records rejected (2 'text' is not a string, 1 no key 'text', 1 not UTF-8)"
    assert stage.SHUFFLE.describe(None, tmp_path / "out").endswith(f"checksums agree, {told}")
    assert (manifest.statistics["blank"], manifest.rows) == (1, 3)
    expected = format_checksum(sum_hashes(text_hashes([b"one", b"two", b"three"])))
    assert manifest.rows_checksum.input == manifest.rows_checksum.output == expected


def test_refused_records_are_kept_with_file_position_and_reason(tmp_path, shuffle):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": 4}\n{"text": "\xff"}\n')
    shuffle(tmp_path / "a.jsonl", tmp_path / "out", on_bad_record="skip")
    lines = (tmp_path / "out" / "rejected" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert (first["file"], first["position"], first["raw"]) == (str(tmp_path / "a.jsonl"), 17, '{"text": 4}')
    assert (second["position"], second["reason"], second["raw_base64"]) == (29, "not UTF-8", "eyJ0ZXh0IjogIv8ifQ==")


def test_a_bad_record_fails_by_default_naming_file_line_byte_and_the_way_on(tmp_path, shuffle):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n{"text": 4}\n')
    with pytest.raises(
        CorpusError, match=r"a\.jsonl:3: record at byte 18: 'text' is not a string .*--on-bad-record skip"
    ):
        shuffle(tmp_path / "a.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"\n\n", b'{"text": " "}\n'])
def test_a_corpus_without_a_document_is_an_error_and_leaves_nothing(tmp_path, shuffle, data):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(CorpusError, match="hold no document"):
        shuffle(tmp_path / "a.jsonl", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_second_call_returns_at_once_and_another_setting_is_refused_unless_replaced(
    tmp_path, corpus, shuffle, monkeypatch
):
    manifest = shuffle(corpus, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "open_partial", None)
        assert shuffle(corpus, tmp_path / "out", memory="1GB") == manifest
    with pytest.raises(StaleArtifactError, match="seed changed from 0 to 1"):
        shuffle(corpus, tmp_path / "out", seed=1)
    assert shuffle(corpus, tmp_path / "out", seed=1, replace=True).seed == 1


def test_a_changed_input_makes_the_shards_stale(tmp_path, corpus, shuffle):
    shuffle(corpus, tmp_path / "out")
    os.utime(corpus / "a.jsonl", ns=(1, 1))
    with pytest.raises(StaleArtifactError, match=r"a\.jsonl was added, removed or changed"):
        shuffle(corpus, tmp_path / "out")


NAMED = {
    "folder": lambda folder: [folder],
    "folder above": lambda folder: [folder.parent],
    "files": lambda folder: [folder / "a.jsonl", folder / "b.jsonl"],
    "glob": lambda folder: [f"{folder}/*.jsonl"],
    "deep glob": lambda folder: [f"{folder.parent}/**/*.jsonl"],
    "list": lambda folder: [f"@{folder.parent.parent / 'list.txt'}"],
    "URI": lambda folder: [folder.as_uri()],
}


@pytest.fixture
def movable(tmp_path, corpus):
    """The corpus in a folder of its own, and what moves it away."""
    (tmp_path / "corpora").mkdir()
    folder = corpus.rename(tmp_path / "corpora" / "in")
    (tmp_path / "list.txt").write_text(f"{folder}/a.jsonl\n{folder}/b.jsonl\n")
    return folder


@pytest.mark.parametrize("name", NAMED)
def test_complete_shards_need_no_inputs_any_more(tmp_path, movable, shuffle, name):
    inputs, notes = NAMED[name](movable), []
    made = shuffle(inputs, tmp_path / "out", shards=2)
    movable.rename(tmp_path / "elsewhere")
    progress = SimpleNamespace(note=notes.append, update=lambda *_, **__: None)
    assert shuffle(inputs, tmp_path / "out", shards=2, progress=progress) == made
    assert shuffle(inputs, tmp_path / "out") == made  # so many shards as there are
    assert "the inputs cannot be read any more, and are not needed: the shards are complete" in notes[0]


@pytest.mark.parametrize(
    ("inputs", "settings"),
    [
        (["in/a.jsonl"], {}),
        (["in/a.jsonl", "in/b.jsonl", "in/c.jsonl"], {}),
        (["other"], {}),
        (["in"], {"shards": 3}),
        (["in"], {"dedup": "exact"}),
        (["in"], {"seed": 1}),
        (["in/a.jsonl", "in/b.jsonl"], {"weights": {"in/a.jsonl": 2.0}}),
    ],
    ids=str,
)
def test_shards_of_other_inputs_or_settings_are_not_taken_for_those_that_are_gone(
    tmp_path, movable, shuffle, inputs, settings, monkeypatch
):
    monkeypatch.chdir(movable.parent)
    shuffle(movable, tmp_path / "out", shards=2)
    movable.rename(tmp_path / "elsewhere")
    with pytest.raises(CorpusError, match="no such input"):
        shuffle(inputs, tmp_path / "out", replace=True, **{"shards": 2} | settings)


def test_an_input_that_changed_while_another_went_is_noticed(tmp_path, movable, shuffle):
    files = [movable / "a.jsonl", movable / "b.jsonl"]
    made = shuffle(files, tmp_path / "out")
    files[1].unlink()
    assert shuffle(files, tmp_path / "out") == made
    files[0].write_text('{"text": "other"}\n')
    with pytest.raises(CorpusError, match="no such input"):
        shuffle(files, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "settings", "is_said"),
    [
        ("a.txt", "One.\nTwo.\n\nThree.\nFour.\n\nFive.\n", {}, True),
        ("a.txt", "One.\nTwo.\n\nThree.\nFour.\n\nFive.\n", {"document": "block"}, False),
        ("a.txt", "One.\nTwo.\nThree.\n\n", {}, False),
        ("a.jsonl", '{"text": "One."}\n\n\n{"text": "Two."}\n', {}, False),
    ],
    ids=["blank lines between", "blocks", "one at the end", "another format"],
)
def test_blank_lines_that_may_end_documents_are_said(tmp_path, shuffle, name, text, settings, is_said):
    (tmp_path / name).write_text(text)
    notes = []
    progress = SimpleNamespace(note=notes.append, update=lambda *_, **__: None)
    shuffle(tmp_path / name, tmp_path / "out", progress=progress, **settings)
    assert any("--document block" in note for note in notes) == is_said


def test_an_input_that_grows_while_it_is_read_is_noticed(tmp_path, corpus, shuffle, monkeypatch):
    def grow(task):
        with (corpus / "b.jsonl").open("ab") as file:
            file.write(b'{"text": "late"}\n')
        return original(task)

    original = passes.scatter
    monkeypatch.setattr(passes, "scatter", grow)
    with pytest.raises(CorpusError, match=r"b\.jsonl: was changed while it was read"):
        shuffle(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_input_of_an_artifact_is_known_by_contents_not_by_place(tmp_path, corpus, shuffle, contents):
    for place in ("here", "there"):
        shuffle(corpus, tmp_path / place / "shards")
        manifest = shuffle(tmp_path / place / "shards", tmp_path / place / "again")
    assert manifest.inputs[0].uri == "shards/data-00000-of-00001.arrow"
    assert list(manifest.parents) == ["shards"]
    assert contents(tmp_path / "here" / "again") == contents(tmp_path / "there" / "again")


class KilledError(RuntimeError):
    """Stands for a kill."""


def _fail(*_):
    raise KilledError


def record_tasks(patch, kill_after: int | None = None) -> list[object]:
    """Record every task that runs; the one after ``kill_after`` others is killed."""
    done: list[object] = []

    def wrap(function):
        def run(task):
            if len(done) == kill_after:
                raise KilledError
            done.append(task)
            return function(task)

        return run

    for name in ("scatter", "gather"):
        patch.setattr(passes, name, wrap(getattr(passes, name)))
    return done


@pytest.mark.parametrize("memory", ["1B", "3GB"])
@pytest.mark.parametrize("kill_after", [0, 1, 5, 10, 13])
def test_work_that_was_interrupted_goes_on_and_gives_the_same_bytes(
    tmp_path, corpus, shuffle, contents, monkeypatch, kill_after, memory
):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 10_000)
    with monkeypatch.context() as patch:
        tasks = record_tasks(patch)
        shuffle(corpus, tmp_path / "reference", shards=4)
    with monkeypatch.context() as patch:
        record_tasks(patch, kill_after)
        with pytest.raises(KilledError):
            shuffle(corpus, tmp_path / "out", shards=4, memory="200MB")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        done_later = record_tasks(patch)
        shuffle(corpus, tmp_path / "out", shards=4, memory=memory)  # not the memory it began with
    assert len(done_later) == len(tasks) - kill_after
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    assert not partial_dir(tmp_path / "out").exists()


def test_a_kill_while_publishing_costs_nothing(tmp_path, corpus, shuffle, contents, monkeypatch):
    shuffle(corpus, tmp_path / "reference")
    with monkeypatch.context() as patch:
        patch.setattr(stage.shutil, "rmtree", _fail)
        with pytest.raises(KilledError):
            shuffle(corpus, tmp_path / "out")
    assert (partial_dir(tmp_path / "out") / MANIFEST_NAME).exists()
    monkeypatch.setattr(passes, "scatter", _fail)
    shuffle(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


def test_a_lost_row_fails_the_run(tmp_path, corpus, shuffle, monkeypatch):
    original = passes.GatherResult.from_json
    monkeypatch.setattr(
        passes.GatherResult, "from_json", lambda text: original(json.dumps(json.loads(text) | {"rows": 319}))
    )
    with pytest.raises(ArtifactError, match=r"read 320 documents .* but wrote 319"):
        shuffle(corpus, tmp_path / "out", shards=1)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_clear_error_and_the_work_goes_on_once_there_is_room(tmp_path, corpus, shuffle, monkeypatch):
    def fill(task):
        if task.shard == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(task)

    original = passes.gather
    monkeypatch.setattr(passes, "gather", fill)
    with pytest.raises(ResourceError, match="the disk is full"):
        shuffle(corpus, tmp_path / "out", shards=4)
    monkeypatch.setattr(passes, "gather", original)
    monkeypatch.setattr(passes, "scatter", _fail)
    shuffle(corpus, tmp_path / "out", shards=4)
    assert verify_text_shards(tmp_path / "out").rows == 320


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device /dev/full")
def test_arrow_says_that_a_device_is_full_in_the_way_the_stage_expects():
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as caught:
        pa.ipc.new_stream(file, pa.schema([("text", pa.string())])).close()
    assert caught.value.errno == errno.ENOSPC


def test_too_little_disk_is_told_before_work_starts(tmp_path, corpus, shuffle, monkeypatch):
    monkeypatch.setattr(stage, "estimate_disk_bytes", lambda *_, **__: 1 << 60)
    monkeypatch.setattr(passes, "scatter", _fail)
    with pytest.raises(ResourceError, match="the shuffle needs about"):
        shuffle(corpus, tmp_path / "out")


class Recorder:
    """Keeps what a stage reports."""

    def __init__(self):
        self.updates, self.notes = [], []

    def update(self, done, total, unit, **facts):
        self.updates.append((done, total, unit, *facts))

    def note(self, message):
        self.notes.append(message)


def test_progress_runs_to_twice_the_input(tmp_path, corpus, shuffle):
    progress = Recorder()
    shuffle(corpus, tmp_path / "out", shards=3, progress=progress)
    size = sum(path.stat().st_size for path in corpus.iterdir())
    done = [update[0] for update in progress.updates]
    assert done == sorted(done)
    assert progress.updates[-1][:3] == (pytest.approx(2 * size), 2 * size, "bytes")
    assert [note.partition(" of disk")[0] for note in progress.notes] == ["needs up to 20.2 MB"]


def test_the_folder_holds_the_contract_and_no_scratch(tmp_path, corpus, shuffle):
    shuffle(corpus, tmp_path / "out", shards=2)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
        "dataset_info.json",
        MANIFEST_NAME,
        "state.json",
    ]
