"""Artifacts: published whole by one rename, repaired after any kill, refused when stale or damaged."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from kexue_train.foundation import artifacts
from kexue_train.foundation.artifacts import (
    Manifest,
    Recipe,
    build_manifest,
    check_files,
    describe_files,
    digest_of,
    find_complete,
    open_partial,
    partial_dir,
    publish,
    read_manifest,
    verify_artifact,
    write_atomic,
)
from kexue_train.foundation.errors import ArtifactError, KexueError, ResourceError, StaleArtifactError

RECIPE = Recipe(kind="text_shards", settings={"shards": 2, "dedup": {"by": "none"}}, parents={"corpus": "sha256:1"})


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


def make(out_dir: Path, recipe: Recipe = RECIPE, text: str = "some text") -> Manifest:
    partial = open_partial(out_dir, recipe)
    (partial / "a.txt").write_text(text, encoding="utf-8")
    (partial / "sub").mkdir(exist_ok=True)
    (partial / "sub" / "b.txt").write_text("more", encoding="utf-8")
    manifest = build_manifest(recipe, describe_files(partial, {"a.txt": 3}), rows=3, seed=1)
    return publish(partial, out_dir, manifest)


def with_settings(**settings: Any) -> Recipe:
    return RECIPE.model_copy(update={"settings": RECIPE.settings | settings})


def test_a_published_artifact_is_found_complete(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert find_complete(out, RECIPE) is None
    manifest = make(out)
    assert find_complete(out, RECIPE) == manifest == read_manifest(out) == verify_artifact(out)
    assert manifest.bytes == 13
    assert sorted(manifest.files) == ["a.txt", "sub/b.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_equal_work_gives_byte_identical_folders(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    one, two = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_settings_with_tuples_compare_equal_to_themselves_read_back(tmp_path: Path) -> None:
    recipe = with_settings(inputs=("a", "b"), limits={"x": (1, 2)})
    recipe = Recipe(**recipe.model_dump())
    make(tmp_path / "out", recipe)
    assert find_complete(tmp_path / "out", recipe) is not None


class Killed(BaseException):
    """Stands for kill -9: nothing of the program runs after it, so every later change of the disk raises it again."""


def _die_before_change(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    changes = 0

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes > number:
                raise Killed
            return real(*args, **kwargs)

        return call

    for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "open"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("replacing", [False, True], ids=["first", "replacing"])
@pytest.mark.parametrize("changes", range(10))
def test_a_kill_at_any_change_of_publish_leaves_a_whole_folder_or_resumable_work(
    tmp_path: Path, changes: int, replacing: bool
) -> None:
    out, notes = tmp_path / "out", Notes()
    old = make(out, with_settings(shards=1), "old text") if replacing else None
    partial = open_partial(out, RECIPE)
    (partial / "a.txt").write_text("new text", encoding="utf-8")
    manifest = build_manifest(RECIPE, describe_files(partial))
    with pytest.MonkeyPatch.context() as patch:
        _die_before_change(patch, changes)
        with contextlib.suppress(Killed):
            publish(partial, out, manifest)
    if out.exists():
        assert verify_artifact(out) in (old, manifest)
    found = find_complete(out, RECIPE, replace=True, progress=notes)
    if found is None:
        resumed = open_partial(out, RECIPE)
        assert (resumed / "a.txt").read_text(encoding="utf-8") == "new text"
        found = publish(resumed, out, build_manifest(RECIPE, describe_files(resumed)))
    assert found == manifest == verify_artifact(out)
    assert find_complete(out, RECIPE) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_kill_test_reaches_the_end_of_publish(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        partial = open_partial(tmp_path / "out", RECIPE)
        _die_before_change(patch, 9)
        publish(partial, tmp_path / "out", build_manifest(RECIPE, {}))


def test_work_left_by_a_kill_is_kept_without_its_torn_files(tmp_path: Path) -> None:
    partial = open_partial(tmp_path / "out", RECIPE)
    (partial / "piece").write_text("done", encoding="utf-8")
    (partial / ".piece2.0a1b2c3d.tmp").write_text("to", encoding="utf-8")
    assert [p.name for p in sorted(open_partial(tmp_path / "out", RECIPE).iterdir())] == ["piece", "recipe.json"]


def test_work_left_by_another_recipe_is_dropped(tmp_path: Path) -> None:
    (open_partial(tmp_path / "out", RECIPE) / "piece").write_text("done", encoding="utf-8")
    partial = open_partial(tmp_path / "out", with_settings(shards=3))
    assert [p.name for p in partial.iterdir()] == ["recipe.json"]


def test_whole_work_of_another_recipe_is_not_put_in_place(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out").rename(partial_dir(tmp_path / "out"))
    assert find_complete(tmp_path / "out", with_settings(shards=3)) is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (with_settings(shards=4), "shards changed from 2 to 4"),
        (with_settings(dedup={"by": "exact"}), "dedup.by changed from 'none' to 'exact'"),
        (with_settings(extra=1), "extra changed from None to 1"),
        (RECIPE.model_copy(update={"parents": {"corpus": "sha256:2"}}), "its input 'corpus' was rebuilt"),
        (RECIPE.model_copy(update={"kind": "tokenizer"}), "it holds text_shards, not tokenizer"),
        (
            RECIPE.model_copy(update={"inputs": [("a", 1, 2), ("b", 1, 2)]}),
            "input file a was added, removed or changed (and 1 more)",
        ),
    ],
)
def test_a_stale_artifact_is_refused_with_what_changed_and_made_anew_on_demand(
    tmp_path: Path, recipe: Recipe, reason: str
) -> None:
    make(tmp_path / "out")
    with pytest.raises(StaleArtifactError, match="was made from other inputs or settings") as caught:
        find_complete(tmp_path / "out", recipe)
    assert caught.value.reason == reason
    notes = Notes()
    assert find_complete(tmp_path / "out", recipe, replace=True, progress=notes) is None
    assert notes.notes == [f"rebuilding: {reason}"]


def test_the_order_and_number_of_inputs_matter() -> None:
    one = RECIPE.model_copy(update={"inputs": [("a", 1, 2), ("b", 1, 2)]})
    two = RECIPE.model_copy(update={"inputs": [("b", 1, 2), ("a", 1, 2)]})
    assert one.difference(two) == "the order or number of its input files changed"
    assert one.difference(one) is None


def test_a_folder_that_is_no_artifact_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ArtifactError, match="was not made by kexue_train and is left alone"):
        find_complete(tmp_path, RECIPE, replace=True)
    with pytest.raises(ArtifactError, match="left alone"):
        find_complete(tmp_path / "thesis.tex", RECIPE, replace=True)


def test_an_empty_folder_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert find_complete(tmp_path / "out", RECIPE) is None
    assert make(tmp_path / "out") == read_manifest(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the manifest is damaged"),
        ("[]", "the manifest is damaged"),
        ('{"schema_version": 1, "kind":', "the manifest is damaged"),
        ('{"schema_version": 1, "kind": "corpus"}', "the manifest is damaged"),
        ('{"schema_version": 99}', "schema version 99, this version reads 1"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_path_and_made_anew_on_demand(
    tmp_path: Path, text: str, reason: str
) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=reason) as caught:
        find_complete(tmp_path / "out", RECIPE)
    assert str(tmp_path / "out" / "manifest.json") in str(caught.value)
    assert find_complete(tmp_path / "out", RECIPE, replace=True) is None


def test_a_missing_or_shortened_file_is_found_without_reading_it(tmp_path: Path) -> None:
    manifest = make(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("some tex", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"a\.txt: has 8 bytes, the manifest says 9"):
        find_complete(tmp_path / "out", RECIPE)
    (tmp_path / "out" / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt: is missing"):
        check_files(tmp_path / "out", manifest)


@pytest.mark.parametrize("bit", [0, 35, 71])
def test_verify_finds_one_flipped_bit(tmp_path: Path, bit: int) -> None:
    make(tmp_path / "out")
    path = tmp_path / "out" / "a.txt"
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert find_complete(tmp_path / "out", RECIPE) is not None  # the quick check cannot see it
    with pytest.raises(ArtifactError, match=r"a\.txt: checksum xxh3_128:\w{32}, the manifest says xxh3_128:\w{32}"):
        verify_artifact(tmp_path / "out")


def test_verify_finds_a_manifest_whose_settings_were_edited(tmp_path: Path) -> None:
    make(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"shards": 2', '"shards": 3'), encoding="utf-8")
    with pytest.raises(ArtifactError, match="do not fit its digest and sum"):
        verify_artifact(tmp_path / "out")


def test_a_nested_manifest_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert list(describe_files(tmp_path)) == ["inner/manifest.json"]


def test_the_content_digest_follows_the_bytes_and_not_the_names_of_the_inputs(tmp_path: Path) -> None:
    manifest = make(tmp_path / "one")
    renamed = make(tmp_path / "two", RECIPE.model_copy(update={"parents": {"corpus": "sha256:2"}}))
    other = make(tmp_path / "three", text="other text")
    assert manifest.content_digest == renamed.content_digest != other.content_digest


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1}) != digest_of({"a": 1, "b": [2, 1]})
    # sha256 of the text {"a":1}, computed by sha256sum
    assert digest_of({"a": 1}) == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_write_atomic_leaves_the_old_text_and_no_litter_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("state.json", "old")]


def test_a_reader_never_sees_a_part_of_what_write_atomic_writes(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with path.open("w+", encoding="utf-8") as reader:
        reader.write("old")
        reader.flush()
        write_atomic(path, "new and longer")
        reader.seek(0)
        assert reader.read() == "old"  # the open file is the old one, whole
    assert path.read_text(encoding="utf-8") == "new and longer"


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ResourceError, match=r"file/out: cannot be written \(Not a directory"):
        open_partial(tmp_path / "file" / "out", RECIPE)


@pytest.mark.parametrize("kind", [ArtifactError, ResourceError, KexueError])
def test_errors_survive_the_way_between_processes(kind: type[KexueError]) -> None:
    error = pickle.loads(pickle.dumps(kind("message")))
    assert (type(error), str(error)) == (kind, "message")


def test_a_stale_artifact_error_keeps_its_reason_between_processes() -> None:
    error = pickle.loads(pickle.dumps(StaleArtifactError("message", "shards changed")))
    assert (str(error), error.reason) == ("message", "shards changed")


def test_a_manifest_is_readable_json_without_times(tmp_path: Path) -> None:
    make(tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert raw["kind"] == "text_shards"
    assert raw["files"]["a.txt"] == {
        "bytes": 9,
        "checksum": "xxh3_128:" + xxh3("some text"),
        "rows": 3,
        "rows_checksum": None,
    }


def xxh3(text: str) -> str:
    import xxhash

    return xxhash.xxh3_128(text.encode()).hexdigest()
