"""The benchmark of the shuffle: its corpora, its peers, what it measures and how it compares."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if sys.platform != "linux":
    pytest.skip("the benchmark reads /proc", allow_module_level=True)

from benchmarks import bench, make_corpus, summary, tools
from benchmarks.measure import Command, Measured, measure
from benchmarks.peers import shuffle_like_the_blog
from kexue_train.foundation.arrow_shards import shard_name

MEGABYTE = 10**6


def corpus_bytes(kind: str, num_bytes: int = 3 * MEGABYTE, seed: int = 0) -> bytes:
    return b"".join(make_corpus.generate(kind, seed=seed, num_bytes=num_bytes))


def run_of(tool: str, round_: int, seconds: float, error: str = "") -> summary.Run:
    measured = Measured(seconds=seconds, written=200, peak_pss=3 * MEGABYTE, error=error)
    return summary.Run("lines", tool, tool, "ext4, cold", round_, MEGABYTE, 100, 10, "", measured)


@pytest.mark.parametrize("kind", make_corpus.KINDS)
def test_a_corpus_is_decided_by_its_seed(kind: str) -> None:
    assert corpus_bytes(kind, MEGABYTE) == corpus_bytes(kind, MEGABYTE)
    assert corpus_bytes(kind, MEGABYTE) != corpus_bytes(kind, MEGABYTE, seed=1)


@pytest.mark.parametrize("kind", make_corpus.KINDS)
def test_a_corpus_has_the_promised_size_line_length_and_compressibility(kind: str) -> None:
    text = corpus_bytes(kind)
    lines = text.split(b"\n")
    assert 3 * MEGABYTE <= len(text) < 3 * MEGABYTE + max(map(len, lines)) + 1
    assert lines[-1] == b""
    # Four standard errors: 2,000 documents with a spread of 95 % of their mean. Short lines are rounded to whole words.
    mean = len(text) / (len(lines) - 1) - 1
    assert mean == pytest.approx(make_corpus.MEAN_LINE_BYTES[kind], rel=0.03 if kind == "short-lines" else 0.085)
    assert 1.4 < len(text) / len(pa.compress(text, codec="lz4", asbytes=True)) < 1.9


def test_a_third_of_the_documents_is_chinese() -> None:
    lines = corpus_bytes("lines").decode().splitlines()
    chinese = sum(line.endswith("。") for line in lines) / len(lines)
    assert chinese == pytest.approx(1 / 3, abs=0.045)  # four standard errors of 2,000 draws


def test_json_lines_hold_the_same_documents_as_plain_lines() -> None:
    records = [json.loads(line) for line in corpus_bytes("jsonl").splitlines()]
    texts = corpus_bytes("lines").decode().split("\n")
    assert [record["text"] for record in records] == texts[: len(records)]
    assert [record["id"] for record in records] == list(range(len(records)))


def test_a_corpus_is_made_once(tmp_path: Path) -> None:
    first = make_corpus.make_corpus(tmp_path, "lines", MEGABYTE)
    modified = first.path.stat().st_mtime_ns
    assert make_corpus.make_corpus(tmp_path, "lines", MEGABYTE) == first
    assert first.path.stat().st_mtime_ns == modified
    assert (first.bytes, first.rows) == (first.path.stat().st_size, first.path.read_bytes().count(b"\n"))


def test_a_corpus_cut_short_is_made_anew(tmp_path: Path) -> None:
    first = make_corpus.make_corpus(tmp_path, "lines", MEGABYTE)
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:1000])
    make_corpus.make_corpus(tmp_path, "lines", MEGABYTE)
    assert first.path.read_bytes() == whole


@pytest.mark.slow
def test_the_blog_peer_keeps_every_line_and_moves_them(tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    lines = [f"line {i % 300}\n" for i in range(1000)]  # some twice
    source.write_text("".join(lines)[:-1], encoding="utf-8")  # the last newline is missing
    shuffle_like_the_blog(source, out, tmp_path / "tmp", chunk_lines=64, workers=2, seed=0)
    shuffled = out.read_text(encoding="utf-8").splitlines(keepends=True)
    assert Counter(shuffled) == Counter(lines)
    assert shuffled != lines


@pytest.mark.slow
def test_every_round_of_the_blog_peer_has_a_line_of_each_chunk(tmp_path: Path) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a1\na2\na3\nb1\nb2\nb3\n", encoding="utf-8")
    shuffle_like_the_blog(source, out, tmp_path / "tmp", chunk_lines=3, workers=1, seed=0)
    chunks = [line[0] for line in out.read_text(encoding="utf-8").split()]
    assert [sorted(chunks[i : i + 2]) for i in (0, 2, 4)] == [["a", "b"]] * 3


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    base = [run_of("dd", 0, 10.0), run_of("dd", 1, 30.0), run_of("dd", 2, 8.0)]
    ours = [run_of("ours", 0, 5.0), run_of("ours", 1, 10.0), run_of("ours", 2, 16.0)]
    assert summary.median_ratio([*base, *ours], ours, "dd") == 2.0  # of 2, 3 and 0.5


def test_a_round_without_the_baseline_gives_no_ratio() -> None:
    ours = [run_of("ours", 0, 5.0), run_of("ours", 1, 10.0)]
    runs = [run_of("dd", 0, 10.0), run_of("dd", 1, 1.0, error="disk full"), *ours]
    assert summary.median_ratio(runs, ours, "dd") == 2.0
    assert summary.median_ratio(runs, ours, "terashuf") is None


def test_a_table_has_a_row_for_each_tool_that_worked() -> None:
    runs = [run_of("dd", 0, 1e-4), run_of("ours", 0, 2e-4), run_of("dd", 1, 1e-4), run_of("shuf", 0, 1.0, error="no")]
    view = summary.comparison()
    rows = summary.make_rows(runs, view.columns, view.key)
    # 100 bytes in 0.1 ms are 1.0 MB/s; no terashuf; 3 MB at most; 200 bytes written of 100.
    assert rows[0] == ["dd", "1.0 [1.0–1.0]", "–", "1.00", "3", "0", "0.0 [0.0–0.0]", "2.00×", "0.00×"]
    assert [row[:4] for row in rows[1:]] == [["ours", "0.5", "–", "0.50"]]
    assert summary.markdown_table(view.columns[:2], [row[:2] for row in rows]).splitlines() == [
        "| tool | MB/s |", "| --- | --- |", "| dd | 1.0 [1.0–1.0] |", "| ours | 0.5 |",
    ]  # fmt: skip


def test_every_tool_is_first_once_in_as_many_rounds_as_tools() -> None:
    chosen = tools.TOOLS[:4]
    orders = [bench.rotate(chosen, round_) for round_ in range(4)]
    assert {order[0].name for order in orders} == {tool.name for tool in chosen}
    assert all(sorted(tool.name for tool in order) == sorted(tool.name for tool in chosen) for order in orders)


def test_a_ram_disk_is_one_place_and_a_disk_as_many_as_states_of_the_page_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = {tmp_path / "disk": "ext4", tmp_path / "memory": "tmpfs"}
    monkeypatch.setattr(bench, "file_system", lambda folder: (kinds[folder], "device"))
    titles = [place.title for place in bench.places(list(kinds), ["cold", "warm"])]
    assert titles == ["ext4, cold", "ext4, warm", "RAM disk"]


def test_rows_are_counted_in_text_arrow_and_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"]})
    (tmp_path / "out.txt").write_bytes(b"a\nb\n")
    (tmp_path / "folder").mkdir()
    for shard in range(2):
        with pa.ipc.new_stream(tmp_path / "folder" / shard_name(shard, 2), table.schema) as writer:
            writer.write_table(table)
    pq.write_table(table, tmp_path / "out.parquet")
    assert tools.count_rows(tmp_path / "out.txt") == (2, 4)
    assert tools.count_rows(tmp_path / "folder") == (6, None)
    assert tools.count_rows(tmp_path / "out.parquet") == (3, None)


def test_an_output_with_a_row_too_few_is_an_error(tmp_path: Path) -> None:
    corpus = make_corpus.Corpus("lines", tmp_path / "in.txt", rows=3, bytes=6, lz4_ratio=1.0)
    (tmp_path / "out.txt").write_bytes(b"a\nb\n")
    assert bench.check_output(tmp_path / "out.txt", corpus).startswith("wrote 2 rows")
    assert bench.check_output(tmp_path / "missing.txt", corpus) != ""
    (tmp_path / "out.txt").write_bytes(b"a\nc\nb\n")
    assert bench.check_output(tmp_path / "out.txt", corpus) == ""


@pytest.mark.slow
def test_memory_cpu_and_writes_of_child_processes_are_measured(tmp_path: Path) -> None:
    code = "import time; x = b'1' * 10**8; open('file', 'wb').write(x[: 4 * 10**6]); time.sleep(0.7)"
    command = Command(["sh", "-c", f'{sys.executable} -c "{code}"; true'])
    found = measure(command, tmp_path)
    assert found.error == ""
    assert found.seconds > 0.7
    assert 10**8 < found.peak_pss < 1.5 * 10**8
    assert found.peak_pss <= found.peak_rss
    assert found.cpu_seconds > 0
    assert 4 * 10**6 <= found.written < 5 * 10**6
    assert found.peak_disk >= 4 * 10**6


@pytest.mark.slow
def test_a_failure_is_told_with_the_last_words_of_the_command(tmp_path: Path) -> None:
    found = measure(Command(["sh", "-c", "echo no such luck >&2; exit 3"]), tmp_path)
    assert found.error == "exit code 3: no such luck"


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    found = measure(Command(["sh", "-c", "sleep 300; true"]), tmp_path, timeout_seconds=0.3)
    assert found.error.startswith("took more than 0 s")
    assert found.seconds < 60


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end(tmp_path: Path, repository: Path) -> None:
    names = [name for name in ("dd", "shuf") if shutil.which(name)] + ["blog", "ours"]
    figures = tmp_path / "figures.json"
    options = ["--size=400kB", "--rounds=1", "--memory=200MB", "--kinds=jsonl", f"--tools={','.join(names)}"]
    options += [f"--workdir={tmp_path}", f"--json={figures}", "--markdown"]
    command = [sys.executable, repository / "benchmarks" / "shuffle.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    values = json.loads(figures.read_text(encoding="utf-8"))
    assert {run["tool"]: run["measured"]["error"] for run in values["runs"]} == dict.fromkeys(names, "")
    assert "| tool | MB/s | × terashuf | × dd |" in done.stdout
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []
