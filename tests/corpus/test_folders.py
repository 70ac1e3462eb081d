"""A folder that lists its own files is read by its list, and nothing in a folder is left out without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fsspec
import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.patterns import check_not_among_inputs
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.errors import CorpusError
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus

LINE = b'{"text": "A river."}\n'


def put(folder, *names, data=LINE):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def put_saved(folder, *names):
    """A data set as ``save_to_disk`` leaves it, and what ``map`` adds; its files hold JSON Lines to be short."""
    put_json(folder / "state.json", {"_data_files": [{"filename": name} for name in names]})
    put_json(folder / "dataset_info.json", {"features": {}})
    put(folder, *names, "cache-0123456789abcdef.arrow")


def find(*patterns, **options):
    """Names of the files found, relative to the first folder, and what was said."""
    notes: list[str] = []
    found = find_inputs([str(pattern) for pattern in patterns], note=notes.append, **options)
    root = next((pattern for pattern in patterns if isinstance(pattern, Path) and pattern.is_dir()), Path("/"))
    return [os.path.relpath(source.path, root) for source in found], notes


@pytest.fixture
def output(tmp_path):
    """Makes a folder of text shards at a path below a folder that holds one file of the corpus."""

    def make(path, **settings):
        put(tmp_path / "made_of", "a.jsonl")
        shuffle_corpus(ShuffleConfig(**settings), [str(tmp_path / "made_of")], path, seed=0, executor=LocalExecutor(1))

    return make


def test_a_saved_data_set_is_read_by_its_list(tmp_path):
    put_saved(tmp_path, "data-0.jsonl", "data-1.jsonl")
    put(tmp_path, "older.jsonl", "sub/b.jsonl")
    found, (note,) = find(tmp_path)
    assert found == ["data-0.jsonl", "data-1.jsonl"]
    assert "3 not in the list of its folder (cache-0123456789abcdef.arrow, older.jsonl, sub/)" in note


def test_a_list_counts_in_every_folder_below_and_for_globs(tmp_path):
    put(tmp_path, "a.jsonl")
    put_saved(tmp_path / "x" / "saved", "data.jsonl")
    put(tmp_path / "x" / "saved", "older.jsonl")
    assert find(tmp_path)[0] == ["a.jsonl", "x/saved/data.jsonl"]
    found, (note,) = find(f"{tmp_path}/x/*/*")
    assert found == [os.path.relpath(tmp_path / "x/saved/data.jsonl", "/")]
    assert "2 describing the data" in note
    assert "2 not in the list of its folder" in note


def test_an_unlisted_file_that_is_named_is_read_with_a_word(tmp_path):
    put_saved(tmp_path, "data.jsonl")
    put(tmp_path, "older.jsonl")
    found, (note,) = find(tmp_path / "data.jsonl", tmp_path / "older.jsonl")
    assert len(found) == 2
    assert note == f"read as it is named, though its folder lists other files: {tmp_path}/older.jsonl"


def test_a_listed_file_that_is_missing_is_refused_by_name(tmp_path):
    put_saved(tmp_path / "saved", "data-0.jsonl", "data-1.jsonl")
    (tmp_path / "saved" / "data-1.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"saved/data-1\.jsonl: is missing, yet .*saved/state\.json lists it"):
        find(tmp_path)


def test_the_splits_of_a_data_set_are_named_or_refused_with_the_choice(tmp_path):
    put_json(tmp_path / "set" / "dataset_dict.json", {"splits": ["train", "test"]})
    put_saved(tmp_path / "set" / "train", "data.jsonl")
    put_saved(tmp_path / "set" / "test", "data.jsonl")
    for folder in (tmp_path / "set", tmp_path):
        with pytest.raises(CorpusError, match=r"several splits.*/set/train, .*/set/test"):
            find(folder)
    assert find(tmp_path / "set" / "train")[0] == ["data.jsonl"]
    assert len(find(f"{tmp_path}/set/*")[0]) == 2
    put_json(tmp_path / "set" / "dataset_dict.json", {"splits": ["train"]})
    assert find(tmp_path)[0] == ["set/train/data.jsonl"]


def test_a_selection_of_rows_is_refused(tmp_path):
    files = [{"filename": "data.arrow"}]
    put_json(tmp_path / "state.json", {"_data_files": files, "_indices_data_files": [{"filename": "indices.arrow"}]})
    with pytest.raises(CorpusError, match=r"selection of the rows.*save_to_disk"):
        find(tmp_path)


def test_the_cache_of_a_data_set_is_read_by_its_description(tmp_path):
    splits = {
        "train": {"name": "train", "dataset_name": "wiki", "shard_lengths": [1, 1]},
        "test": {"name": "test", "dataset_name": "wiki"},
    }
    shards = ["wiki-train-00000-of-00002.arrow", "wiki-train-00001-of-00002.arrow"]
    put(tmp_path, *shards, "wiki-test.arrow", "cache-0123456789abcdef.arrow", data=b"\xff\xff\xff\xff")
    put_json(tmp_path / "dataset_info.json", {"splits": splits})
    with pytest.raises(CorpusError, match=r"several splits.*/wiki-train-\*, .*/wiki-test\.arrow"):
        find(tmp_path)
    assert len(find(f"{tmp_path}/wiki-train-*")[0]) == 2
    put_json(tmp_path / "dataset_info.json", {"splits": {"train": splits["train"]}})
    assert find(tmp_path)[0] == shards
    put(tmp_path / "other", "a.jsonl")
    put_json(tmp_path / "other" / "dataset_info.json", {"splits": splits})  # of a data set in another form
    assert find(tmp_path / "other")[0] == ["a.jsonl"]


def test_shards_for_streaming_are_read_by_their_index(tmp_path):
    def shard(name, packed=None):
        return {"raw_data": {"basename": name}, "zip_data": packed and {"basename": packed}, "format": "jsonl"}

    shards = [shard("shard.0.jsonl"), shard("shard.1.jsonl", "shard.1.jsonl.gz"), shard("shard.2.mds")]
    put_json(tmp_path / "index.json", {"shards": shards, "version": 2})
    put(tmp_path, "shard.0.jsonl", "shard.2.mds", "old.jsonl")
    put(tmp_path, "shard.1.jsonl.gz", data=b"\x1f\x8b")
    found, (note,) = find(tmp_path)
    assert found == ["shard.0.jsonl", "shard.1.jsonl.gz"]
    assert "1 not in the list of its folder (old.jsonl)" in note
    assert "1 of unknown format (shard.2.mds" in note


@pytest.mark.parametrize("log", ["_delta_log/0.json", ".hoodie/hoodie.properties", "metadata/v1.metadata.json"])
def test_a_table_whose_log_says_which_files_count_is_refused(tmp_path, log):
    put(tmp_path, "table/a.jsonl", f"table/{log}")
    with pytest.raises(CorpusError, match=r"/table: is a (Delta Lake|Hudi|Iceberg) table"):
        find(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"output": "jsonl"}, {"output": "parquet", "shards": 2}])
def test_an_earlier_output_among_the_inputs_is_not_read(tmp_path, output, settings):
    put(tmp_path / "corpus", "a.jsonl", "deep/b.jsonl")
    output(tmp_path / "corpus" / "shards", **settings)
    output(tmp_path / "corpus" / "deep" / "er" / "shards", **settings)
    for pattern in (tmp_path / "corpus", f"{tmp_path}/corpus/*", f"{tmp_path}/corpus/**/*"):
        found, notes = find(pattern)
        assert [Path(name).name for name in found] == ["a.jsonl", "b.jsonl"]
        assert any("made by kexue_train" in note for note in notes)
    assert len(find(tmp_path / "corpus" / "shards")[0]) == settings.get("shards", 1)
    assert len(find(f"{tmp_path}/corpus/shards/data-*")[0]) == settings.get("shards", 1)


def test_an_output_is_read_by_its_own_list_when_it_is_named(tmp_path, output):
    output(tmp_path / "shards", on_bad_record="skip")
    put(tmp_path / "shards", "rejected/records.jsonl", "data-00007-of-00009.arrow", "README.md")
    found, (note,) = find(tmp_path / "shards")
    assert found == ["data-00000-of-00001.arrow"]
    assert "3 not in the list of its folder (README.md, data-00007-of-00009.arrow, rejected/)" in note
    (tmp_path / "shards" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(CorpusError, match=r"data-00000-of-00001\.arrow: is missing, yet .*manifest\.json"):
        find(tmp_path / "shards")


def test_what_a_shuffle_into_a_file_kept_aside_is_not_read(tmp_path):
    put(tmp_path, "out.jsonl", "out.jsonl.rejected.jsonl", "out.jsonl.dropped.jsonl", "mine.dropped.jsonl")
    found, (note,) = find(tmp_path)
    assert found == ["mine.dropped.jsonl", "out.jsonl"]
    assert "2 made by kexue_train (out.jsonl.dropped.jsonl, out.jsonl.rejected.jsonl: read only by name)" in note


def test_a_run_folder_is_no_corpus(tmp_path):
    put(tmp_path, "a.jsonl", "runs/demo/.run", "runs/demo/stages.jsonl", "runs/demo/shards/data-0.jsonl")
    found, (note,) = find(tmp_path)
    assert found == ["a.jsonl"]
    assert "1 made by kexue_train (runs/demo/: read only by name)" in note
    with pytest.raises(CorpusError, match=r"is the folder of a run; name its text shards: .*/runs/demo/shards"):
        find(tmp_path / "runs" / "demo")
    with pytest.raises(CorpusError, match="runs: holds no data file; not read: 1 made by kexue_train"):
        find(tmp_path / "runs")


def test_what_is_no_data_of_a_stage_is_refused_by_kind(tmp_path):
    manifest = {"schema_version": 1, "kind": "tokenizer", "settings_digest": "", "files": {"tokenizer.json": {}}}
    put_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(CorpusError, match="no documents but tokenizer"):
        find(tmp_path)


def test_a_manifest_of_another_kind_is_named_and_its_folder_read(tmp_path):
    put(tmp_path, "a.jsonl", "manifest.json", "state.json")
    found, (note,) = find(tmp_path)
    assert found == ["a.jsonl"]
    assert "2 describing the data (manifest.json, state.json: read only by name)" in note


def test_what_is_passed_over_is_named_by_kind(tmp_path):
    put(tmp_path, "a.jsonl", ".hidden.jsonl", ".git/config", "sub/b.zip", "c.tar.gz", "notes.md", "_SUCCESS")
    found, (note,) = find(tmp_path)
    assert found == ["a.jsonl"]
    assert note == (
        f"{tmp_path}: not read: 2 hidden (.hidden.jsonl, .git/); 2 archives (c.tar.gz, sub/b.zip: read only by name); "
        "1 left by other programs (_SUCCESS); 1 of unknown format (notes.md: read only with --format)"
    )


def test_many_files_are_counted_by_suffix_in_one_line(tmp_path):
    put(tmp_path, "a.jsonl", *(f"{i}.md" for i in range(1200)), *(f"x.{c}" for c in "abcdefg"), "_x")
    _, (note,) = find(tmp_path)
    assert "1,208 of unknown format (1,200 .md, 1 without suffix, 1 .a, 1 .b, 1 .c, …: read" in note
    assert len(note) < 300


def test_parts_without_suffix_are_read_where_their_content_is_certain(tmp_path):
    put(tmp_path, "part-00000", "out.1", "x.jsonl-00000-of-00001", "_metadata", "page.html")
    put(tmp_path, "part-00001", data=b"A river.\n")
    found, (note,) = find(tmp_path)
    assert found == ["out.1", "part-00000", "x.jsonl-00000-of-00001"]
    assert "3 of unknown format (_metadata, page.html, part-00001" in note


def test_a_format_that_is_given_is_that_of_all_visible_files(tmp_path):
    put(tmp_path, "a.jsonl", "part-00000", "b.log", ".hidden", "c.zip")
    found, (note,) = find(tmp_path, format="jsonl")
    assert found == ["a.jsonl", "b.log", "part-00000"]
    assert "1 hidden (.hidden); 1 archives (c.zip: read only by name)" in note


def test_unfinished_work_of_other_programs_is_not_read(tmp_path):
    put(tmp_path, "a.jsonl", "_temporary/0/part-0.jsonl", "x.incomplete/b.jsonl", "cache-0123456789abcdef.arrow")
    found, (note,) = find(tmp_path)
    assert found == ["a.jsonl"]
    assert "3 left by other programs (cache-0123456789abcdef.arrow, _temporary/, x.incomplete/)" in note


def test_an_archive_that_is_named_is_refused_with_what_to_do(tmp_path):
    put(tmp_path, "a.jsonl.7z", data=b"7z\xbc\xaf\x27\x1c")
    with pytest.raises(CorpusError, match=r"a\.jsonl\.7z: is packed .*unpack it"):
        find(tmp_path / "a.jsonl.7z")


def test_a_source_that_is_named_twice_is_read_once_with_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.jsonl", "b.jsonl")
    for again in (tmp_path / "a.jsonl", "./a.jsonl", (tmp_path / "a.jsonl").as_uri(), "a*.jsonl"):
        found, (note,) = find(tmp_path, again)
        assert found == ["a.jsonl", "b.jsonl"]
        assert note == f"named more than once, and read once: {tmp_path}/a.jsonl"
    (tmp_path / "c.jsonl").symlink_to("a.jsonl")
    found, (note,) = find("a.jsonl", "c.jsonl")
    assert note == f"the same file by another name, and read once: {tmp_path}/c.jsonl (as {tmp_path}/a.jsonl)"


def test_a_list_that_names_a_source_twice_is_told_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a.jsonl")
    (tmp_path / "list.txt").write_text("a.jsonl\n./a.jsonl\n")
    assert find("@list.txt")[1] == [f"named more than once, and read once: {tmp_path}/a.jsonl"]


def test_folders_that_a_glob_finds_are_read_once_each(tmp_path):
    put(tmp_path, "x/a.jsonl", "x/sub/b.jsonl", "x/sub/none/c.md")
    for pattern in (f"{tmp_path}/x/**", f"{tmp_path}/x/**/*"):
        found, notes = find(pattern)
        assert [Path(name).name for name in found] == ["a.jsonl", "b.jsonl"]
        assert len(notes) == 1


def test_empty_files_are_told_in_one_line(tmp_path):
    put(tmp_path, *(f"{i}.jsonl" for i in range(9)), data=b"")
    found, (note,) = find(tmp_path)
    assert len(found) == 9
    assert note == f"empty: {tmp_path}/0.jsonl, {tmp_path}/1.jsonl, {tmp_path}/2.jsonl and 6 more"


def test_names_that_are_not_utf8_can_be_told(tmp_path):
    put(tmp_path, "a.jsonl", os.fsdecode(b"\xff.md"))
    _, (note,) = find(tmp_path)
    assert "(\\udcff.md" in note


def test_a_store_is_read_by_the_same_rules(tmp_path):
    system = fsspec.filesystem("memory")
    state = json.dumps({"_data_files": [{"filename": "data.jsonl"}]}).encode()
    names = {"a.jsonl": LINE, "part-0": LINE, ".x/b.jsonl": LINE, "c.zip": b"PK", "a.jsonl.md/d.md": b"#"}
    names |= {"s/state.json": state, "s/data.jsonl": LINE, "s/cache-0123456789abcdef.arrow": b""}
    names |= {"made/.run": b"", "made/stages.jsonl": LINE}
    for name, data in names.items():
        with system.open(f"/folders/{name}", "wb") as file:
            file.write(data)
    try:
        notes: list[str] = []
        found = [source.path for source in find_inputs(["memory://folders"], note=notes.append)]
        globbed = [source.path for source in find_inputs(["memory://folders/s/*"], note=notes.append)]
    finally:
        system.rm("/folders", recursive=True)
    assert found == [f"memory:///folders/{name}" for name in ("a.jsonl", "part-0", "s/data.jsonl")]
    assert globbed == found[-1:]
    note, of_glob = notes
    assert "1 not in the list of its folder (memory:///folders/s/cache-0123456789abcdef.arrow)" in of_glob
    assert "1 hidden (.x/); 1 archives (c.zip: read only by name); 1 made by kexue_train (made/" in note
    assert "1 not in the list of its folder (s/cache-0123456789abcdef.arrow)" in note
    assert "1 of unknown format (a.jsonl.md/d.md" in note


@pytest.mark.parametrize(
    ("pattern", "out"),
    [
        ("corpus", "corpus/out.jsonl"),
        (".", "corpus/out.jsonl"),
        ("@list.txt", "corpus/sub/out.jsonl"),
        ("corpus/*.jsonl", "corpus/out.jsonl"),
        ("**/*.jsonl", "corpus/sub/out.jsonl"),
    ],
)
def test_an_output_file_is_not_put_among_the_inputs(tmp_path, monkeypatch, pattern, out):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "corpus/a.jsonl", "corpus/sub/b.jsonl")
    (tmp_path / "list.txt").write_text("corpus\n")
    with pytest.raises(CorpusError, match="would lie among the inputs"):
        check_not_among_inputs(Path(out), [pattern])


@pytest.mark.parametrize(
    ("pattern", "out"),
    [
        ("corpus", "out.jsonl"),
        ("corpus/a.jsonl", "corpus/out.jsonl"),
        ("corpus", "corpus/.hidden/out.jsonl"),
        ("corpus/*.txt", "corpus/out.jsonl"),
        ("corpus/*.jsonl", "corpus/sub/out.jsonl"),
        ("corpus/saved", "corpus/saved/out.jsonl"),
        ("-", "out.jsonl"),
        ("s3://corpus", "corpus/out.jsonl"),
    ],
)
def test_an_output_file_may_lie_where_no_input_is_looked_for(tmp_path, monkeypatch, pattern, out):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "corpus/a.jsonl")
    put_saved(tmp_path / "corpus" / "saved", "data.jsonl")
    check_not_among_inputs(Path(out), [pattern])
