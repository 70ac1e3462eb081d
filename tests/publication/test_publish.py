"""A published folder holds what it promises, and every change to it, to its chain or to the documents is found."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from kexue_train.cli.publishing import publish_command
from kexue_train.foundation.artifacts import MANIFEST_NAME, digest_of, file_checksum, read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.publication.documents import compare_documents
from kexue_train.publication.provenance import check_account, read_chain
from kexue_train.publication.publish import find_paths, publish_run, verify_publication
from tests.publication.made_run import make, write_corpus, write_run

CHAIN = ["text_shards", "tokenizer", "sample_shards", "checkpoint", "hf_model"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a run of it and its publication, to be read or copied only."""
    folder = tmp_path_factory.mktemp("made")
    write_corpus(folder / "corpus")
    run = write_run(folder / "run", folder / "corpus")
    publish_run(run, folder / "published", license="cc-by-4.0", data_notes="All is ours.", repository="eva/small")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A publication to be broken."""
    shutil.copytree(made / "published", tmp_path / "published")
    return tmp_path / "published"


def test_the_folder_holds_model_card_report_and_the_chain(made: Path) -> None:
    chain = verify_publication(made / "published")
    assert [manifest.kind for manifest in chain.manifests] == CHAIN
    assert not chain.origins
    names = {path.relative_to(made / "published").as_posix() for path in (made / "published").rglob("*.*")}
    chain_files = {f"provenance/{number:02d}-{kind}.json" for number, kind in enumerate(CHAIN, 1)}
    assert names == {"README.md", "config.json", "model.safetensors", MANIFEST_NAME, "report.html"} | chain_files


def test_the_card_names_licence_repository_texts_and_notes(made: Path) -> None:
    card = (made / "published" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert 'from_pretrained("eva/small")' in card
    assert "| news.jsonl | 2 |" in card
    assert "1 duplicates were left out, 1 were left out for what they are or by filters" in card
    assert "All is ours." in card
    assert "kexue verify small FILES..." in card
    assert str(made) not in card


def test_nothing_published_names_the_folder_of_the_documents(made: Path) -> None:
    for path in (made / "published").rglob("*.json"):
        assert str(made) not in path.read_text(), path
    assert [entry.uri for entry in read_chain(made / "published" / "provenance").shards[0].inputs] == [
        "books.jsonl",
        "news.jsonl",
    ]


def test_publishing_again_changes_nothing_and_new_notes_replace_it(made: Path, tmp_path: Path) -> None:
    run, out = RunDir(made / "run"), tmp_path / "out"
    first = publish_run(run, out)
    modified = (out / MANIFEST_NAME).stat().st_mtime_ns
    assert publish_run(run, out) == first
    assert (out / MANIFEST_NAME).stat().st_mtime_ns == modified
    publish_run(run, out, data_notes="From the attic.")
    assert "From the attic." in (out / "README.md").read_text()


def test_notes_that_are_no_text_are_refused_and_nothing_is_written(made: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as a UTF-8 text file"):
        publish_command(made / "run", out=tmp_path / "out", data_notes=notes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["run/hf", "corpus"])
def test_a_folder_that_holds_something_else_is_left_alone(made: Path, target: str) -> None:
    before = sorted(path.name for path in (made / target).iterdir())
    with pytest.raises(ArtifactError):
        publish_run(RunDir(made / "run"), made / target)
    assert sorted(path.name for path in (made / target).iterdir()) == before


def test_every_changed_byte_is_found(made: Path, copy: Path) -> None:
    for path in sorted(p for p in copy.rglob("*") if p.is_file() and p.name != "README.md"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(ArtifactError):
            verify_publication(copy)
        path.write_bytes(whole)
    verify_publication(copy)


def _amend(copy: Path, name: str, **changes: object) -> None:
    """Change a manifest of the chain, and the manifest of the folder so that it fits."""
    path = copy / "provenance" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    own = json.loads((copy / MANIFEST_NAME).read_text())
    entry = own["files"][f"provenance/{name}"]
    own["bytes"] += path.stat().st_size - entry["bytes"]
    entry |= {"bytes": path.stat().st_size, "checksum": file_checksum(path)}
    (copy / MANIFEST_NAME).write_text(json.dumps(own))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("03-sample_shards.json", {"parents": {"text_shards": "sha256:0"}}, "was made from 'text_shards'"),
        ("04-checkpoint.json", {"kind": "hf_model"}, "2 exported models"),
        ("02-tokenizer.json", {"settings": {"kind": "other"}}, "do not fit their digest"),
        ("03-sample_shards.json", {"bytes": 7}, "size is not that of its files"),
        ("04-checkpoint.json", {"parents": {}}, "does not come from"),
        ("01-text_shards.json", {"schema_version": 99}, "schema version 99"),
        ("01-text_shards.json", {"rows_checksum": {"input": "0", "dropped": "0", "output": "0"}}, "do not add up"),
        ("01-text_shards.json", {"files": []}, "is no manifest"),
    ],
)
def test_a_link_that_does_not_hold_is_found(copy: Path, name: str, changes: dict[str, object], message: str) -> None:
    _amend(copy, name, **changes)
    with pytest.raises(ArtifactError, match=message):
        verify_publication(copy)


def test_a_chain_in_a_circle_is_found(copy: Path) -> None:
    shards, samples = (read_chain(copy / "provenance").manifests[index] for index in (0, 2))
    assert shards.kind == "text_shards"
    _amend(copy, "01-text_shards.json", parents={"samples": samples.content_digest})
    with pytest.raises(ArtifactError, match="made from itself"):
        verify_publication(copy)


def test_documents_left_out_of_the_account_are_found(made: Path) -> None:
    shards = read_manifest(made / "run" / "shards")
    check_account(shards)
    with pytest.raises(ArtifactError, match="documents of its inputs"):
        check_account(shards.model_copy(update={"inputs": shards.inputs[:1]}))


def test_documents_are_known_again_under_other_names_and_compressed(made: Path, tmp_path: Path) -> None:
    shards = read_chain(made / "published" / "provenance").shards[0]
    text = (made / "corpus" / "news.jsonl").read_bytes()
    (tmp_path / "renamed.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "other.jsonl").write_text('{"text": "once upon a time"}\n')
    found = {entry.name: entry.found_in for entry in compare_documents(shards, [str(tmp_path)])}
    assert found == {"news.jsonl": str(tmp_path / "renamed.jsonl.gz"), "books.jsonl": None}


def test_weights_from_elsewhere_are_named_as_the_beginning(made: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made / "corpus", init_from="sha256:elsewhere")
    publish_run(run, tmp_path / "out")
    assert [origin.digest for origin in verify_publication(tmp_path / "out").origins] == ["sha256:elsewhere"]
    assert "`sha256:elsewhere`" in (tmp_path / "out" / "README.md").read_text()


def test_a_second_stage_is_followed_to_the_checkpoint_it_began_with(made: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made / "corpus")
    first = run.pretrain / "checkpoints" / "step-00000002"
    digest = digest_of({name: file_checksum(first / name) for name in ("config.json", "model.safetensors")})
    samples = read_manifest(run.samples).content_digest
    weights = {"config.json": "{}", "model.safetensors": "later weights"}
    last = make(
        run.supervised / "checkpoints" / "step-00000003", "checkpoint", weights, samples=samples, init_from=digest
    )
    shutil.rmtree(run.hf)
    make(run.hf, "hf_model", weights, checkpoint=last.content_digest)
    publish_run(run, tmp_path / "out")
    kinds = [manifest.kind for manifest in verify_publication(tmp_path / "out").manifests]
    assert kinds == ["text_shards", "tokenizer", "sample_shards", "checkpoint", "checkpoint", "hf_model"]


def test_a_run_whose_samples_were_made_again_is_refused(made: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", made / "corpus")
    shutil.rmtree(run.samples)
    make(run.samples, "sample_shards", {"rows": "4"}, text_shards=read_manifest(run.shards).content_digest)
    with pytest.raises(ArtifactError, match="checkpoint: was made from 'samples'"):
        publish_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_an_exported_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"hf: no manifest.json"):
        publish_run(RunDir(tmp_path), tmp_path / "out")


def test_paths_in_the_settings_are_told(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    run = RunDir(tmp_path / "run")
    path = run.hf / MANIFEST_NAME
    manifest = read_manifest(run.hf)
    changed = manifest.model_copy(update={"settings": {"words": {"/home/eva/list": 1}, "source": ["/home/eva/vocab"]}})
    path.write_text(changed.model_copy(update={"settings_digest": changed.recipe.settings_digest}).model_dump_json())
    publish_run(run, tmp_path / "out")
    assert find_paths(tmp_path / "out") == ["hf_model: words: /home/eva/list", "hf_model: source=/home/eva/vocab"]
