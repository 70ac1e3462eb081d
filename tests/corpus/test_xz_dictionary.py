"""A dictionary of xz that is larger than the memory is named, and is no damage."""

from __future__ import annotations

import lzma

import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import check_memory, read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.xz_dictionary import xz_dictionary
from kexue_train.foundation.errors import MemoryLimitError

LARGE = 3 << 29
SMALL = 1 << 20


@pytest.fixture
def source(tmp_path):
    def make(dictionary_bytes, form, before=()):
        filters = [*before, {"id": lzma.FILTER_LZMA2, "dict_size": dictionary_bytes}]
        data = lzma.compress(b"a\nb\n", form, filters=filters) if form == lzma.FORMAT_XZ else _alone(dictionary_bytes)
        path = tmp_path / ("a.txt.xz" if form == lzma.FORMAT_XZ else "a.txt.lzma")
        path.write_bytes(data)
        return find_inputs([str(path)])[0]

    return make


def _alone(dictionary_bytes):
    data = bytearray(lzma.compress(b"a\nb\n", lzma.FORMAT_ALONE))
    data[1:5] = dictionary_bytes.to_bytes(4, "little")  # a writer would take ten times as much memory
    return data


FORMS = [(lzma.FORMAT_ALONE, ()), (lzma.FORMAT_XZ, ()), (lzma.FORMAT_XZ, ({"id": lzma.FILTER_DELTA, "dist": 4},))]


@pytest.mark.parametrize(("form", "before"), FORMS)
def test_a_small_dictionary_needs_no_memory_to_speak_of(source, form, before):
    (block,) = read_records(source(SMALL, form, before), ReadOptions(memory_bytes=1))
    assert block.texts.to_pylist() == ["a", "b"]


def test_a_large_dictionary_is_refused_unless_there_is_memory(source):
    for check in (check_memory, lambda *arguments: list(read_records(*arguments))):
        with pytest.raises(MemoryLimitError, match=r"lzma data with a dictionary of 1\.61 GB, .*xz -d"):
            check(source(LARGE, lzma.FORMAT_ALONE), ReadOptions(memory_bytes=LARGE - 1))
    (block,) = read_records(source(LARGE, lzma.FORMAT_ALONE), ReadOptions(memory_bytes=LARGE))
    assert block.texts.to_pylist() == ["a", "b"]


@pytest.mark.parametrize("dictionary_bytes", [4096, 6144, 1 << 20, 3 << 20])
@pytest.mark.parametrize("before", [(), ({"id": lzma.FILTER_DELTA, "dist": 4}, {"id": lzma.FILTER_X86})])
def test_the_size_is_the_one_that_was_asked_for(dictionary_bytes, before):
    filters = [*before, {"id": lzma.FILTER_LZMA2, "dict_size": dictionary_bytes}]
    assert xz_dictionary(lzma.compress(b"a", filters=filters)) == dictionary_bytes


@pytest.mark.parametrize("data", [b"", b"\xfd7zXZ\0", lzma.compress(b"")])
def test_without_a_block_there_is_none(data):
    assert xz_dictionary(data) == 0
