"""The copy in object storage: the same bytes, the same rules, through outages; and the way back."""

from __future__ import annotations

import shutil
import time
import uuid
from contextlib import contextmanager

import pytest
from pyarrow import fs

from kexue_train.foundation.errors import ArtifactError, ConfigError, ResourceError, StaleArtifactError
from kexue_train.foundation.progress import SILENT
from kexue_train.train.checkpoint import (
    CheckpointFolder,
    Events,
    Mirror,
    Retention,
    Storage,
    latest_checkpoint,
    list_checkpoints,
)
from kexue_train.train.checkpoint import latest as module
from kexue_train.train.checkpoint import mirror as mirror_module
from tests.train.object_storage import S3Server, contents, local_contents, write
from tests.train.test_checkpoint import Notes
from tests.train.tiny_training import make_checkpoint, make_recipe


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        yield server


@pytest.fixture(params=["s3", "file", "memory"])
def uri(request, s3, tmp_path):
    """A folder in a storage of each kind: pyarrow's own, the local one, and one of fsspec."""
    if request.param == "s3":
        return s3.new_folder()
    if request.param == "file":
        return f"file://{tmp_path}/mirror"
    return f"memory://{uuid.uuid4().hex}/runs"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(module, "REACH_SECONDS", 0.0)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(mirror_module, "_FIRST_DELAY", 0.05)


@contextmanager
def mirroring(folder, samples, uri, *, newest=9, patience=60.0):
    """A running mirror; leaving waits for it."""
    folder.mkdir(exist_ok=True)
    mirror = Mirror(
        CheckpointFolder(folder, Retention(newest)), Storage(uri), make_recipe(samples), Events(), patience=patience
    )
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.close(is_patient=True)


def mirror_once(folder, samples, uri, **options):
    """Bring the storage up to date; gives the kinds and steps of what was said."""
    with mirroring(folder, samples, uri, **options) as mirror:
        pass
    return [(event.kind, event.step) for event in mirror._events.take()]


def bring_back(folder, samples, uri, progress=SILENT):
    """What a training of the same recipe would go on from."""
    folder.mkdir(exist_ok=True)
    return latest_checkpoint(folder, progress, storage=Storage(uri), recipe=make_recipe(samples))


def test_the_storage_gets_the_same_bytes_and_gives_them_back(folder, samples, uri):
    for step, loss in ((2, 1.0), (4, 2.0)):
        make_checkpoint(folder, samples, step=step, loss=loss)
    said = mirror_once(folder, samples, uri)
    before = local_contents(folder)
    assert said == [("mirrored", 4), ("mirrored", 2)]  # the newest first
    assert contents(uri) == before
    assert mirror_once(folder, samples, uri) == []  # nothing to do
    shutil.rmtree(folder)
    assert bring_back(folder, samples, uri) == folder / "step-00000004"
    expected = {name: content for name, content in before.items() if name.startswith("step-00000004/")}
    assert local_contents(folder) == {**expected, "latest": b"step-00000004\n"}


def test_the_manifest_goes_last(folder, samples, uri, monkeypatch):
    make_checkpoint(folder, samples, step=2)
    seen, files = [], fs.copy_files

    def tear_before_manifest(source, target, **options):
        seen.append(source.rpartition("/")[2])
        if source.endswith("manifest.json"):
            raise OSError("cut off")
        return files(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fs, "copy_files", tear_before_manifest)
        assert mirror_once(folder, samples, uri, patience=0.0) == [("mirror_failed", 2)]
    assert seen[-1] == "manifest.json"
    assert "step-00000002/model.safetensors" in contents(uri)
    shutil.rmtree(folder)
    assert bring_back(folder, samples, uri) is None  # torn: as if it were not there


def test_the_rules_hold_in_the_storage_too(folder, samples, uri):
    for step, loss in ((2, 2.0), (4, 1.0), (6, 3.0), (8, None), (10, 4.0)):
        make_checkpoint(folder, samples, step=step, loss=loss, keep=2)
        mirror_once(folder, samples, uri, newest=2)
    found = contents(uri)
    assert {name.partition("/")[0] for name in found} == {
        "best",
        "latest",
        "step-00000004",
        "step-00000008",
        "step-00000010",
    }
    assert found["best"] == b"step-00000004\n"
    assert found["latest"] == b"step-00000010\n"


def test_after_the_local_disk_is_lost_the_best_in_the_storage_stays(folder, samples, uri):
    for step, loss in ((2, 1.0), (4, 2.0)):
        make_checkpoint(folder, samples, step=step, loss=loss, keep=1)
        mirror_once(folder, samples, uri, newest=1)
    shutil.rmtree(folder)
    bring_back(folder, samples, uri)
    make_checkpoint(folder, samples, step=6, loss=3.0, keep=1)
    said = mirror_once(folder, samples, uri, newest=1)
    assert said == [("mirrored", 6)]  # and step 4, the best of those here, is not sent again to be deleted
    assert {name.partition("/")[0] for name in contents(uri)} == {"best", "latest", "step-00000002", "step-00000006"}


def test_what_is_newer_in_the_storage_is_left_alone(folder, samples, uri, tmp_path):
    for step in (2, 4, 6):
        make_checkpoint(tmp_path / "lost", samples, step=step)
    mirror_once(tmp_path / "lost", samples, uri)
    make_checkpoint(folder, samples, step=3)
    mirror_once(folder, samples, uri, newest=1)
    names = {name.partition("/")[0] for name in contents(uri) if name.startswith("step")}
    assert names == {"step-00000003", "step-00000004", "step-00000006"}
    assert bring_back(folder, samples, uri).name == "step-00000006"


@pytest.mark.parametrize("damage", ["flipped", "missing", "no manifest", "nonsense as manifest"])
def test_damage_in_the_storage_is_named_and_the_one_before_used(folder, samples, s3, damage):
    uri = s3.new_folder()
    for step in (2, 4):
        make_checkpoint(folder, samples, step=step)
    mirror_once(folder, samples, uri)
    name = "step-00000004/model.safetensors" if "manifest" not in damage else "step-00000004/manifest.json"
    content = bytearray(contents(uri)[name])
    content[-1] ^= 1
    changed = {"flipped": bytes(content), "nonsense as manifest": b"{}"}
    write(uri, name, changed.get(damage))
    kept = folder.rename(folder.with_name("kept"))
    progress = Notes()
    assert bring_back(folder, samples, uri, progress).name == "step-00000002"
    assert len(progress.notes) == (damage != "no manifest")  # then it is torn, which happens to the best
    assert all("step-00000004" in note and "passed over" in note and "s3://" in note for note in progress.notes)
    (kept / "step-00000004").rename(folder / "step-00000004")  # training gets there again
    CheckpointFolder(folder, Retention(9)).admit(folder / "step-00000004")
    mirror_once(folder, samples, uri)
    shutil.rmtree(folder)
    assert bring_back(folder, samples, uri).name == "step-00000004"


def test_a_checkpoint_damaged_here_comes_from_the_storage(folder, samples, uri):
    for step in (2, 4):
        make_checkpoint(folder, samples, step=step)
    mirror_once(folder, samples, uri)
    whole = local_contents(folder)
    (folder / "step-00000004" / "optimizer.safetensors").write_bytes(b"damaged")
    progress = Notes()
    assert bring_back(folder, samples, uri, progress).name == "step-00000004"
    assert local_contents(folder) == whole
    assert ["step-00000004/optimizer.safetensors" in note for note in progress.notes] == [True]


def test_a_damaged_one_here_is_not_sent(folder, samples, uri):
    for step in (2, 4):
        make_checkpoint(folder, samples, step=step)
    (folder / "step-00000004" / "model.safetensors").write_bytes(b"damaged")
    assert latest_checkpoint(folder, SILENT).name == "step-00000002"
    assert mirror_once(folder, samples, uri) == [("mirrored", 2)]


def test_if_all_are_damaged_everywhere_training_does_not_begin_anew_in_silence(folder, samples, s3):
    uri = s3.new_folder()
    make_checkpoint(folder, samples, step=2)
    mirror_once(folder, samples, uri)
    write(uri, "step-00000002/model.safetensors", b"damaged")
    (folder / "step-00000002" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="every checkpoint is damaged"):
        bring_back(folder, samples, uri)


@pytest.mark.slow
def test_an_outage_is_said_once_and_its_end_and_everything_kept_arrives(folder, samples):
    with S3Server() as server:
        uri = server.new_folder()
        with mirroring(folder, samples, uri) as mirror:
            make_checkpoint(folder, samples, step=2)
            mirror.wake()
            _until(lambda: "latest" in contents(uri))
            server.stop()
            for step in (4, 6):
                make_checkpoint(folder, samples, step=step)
                mirror.wake()
            _until(lambda: mirror._failed_at is not None)
            server.start()
        events = mirror._events.take()
        assert [event.kind for event in events if event.kind != "mirrored"] == ["mirror_failed", "mirror_back"]
        assert sorted(event.step for event in events if event.kind == "mirrored") == [2, 4, 6]
        assert contents(uri) == local_contents(folder)


@pytest.mark.slow
def test_a_storage_out_of_reach_at_the_end_does_not_hold_for_ever(folder, samples):
    with S3Server() as server:
        uri = server.new_folder()
    make_checkpoint(folder, samples, step=2)
    assert mirror_once(folder, samples, uri, patience=0.0) == [("mirror_failed", 2)]


@pytest.mark.slow
def test_out_of_reach_at_the_start_the_local_one_is_used_with_a_note(folder, samples):
    with S3Server() as server:
        uri = server.new_folder()
    make_checkpoint(folder, samples, step=2)
    progress = Notes()
    assert bring_back(folder, samples, uri, progress).name == "step-00000002"
    assert ["could not be read" in note for note in progress.notes] == [True]
    shutil.rmtree(folder)
    with pytest.raises(
        ResourceError, match=r"s3://bucket-\w+/runs/one: could not be read .*train\.checkpoints\.mirror"
    ):
        bring_back(folder, samples, uri)


@pytest.mark.slow
def test_credentials_are_never_shown(folder, samples):
    with S3Server() as server:
        uri = server.new_folder()
    make_checkpoint(folder, samples, step=2)
    progress = Notes()
    bring_back(folder, samples, uri, progress)
    with mirroring(folder, samples, uri, patience=0.0) as mirror:
        pass
    assert not any("hidden" in str(said) for said in [*progress.notes, *mirror._events.take(), Storage(uri).name])


def test_a_storage_of_another_training_is_refused_and_left_alone(folder, samples, uri, tmp_path):
    make_checkpoint(tmp_path / "other", samples, step=2, hidden_size=64)
    other = Mirror(
        CheckpointFolder(tmp_path / "other", Retention(1)),
        Storage(uri),
        make_recipe(samples, hidden_size=64),
        Events(),
    )
    other.start()
    other.close(is_patient=True)
    before = contents(uri)
    with pytest.raises(StaleArtifactError, match=r"another training: model\.hidden_size changed from 64 to 32"):
        bring_back(folder, samples, uri)
    make_checkpoint(folder, samples, step=9)
    assert mirror_once(folder, samples, uri, newest=1, patience=0.0) == [("mirror_failed", 9)]
    assert contents(uri) == before


def test_a_scheme_that_nobody_opens_is_said(folder, samples):
    with pytest.raises(
        ConfigError, match=r"train\.checkpoints\.mirror=nowhere://there: .*s3://, gs://, hdfs:// or file://"
    ):
        bring_back(folder, samples, "nowhere://there")


def test_nothing_anywhere_is_none(folder, samples, uri):
    assert bring_back(folder, samples, uri) is None
    assert list_checkpoints(folder) == []


def _until(condition, seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
