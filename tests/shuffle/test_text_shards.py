from __future__ import annotations

import json

import pytest

from kexue_train.corpus.formats import OUTPUTS
from kexue_train.foundation.artifacts import MANIFEST_NAME, describe_files, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.shuffle.outputs import text_schema
from kexue_train.shuffle.text_shards import text_features, verify_text_shards
from tests.shuffle.shard_texts import iter_texts


@pytest.mark.parametrize("output", list(OUTPUTS))
@pytest.mark.parametrize("keep", [(), ("id", "more")])
def test_verify_reads_every_format_and_finds_a_changed_row(tmp_path, shuffle, output, keep):
    if output in ("lines", "tsv") and keep:
        pytest.skip("lines hold the text alone, and TSV no line ends")
    rows = [{"text": f"document {i} 中", "id": i, "more": None if i % 3 else f'"{i}"\n'} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shuffle(tmp_path / "a.jsonl", tmp_path / "out", shards=2, output=output, keep=keep)
    assert verify_text_shards(tmp_path / "out").rows == 50
    path = next(path for path in (tmp_path / "out").glob("data-00000-of-00002.*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="data-00000-of-00002"):
        verify_text_shards(tmp_path / "out")


def test_verify_reads_tsv_with_more_columns(tmp_path, shuffle):
    rows = [{"text": f"document {i}", "id": i, "more": f'"{i}'} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shuffle(tmp_path / "a.jsonl", tmp_path / "out", shards=2, output="tsv", keep=("id", "more"))
    assert verify_text_shards(tmp_path / "out").rows == 50
    lines = [path.read_text().splitlines() for path in sorted((tmp_path / "out").glob("*.tsv"))]
    assert [part[0] for part in lines] == ["text\tid\tmore"] * 2
    assert 'document 7\t7\t"7' in lines[0] + lines[1]


def test_verify_finds_a_row_that_was_changed_behind_the_checksum_of_the_file(tmp_path, corpus, shuffle):
    shuffle(corpus, tmp_path / "out")
    assert verify_text_shards(tmp_path / "out").rows == 320
    path = tmp_path / "out" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes().replace(b"document 7 ", b"document 8 "))
    manifest = read_manifest(tmp_path / "out").model_copy(update={"files": describe_files(tmp_path / "out")})
    (tmp_path / "out" / MANIFEST_NAME).write_text(manifest.model_dump_json())
    with pytest.raises(ArtifactError, match="320 rows with checksum"):
        verify_text_shards(tmp_path / "out")


def test_a_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no data-\*-of-\*\.arrow shard"):
        list(iter_texts(tmp_path))


def test_the_features_are_those_of_datasets():
    datasets = pytest.importorskip("datasets")
    for keep in ((), ("source", "id")):
        assert text_features(keep) == datasets.Features.from_arrow_schema(text_schema(keep)).to_dict()
