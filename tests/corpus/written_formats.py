"""Writes the same records in every format, with the standard library where there is one: what the readers must give."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def pack_with_arrow(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {
    "gz": gzip.compress,
    "bz2": lambda data: bz2.compress(data, 1),  # blocks of 100 kB, so that small data has several
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": lambda data: pack_with_arrow(data, "zstd"),
    "lz4": lambda data: pack_with_arrow(data, "lz4"),
}
Rows = Sequence[dict[str, str]]


def to_text(rows: Rows) -> bytes:
    return "".join(row["text"] + "\n" for row in rows).encode()


def to_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def to_json(rows: Rows) -> bytes:
    return json.dumps(list(rows), indent=1).encode()


def to_csv(rows: Rows) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["text", "source"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def to_tsv(rows: Rows) -> bytes:
    return "".join(
        "\t".join(row) + "\n" for row in [("source", "text"), *((r["source"], r["text"]) for r in rows)]
    ).encode()


def to_table(rows: Rows) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in ("source", "text")})


def to_parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(to_table(rows), sink, row_group_size=3)
    return sink.getvalue()


def to_arrow_file(rows: Rows) -> bytes:
    return _to_arrow(rows, pa.ipc.new_file)


def to_arrow_stream(rows: Rows) -> bytes:
    return _to_arrow(rows, pa.ipc.new_stream)


def _to_arrow(rows: Rows, new) -> bytes:
    sink, table = io.BytesIO(), to_table(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(2, len(rows) // 50))
    return sink.getvalue()


WRITERS = {
    "a.txt": to_text,
    "a.jsonl": to_jsonl,
    "a.json": to_json,
    "a.csv": to_csv,
    "a.tsv": to_tsv,
    "a.parquet": to_parquet,
    "file.arrow": to_arrow_file,
    "stream.arrow": to_arrow_stream,
}
"""File name -> its bytes for some rows of ``text`` and ``source``."""
