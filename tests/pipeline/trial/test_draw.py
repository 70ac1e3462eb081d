"""The sample of a trial: every document equally likely, the same for the same seed, and little is read for it."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus import lines
from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.corpus.records import ReadOptions
from kexue_train.foundation.errors import CorpusError
from kexue_train.pipeline.trial import draw
from kexue_train.pipeline.trial.draw import Drawn, draw_cells, estimate_whole, write_drawn

OPTIONS = ReadOptions()
SEEDS = 100


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 200 bytes, so that small files have many."""
    monkeypatch.setattr(draw, "_SMALLEST_CELL", 200)
    monkeypatch.setattr(draw, "_MOST_CELLS", 1000)


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def drawn_texts(
    folder: Path, sources: list[Source], seed: int, text_bytes: int, options: ReadOptions = OPTIONS
) -> tuple[list[str], Drawn]:
    path = folder / "drawn.jsonl"
    drawn = write_drawn(path, sources, draw_cells(sources, seed, text_bytes), options)
    return texts_of(path), drawn


@pytest.fixture
def corpus(tmp_path: Path) -> list[Source]:
    """Three files, documents of 1 to 400 characters, of which some are longer than a cell."""
    for name, count in (("a", 40), ("b", 13), ("c", 90)):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name}{i}" + "x" * (i * 37 % 400) for i in range(count)])
    return find_inputs([str(tmp_path / "*.jsonl")])


def all_documents(sources: list[Source]) -> list[tuple[int, int, str]]:
    """(input, byte at which it begins, text) of every line, found by splitting the whole files."""
    found = []
    for index, source in enumerate(sources):
        offset = 0
        for line in Path(source.path).read_bytes().splitlines(keepends=True):
            found.append((index, offset, json.loads(line)["text"]))
            offset += len(line)
    return found


def begins_in_a_cell(
    documents: list[tuple[int, int, str]], sources: list[Source], seed: int, text_bytes: int
) -> list[str]:
    """The oracle: the documents that begin in the drawn ranges of bytes."""
    cells = draw_cells(sources, seed, text_bytes).cells
    ranges = {(cell.source, byte) for cell in cells for byte in range(cell.start, cell.end or 0)}
    return [text for index, offset, text in documents if (index, offset) in ranges]


@pytest.mark.usefixtures("small_cells")
def test_the_documents_are_those_that_begin_in_the_cells(tmp_path: Path, corpus: list[Source]) -> None:
    for seed in range(5):
        assert drawn_texts(tmp_path, corpus, seed, 5000)[0] == begins_in_a_cell(
            all_documents(corpus), corpus, seed, 5000
        )


@pytest.mark.usefixtures("small_cells")
def test_every_document_is_equally_likely(corpus: list[Source]) -> None:
    counts: Counter[str] = Counter()
    documents = all_documents(corpus)
    for seed in range(SEEDS):
        counts.update(begins_in_a_cell(documents, corpus, seed, 5000))
    share = draw_cells(corpus, 0, 5000).share
    error = 4.5 * (share * (1 - share) / SEEDS) ** 0.5 + 0.02  # 143 documents; the number of cells is a whole one
    assert 0.1 < share < 0.5
    assert max(abs(counts[text] / SEEDS - share) for _, _, text in documents) < error


@pytest.mark.usefixtures("small_cells")
def test_an_input_of_weight_two_is_drawn_twice_as_often(tmp_path: Path, corpus: list[Source]) -> None:
    patterns = [source.path for source in corpus]
    weighted = find_inputs(patterns, weights={patterns[2]: 2.0})
    plain, heavy, documents = 0, 0, all_documents(weighted)
    for seed in range(60):
        texts = begins_in_a_cell(documents, weighted, seed, 4000)
        heavy += sum(text.startswith("c") for text in texts)
        plain += sum(not text.startswith("c") for text in texts)
    assert (heavy / 90) / (plain / 53) == pytest.approx(2.0, rel=0.15)
    assert drawn_texts(tmp_path, weighted, 0, 4000)[1].num_sources <= 3


@pytest.mark.usefixtures("small_cells")
def test_the_sample_does_not_depend_on_the_order_of_the_inputs(tmp_path: Path, corpus: list[Source]) -> None:
    paths = [source.path for source in corpus]
    first, _ = drawn_texts(tmp_path, find_inputs(paths), 7, 5000)
    assert drawn_texts(tmp_path, find_inputs([paths[2], paths[0], paths[1]]), 7, 5000)[0] == first
    assert drawn_texts(tmp_path, find_inputs(paths), 8, 5000)[0] != first


@pytest.mark.usefixtures("small_cells")
def test_all_is_taken_where_all_is_little(tmp_path: Path, corpus: list[Source]) -> None:
    texts, drawn = drawn_texts(tmp_path, corpus, 0, 10**9)
    assert texts == [text for _, _, text in all_documents(corpus)]
    assert (drawn.documents, drawn.begun_sources, drawn.num_sources) == (143, 0, 3)
    assert drawn.text_bytes == sum(map(len, texts))


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all that readers of lines get."""
    sizes: list[int] = []
    before: Callable[..., AbstractContextManager[Any]] = lines.open_stream

    class Counted:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def read(self, size: int) -> bytes:
            data: bytes = self.stream.read(size)
            sizes.append(len(data))
            return data

    @contextmanager
    def counted(*args: Any, **more: Any) -> Iterator[Counted]:
        with before(*args, **more) as stream:
            yield Counted(stream)

    monkeypatch.setattr(lines, "open_stream", counted)
    return sizes


@pytest.mark.parametrize("name", ["large.jsonl", "large.jsonl.gz"])
def test_little_is_read_of_a_large_file(tmp_path: Path, bytes_read: list[int], name: str) -> None:
    chance = np.random.default_rng(0)
    text = "".join(json.dumps({"text": f"{i} " + chance.bytes(600).hex()}) + "\n" for i in range(10_000)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text, 1) if name.endswith(".gz") else text)
    sources = find_inputs([str(path)])
    texts, drawn = drawn_texts(tmp_path, sources, 0, 10**6)
    assert 0.5e6 < drawn.text_bytes < 2e6
    assert sum(bytes_read) < 0.35 * len(text)
    numbers = [int(text.partition(" ")[0]) for text in texts]
    if name.endswith(".gz"):
        assert drawn.begun_sources == 1
        assert numbers == list(range(len(numbers)))
    else:
        assert drawn.begun_sources == 0
        assert max(numbers) - min(numbers) > 7_500
    least, likely, most = estimate_whole(sources, drawn)
    assert likely == pytest.approx(len(text) - 10_000 * len('{"text": ""}\n'), rel=0.05)
    assert least < likely < most


def test_of_many_compressed_files_some_are_drawn(tmp_path: Path) -> None:
    for i in range(200):
        line = json.dumps({"text": np.random.default_rng(i).bytes(3000).hex()}) + "\n"
        (tmp_path / f"{i:03}.jsonl.gz").write_bytes(gzip.compress((line * 4).encode()))
    _, drawn = drawn_texts(tmp_path, find_inputs([str(tmp_path / "*.gz")]), 0, 10**5)
    assert 5 <= drawn.num_sources < 150
    assert drawn.documents == 4 * drawn.num_sources  # small ones whole
    assert drawn.repeated == 3 * drawn.num_sources


def test_row_groups_are_drawn_and_begun(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{i} " + "x" * 1000 for i in range(4000)], "source": ["here"] * 4000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000, compression="none")
    sources = find_inputs([str(tmp_path / "a.parquet")])
    assert sources[0].units == 4
    texts, drawn = drawn_texts(tmp_path, sources, 0, 400_000, ReadOptions(keep=("source",)))
    groups = {int(text.partition(" ")[0]) // 1000 for text in texts}
    assert len(groups) >= 3  # of each the beginning
    assert drawn.begun_sources == 1
    assert 300_000 < drawn.text_bytes < 1_500_000
    first = json.loads((tmp_path / "drawn.jsonl").read_text().splitlines()[0])
    assert first["source"] == "here"


def test_bad_records_are_counted_by_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\nbad\n\n{"text": 3}\n{"other": 1}\n{"text": " "}\n')
    _, drawn = drawn_texts(tmp_path, find_inputs([str(tmp_path / "a.jsonl")]), 0, 10**6)
    assert drawn.documents == 1
    assert drawn.blank == 2
    assert drawn.rejected.total() == 3
    assert len(drawn.rejected) == 3  # reasons
    assert drawn.records == 6


def test_inputs_without_a_document_and_pipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"txt": "x"}\n')
    with pytest.raises(CorpusError, match=r"no document \(0 blank, 1 .*shuffle.text_key"):
        drawn_texts(tmp_path, find_inputs([str(tmp_path / "a.jsonl")]), 0, 10**6)
    with pytest.raises(CorpusError, match="read once"):
        draw_cells(find_inputs(["-"]), 0, 10**6)
