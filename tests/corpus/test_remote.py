from __future__ import annotations

import functools
import http.server
import importlib.util
import itertools
import threading

import fsspec
import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.foundation.errors import CorpusError
from tests.corpus.written_formats import PACKERS, WRITERS

ROWS = [{"text": f"text {i}", "source": "s"} for i in range(9)]
TEXTS = [row["text"] for row in ROWS]


@pytest.fixture
def store():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/kexue", recursive=True)


def put(system, name, data):
    with system.open(f"/kexue/{name}", "wb") as file:
        file.write(data)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_format_is_read_from_a_store(store, read, name, suffix):
    data = WRITERS[name](ROWS)
    put(store, name + suffix, PACKERS["gz"](data) if suffix else data)
    (source,) = find_inputs([f"memory://kexue/{name}{suffix}"])
    edges = [0, *range(1, min(source.units, 40)), None]
    assert read(source.path, ranges=list(itertools.pairwise(edges))).texts == TEXTS


def test_folders_and_globs_of_a_store_are_expanded(store):
    for name in ("a.jsonl", "sub/b.txt", ".hidden/c.txt", "README.md", "state.json"):
        put(store, name, b"x\n")
    folder = [source.path for source in find_inputs(["memory://kexue"])]
    assert folder == ["memory:///kexue/a.jsonl", "memory:///kexue/sub/b.txt"]
    assert [source.path for source in find_inputs(["memory://kexue/*.jsonl"])] == folder[:1]
    with pytest.raises(CorpusError, match="no such input file"):
        find_inputs(["memory://kexue/*.csv"])


@pytest.mark.parametrize("uri", ["memory://kexue-none/a.txt", "nowhere://a.txt"])
def test_what_cannot_be_reached_is_refused_by_name(uri):
    with pytest.raises(CorpusError, match=uri):
        find_inputs([uri])


@pytest.fixture
def server(tmp_path):
    """One of the standard library: it knows no ranges."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="fsspec reads http with aiohttp")
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv.gz"])
def test_files_are_read_from_a_web_server_without_ranges(tmp_path, server, read, name):
    data = WRITERS[name.removesuffix(".gz")](ROWS)
    (tmp_path / name).write_bytes(PACKERS["gz"](data) if name.endswith(".gz") else data)
    (source,) = find_inputs([f"{server}/{name}"])
    assert (source.units, source.bytes) == (1, (tmp_path / name).stat().st_size)
    assert source.modified_ns // 10**9 == int((tmp_path / name).stat().st_mtime)
    assert read(source.path).texts == TEXTS
    assert [found.path for found in find_inputs([f"{server}/*{name[1:]}"])] == [source.path]
