from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from kexue_train.artifacts import MANIFEST_NAME, describe_files, read_manifest
from kexue_train.errors import ArtifactError
from kexue_train.shuffle.text_shards import TEXT_SCHEMA, BatchCutter, iter_texts, verify_text_shards


@pytest.mark.parametrize("step", [7, 4095, 4096, 4097, 30_000])
def test_output_batches_do_not_depend_on_how_the_texts_arrive(step):
    rng = np.random.default_rng(0)
    texts = pa.array(["y" * int(n) for n in rng.integers(0, 4000, 12_000)] + ["z" * 5_000_000] * 2, pa.large_string())
    cutter, found = BatchCutter(), []
    for start in range(0, len(texts), step):
        found += [batch.num_rows for batch in cutter.cut(texts.slice(start, step))]
    found += [batch.num_rows for batch in cutter.finish()]
    whole = BatchCutter()
    expected = [batch.num_rows for batch in (*whole.cut(texts), *whole.finish())]
    assert found == expected
    assert sum(found) == len(texts)


def test_output_batches_hold_the_texts():
    cutter = BatchCutter()
    texts = pa.array([str(i) for i in range(9000)], pa.large_string())
    table = pa.Table.from_batches([*cutter.cut(texts), *cutter.finish()], TEXT_SCHEMA)
    assert [len(chunk) for chunk in table.column("text").chunks] == [4096, 4096, 808]
    assert table.column("text").to_pylist() == texts.to_pylist()


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
