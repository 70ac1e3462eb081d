"""What a reader holds of a file whose parts are large, and what it refuses to read."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus.arrow_files import _Watched
from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import check_memory, read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.foundation.errors import MemoryLimitError

MB = 10**6
LITTLE = ReadOptions(block_bytes=MB, memory_bytes=4 * MB)
TEXTS = [f"{number:06d}" + chr(ord("a") + number % 26) * 100_000 for number in range(160)]  # 16 MB

PARQUET = {
    "one plain page": {"use_dictionary": False, "compression": "none"},
    "version 2": {"use_dictionary": False, "compression": "none", "data_page_version": "2.0"},
    "small pages": {"use_dictionary": False, "compression": "zstd", "write_batch_size": 2},
    "small row groups": {"row_group_size": 8},
}
LARGE_PARQUET = {
    "a large dictionary": {},
    "a large packed page": {"use_dictionary": False},
    "prefixes": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    "lengths first": {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
}


def write_parquet(path, texts=TEXTS, **settings):
    pq.write_table(pa.table({"text": texts}), path, **settings)


def write_arrow(path, table, form="file", **settings):
    make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
    with make(path, table.schema, options=pa.ipc.IpcWriteOptions(**settings)) as writer:
        writer.write_table(table)


def read_texts(path, options=LITTLE):
    (source,) = find_inputs([str(path)])
    check_memory(source, options)
    return [text for block in read_records(source, options) for text in block.texts.to_pylist()]


@pytest.mark.parametrize("settings", PARQUET.values(), ids=PARQUET)
def test_parquet_is_read_a_few_rows_at_a_time(tmp_path, settings):
    write_parquet(tmp_path / "a.parquet", **settings)
    assert read_texts(tmp_path / "a.parquet") == TEXTS


@pytest.mark.parametrize("settings", LARGE_PARQUET.values(), ids=LARGE_PARQUET)
def test_a_row_group_that_is_too_large_is_refused_with_what_makes_it_readable(tmp_path, monkeypatch, settings):
    write_parquet(tmp_path / "a.parquet", **settings)
    with pytest.raises(MemoryLimitError, match=r"a\.parquet: row group 0 \(160 rows, 16 MB in text\)") as caught:
        read_texts(tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'python -c "(.*)"\)', str(caught.value))[1], {})  # noqa: S102  # our own advice
    assert read_texts(tmp_path / "smaller.parquet") == TEXTS
    enough = ReadOptions(block_bytes=MB, memory_bytes=caught.value.need_bytes)
    assert read_texts(tmp_path / "a.parquet", enough) == TEXTS


def test_a_row_that_is_too_large_by_itself_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x" * 5 * MB, "short"], use_dictionary=False, compression="none")
    with pytest.raises(MemoryLimitError, match=r"up to 5 MB, and 4 MB are there"):
        read_texts(tmp_path / "a.parquet")


def test_copies_that_a_dictionary_holds_once_count_each(tmp_path):
    path, texts = tmp_path / "a.parquet", ["x" * 300_000, "y"] * 500
    write_parquet(path, texts)
    (source,) = find_inputs([str(path)])
    blocks = list(read_records(source, LITTLE))
    assert max(len(block.texts) for block in blocks) <= 8
    assert [text for block in blocks for text in block.texts.to_pylist()] == texts


def test_a_long_text_among_short_ones_does_not_bring_its_like_in(tmp_path):
    texts = ["short"] * 20_000 + ["x" * 100_000] * 30
    write_parquet(tmp_path / "a.parquet", texts, use_dictionary=False, compression="none", write_batch_size=64)
    (source,) = find_inputs([str(tmp_path / "a.parquet")])
    blocks = list(read_records(source, LITTLE))
    assert max(block.texts.nbytes for block in blocks) < 3 * MB
    assert [text for block in blocks for text in block.texts.to_pylist()] == texts


def test_only_the_columns_that_are_read_count(tmp_path):
    table = pa.table({"text": [text[:6] for text in TEXTS], "other": TEXTS})
    pq.write_table(table, tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", table, compression="lz4")
    write_arrow(tmp_path / "b.arrow", table, "stream", compression="zstd")
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        assert read_texts(tmp_path / name) == [text[:6] for text in TEXTS]


def test_a_column_with_a_dot_in_its_name_counts_as_any_other(tmp_path):
    pq.write_table(pa.table({"a.b": TEXTS, "a": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(MemoryLimitError, match=r"16 MB in a\.b\)"):
        read_texts(tmp_path / "a.parquet", ReadOptions(text_keys=("a.b",), memory_bytes=4 * MB))


def test_categories_are_counted(tmp_path):
    pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), tmp_path / "a.parquet")
    with pytest.raises(MemoryLimitError, match="row group 0"):
        read_texts(tmp_path / "a.parquet")


@pytest.mark.parametrize("form", ["file", "stream"])
def test_a_batch_of_any_size_is_read_where_it_lies(tmp_path, form):
    write_arrow(tmp_path / "a.arrow", pa.table({"text": TEXTS}), form)
    assert read_texts(tmp_path / "a.arrow") == TEXTS


@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_batch_that_is_too_large_is_refused_with_what_makes_it_readable(
    tmp_path, monkeypatch, form, compression
):
    write_arrow(tmp_path / "a.arrow", pa.table({"text": TEXTS}), form, compression=compression)
    with pytest.raises(MemoryLimitError, match=r"a\.arrow: record batch 0 \(16 MB\)") as caught:
        read_texts(tmp_path / "a.arrow")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'python -c "(.*)"\)', str(caught.value))[1], {})  # noqa: S102  # our own advice
    assert read_texts(tmp_path / "plain.arrow") == TEXTS
    assert read_texts(tmp_path / "a.arrow", ReadOptions(memory_bytes=caught.value.need_bytes)) == TEXTS


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_a_batch_that_comes_through_a_pipe_is_refused_before_it_is_kept(tmp_path, compression):
    sink = io.BytesIO()
    write_arrow(sink, pa.table({"text": TEXTS}), "stream", compression=compression)
    (tmp_path / "a.arrow.gz").write_bytes(gzip.compress(sink.getvalue()))
    with pytest.raises(MemoryLimitError, match=r"record batch 0 \(16 MB\).*copy it to a file"):
        read_texts(tmp_path / "a.arrow.gz")
    watched = _Watched("-", b"", io.BytesIO(b"x" * 10), limit=5)
    with pytest.raises(MemoryLimitError, match="-: record batch 0"):
        watched.read(6)


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path):
    write_arrow(tmp_path / "a.arrow", pa.table({"text": TEXTS}))
    (source,) = find_inputs([str(tmp_path / "a.arrow")])
    blocks = read_records(source, LITTLE)
    next(blocks)
    with (tmp_path / "a.arrow").open("r+b") as file:
        file.truncate(8 * MB)
    with pytest.raises(Exception, match="was changed while it was read"):
        next(blocks)


SCRIPT = """
import sys
from pathlib import Path
from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
for path in sys.argv[1:]:
    (source,) = find_inputs([path])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, length = status("VmRSS"), 0
    for block in read_records(source, ReadOptions(block_bytes=10**6, memory_bytes=4 * 10**6)):
        length += block.texts.nbytes
    print(length, status("VmHWM") - before)
"""


def test_no_format_takes_memory_by_the_size_of_its_parts(tmp_path):
    for name, texts in (("1-small", TEXTS[:2]), ("2-large", TEXTS * 4)):  # 64 MB; the small ones load what is needed
        folder = tmp_path / name
        folder.mkdir()
        table = pa.table({"text": texts})
        pq.write_table(table, folder / "page.parquet", **PARQUET["one plain page"])
        pq.write_table(table, folder / "pages.parquet", **PARQUET["small pages"])
        write_arrow(folder / "file.arrow", table)
        write_arrow(folder / "stream.arrow", table, "stream")
        (folder / "a.json").write_text(json.dumps([{"text": text} for text in texts]))
        (folder / "a.csv").write_text("text\n" + "\n".join(texts))
    paths = sorted(tmp_path.rglob("*.*"))
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], check=True, capture_output=True, text=True)
    results = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for path, (length, peak) in list(zip(paths, results, strict=True))[len(paths) // 2 :]:
        assert length > 64 * MB
        assert peak < 32 * MB, path
