"""Reading TensorFlow's checkpoint files: what an independent writer wrote, and the ways in which they can be broken."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.export.crc32c import crc32c, unmask
from kexue_train.export.tensorflow_checkpoint import TensorFlowCheckpoint
from kexue_train.foundation.errors import ArtifactError
from tests.reference import tensorflow_writer as writer


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Names with long common beginnings, enough of them for several restarts and blocks; all dtypes and ranks."""
    random = np.random.default_rng(0)
    values = {
        f"bert/encoder/layer_{layer}/attention/self/{name}/kernel": random.normal(size=(3, 5)).astype(np.float32)
        for layer in range(12)
        for name in ("key", "query", "value")
    }
    dtypes = {"a/double": np.float64, "b/half": np.float16, "c/int": np.int32, "d/long": np.int64}
    values |= {name: (random.normal(size=7) * 100).astype(dtype) for name, dtype in dtypes.items()}
    return values | {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 4), np.float32)}


def open_checkpoint(folder: Path) -> TensorFlowCheckpoint:
    return TensorFlowCheckpoint(folder / "model.ckpt.index")


def read_all(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.entries}


@pytest.mark.parametrize("block_bytes", [64, 1 << 20], ids=["many blocks", "one block"])
@pytest.mark.parametrize("snappy", [False, True], ids=["plain", "snappy"])
@pytest.mark.parametrize("shards", [1, 3])
def test_what_was_written_is_read(tensors, tmp_path, block_bytes, snappy, shards):
    writer.write_checkpoint(tmp_path / "model.ckpt", tensors, block_bytes=block_bytes, snappy=snappy, shards=shards)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.entries.keys() == tensors.keys()
    for name, expected in tensors.items():
        found = checkpoint.read(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed here")
def test_what_tensorflow_wrote_is_read(tensors, tmp_path):
    import tensorflow as tf

    names = sorted(tensors)
    specification = [""] * len(names)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt"), tensor_names=names, shape_and_slices=specification,
        tensors=[tf.constant(tensors[name]) for name in names],
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.entries.keys() == tensors.keys()
    assert all(np.array_equal(checkpoint.read(name), tensors[name]) for name in names)


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize("file", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_a_flipped_bit_is_noticed(tensors, tmp_path, file, position):
    writer.write_checkpoint(tmp_path / "model.ckpt", tensors)
    content = bytearray((tmp_path / file).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[position]] ^= 4
    (tmp_path / file).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=rf"{file}: .*copy (it|the file) again"):
        read_all(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 20, b"\0" * 100, b"PK\3\4" * 50])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "model.ckpt.index").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.ckpt\.index: not a readable index of a TensorFlow checkpoint"):
        open_checkpoint(tmp_path)


def test_a_truncated_index_is_refused(tensors, tmp_path):
    writer.write_checkpoint(tmp_path / "model.ckpt", tensors)
    index = tmp_path / "model.ckpt.index"
    content = index.read_bytes()
    for size in (len(content) // 2, len(content) - 1, 48):
        index.write_bytes(content[:size] if size != 48 else content[-48:])
        with pytest.raises(ArtifactError, match="not a readable index"):
            open_checkpoint(tmp_path)


def test_a_short_or_missing_data_file_is_named(tensors, tmp_path):
    writer.write_checkpoint(tmp_path / "model.ckpt", tensors, shards=2)
    data = tmp_path / "model.ckpt.data-00001-of-00002"
    name = next(name for name, entry in open_checkpoint(tmp_path).entries.items() if entry.shard == 1)
    data.write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"data-00001-of-00002: checksum mismatch in tensor '{name}'"):
        open_checkpoint(tmp_path).read(name)
    data.unlink()
    with pytest.raises(ArtifactError, match=rf"data-00001-of-00002: no such file, but it should hold tensor '{name}'"):
        open_checkpoint(tmp_path).read(name)


def test_text_and_slices_are_refused_by_name(tensors, tmp_path, monkeypatch):
    monkeypatch.setitem(writer.NUMBERS, "float32", 7)  # DT_STRING
    writer.write_checkpoint(tmp_path / "model.ckpt", tensors)
    with pytest.raises(ArtifactError, match="tensor 'scalar' has TensorFlow's data type 7"):
        open_checkpoint(tmp_path).read("scalar")
    monkeypatch.undo()
    plain_field = writer.field
    # A TensorSliceProto behind the shape.
    monkeypatch.setattr(writer, "field", lambda n, v: plain_field(n, v) + (plain_field(7, b"") if n == 5 else b""))
    writer.write_checkpoint(tmp_path / "model.ckpt", tensors)
    with pytest.raises(ArtifactError, match="tensor 'scalar' is stored in slices"):
        open_checkpoint(tmp_path).read("scalar")


def test_a_big_endian_checkpoint_is_refused(tmp_path):
    header = writer.field(1, 1) + writer.field(2, 1)
    (tmp_path / "model.ckpt.index").write_bytes(writer.table({b"": header}, 4096, False))
    with pytest.raises(ArtifactError, match="written on a big-endian machine"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of the catalogue of checksums
        (bytes(32), 0x8A9136AA),  # the next three from RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_checksums(data, expected):
    assert crc32c(data) == expected


@given(st.integers(0, 2500), st.integers(0, 2**32))
def test_the_fast_checksum_is_the_definition(size, seed):
    data = np.random.default_rng(seed).bytes(size)
    assert crc32c(data) == writer.crc32c(data)
    assert unmask(writer.masked_crc32c(data)) == crc32c(data)
