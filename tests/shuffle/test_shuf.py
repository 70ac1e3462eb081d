"""What ``shuf`` can do beside the order: samples, headers, NUL bytes, ranges, output in place."""

from __future__ import annotations

import itertools
import math
import os
import stat
from collections import Counter

import numpy as np
import pytest

from kexue_train.corpus.inputs import check_unchanged
from kexue_train.corpus.number_range import range_source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.streams import open_stream
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.shuffle import appending, passes, replacement, single_file
from kexue_train.shuffle.config import ShufConfig, ShuffleConfig
from kexue_train.shuffle.head import SmallestKeys, limits_of_shards
from kexue_train.shuffle.keys import position_keys
from kexue_train.shuffle.replacement import DrawnRange, deal_draws, repeat_rows
from kexue_train.shuffle.single_file import shuffle_to_file

LINES = [b"%d" % i for i in range(400)]


def run(inputs, out, *, seed=0, output="lines", shuf=None, **settings):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    return shuffle_to_file(
        ShuffleConfig(output=output, **settings),
        [str(path) for path in inputs],
        str(out),
        seed=seed,
        executor=LocalExecutor(1),
        shuf=ShufConfig(**(shuf or {})),
    )


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"\n".join([*LINES, b""]))
    return path


@pytest.fixture
def many_parts(monkeypatch):
    """A few kilobytes are many parts, and many tasks."""
    monkeypatch.setattr(single_file, "_SHARD_BYTES", 200)
    monkeypatch.setattr(appending, "_SYNC_BYTES", 300)
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 100)


@pytest.mark.parametrize("count", [0, 1, 7, 150, 400, 10**12])
def test_the_first_rows_are_those_of_the_whole_order(tmp_path, lines, many_parts, count):
    run(lines, tmp_path / "whole.txt")
    manifest = run(lines, tmp_path / "head.txt", shuf={"head_count": count})
    whole = (tmp_path / "whole.txt").read_bytes().splitlines()
    assert (tmp_path / "head.txt").read_bytes().splitlines() == whole[:count]
    assert manifest.rows == min(count, 400)
    assert manifest.statistics["sampled_out"] == 400 - manifest.rows


def test_the_first_rows_are_the_same_without_room_for_their_keys(tmp_path, lines, many_parts, monkeypatch):
    run(lines, tmp_path / "a.txt", shuf={"head_count": 50})
    monkeypatch.setattr(SmallestKeys, "within", lambda *_: None)
    run(lines, tmp_path / "b.txt", shuf={"head_count": 50})
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()


@pytest.mark.parametrize("count", [0, 1, 300, 2000])
def test_lines_are_drawn_with_replacement(tmp_path, lines, many_parts, count):
    manifest = run(lines, tmp_path / "out.txt", shuf={"head_count": count, "repeat": True})
    found = (tmp_path / "out.txt").read_bytes().split()
    assert len(found) == manifest.rows == count
    assert set(found) <= set(LINES)
    if count == 2000:  # of 400 lines 2.7 are expected to be missed, each with probability (399/400)^2000
        assert len(set(found)) in range(385, 401)


@pytest.mark.parametrize("settings", [{"header": 1}, {"zero_terminated": True}])
def test_draws_go_with_the_other_options_of_lines(tmp_path, settings):
    end = b"\0" if "zero_terminated" in settings else b"\n"
    (tmp_path / "in.txt").write_bytes(end.join([b"a", b"b", b"c", b""]))
    run(tmp_path / "in.txt", tmp_path / "out.txt", shuf={"head_count": 50, "repeat": True, **settings})
    *found, last = (tmp_path / "out.txt").read_bytes().split(end)
    assert last == b""
    if "header" in settings:
        assert found.pop(0) == b"a"
    assert set(found) == ({b"b", b"c"} if "header" in settings else {b"a", b"b", b"c"})
    assert len(found) == 50


def test_draws_do_not_depend_on_memory_and_survive_a_kill(tmp_path, lines, many_parts, monkeypatch):
    shuf = {"head_count": 900, "repeat": True}
    run(lines, tmp_path / "reference.txt", shuf=shuf)
    with monkeypatch.context() as patch:
        patch.setattr(single_file, "_publish", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            run(lines, tmp_path / "out.txt", shuf=shuf, memory="150MB")
    run(lines, tmp_path / "out.txt", shuf=shuf)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "reference.txt").read_bytes()


def test_draws_from_a_pipe(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    run(f"/dev/fd/{reading}", tmp_path / "out.txt", shuf={"head_count": 40, "repeat": True})
    os.close(reading)
    assert set((tmp_path / "out.txt").read_text().split()) == {"one", "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_nothing_can_be_drawn_from_nothing(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(CorpusError, match="hold no line to draw"):
        run(tmp_path / "empty.txt", tmp_path / "out.txt", shuf={"head_count": 1, "repeat": True})


@pytest.mark.parametrize("shuf", [{"repeat": True}, {"repeat": True, "head_count": 2**32}])
def test_draws_without_end_are_refused(shuf):
    with pytest.raises(ValueError, match=r"--repeat draws lines without end.*--head-count"):
        ShufConfig(**shuf)


@pytest.mark.parametrize("sizes", [[5], [2, 0, 3, 1], [0, 100, 1]])
def test_draws_are_dealt_as_independent_uniform_draws_are(sizes):
    """The counts of three draws over the parts, against the multinomial distribution, by chi-square."""
    sizes = np.array(sizes)
    found = Counter(tuple(deal_draws(np.random.default_rng(seed), 3, sizes).tolist()) for seed in range(3000))
    shares = sizes / sizes.sum()
    expected = {
        counts: 3000 * math.factorial(3) * math.prod(
            share**count / math.factorial(count) for share, count in zip(shares, counts, strict=True)
        )
        for counts in itertools.product(range(4), repeat=len(sizes))
        if sum(counts) == 3
    }  # fmt: skip
    assert set(found) <= {counts for counts, number in expected.items() if number}
    common = {counts: number for counts, number in expected.items() if number >= 5}
    chi_square = sum((found[counts] - number) ** 2 / number for counts, number in common.items())
    assert chi_square < 16.3 + 2.5 * len(common)  # above the quantile 0.999 for as many degrees of freedom


def test_every_line_is_drawn_as_often_as_its_chances_say(monkeypatch):
    """All orders of two draws from three lines, over chunks of two: nine outcomes, 200 times each."""
    monkeypatch.setattr(replacement, "_CHUNK_ROWS", 2)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(1800):
        copies = DrawnRange(seed, 0, rows=3, draws=2).copies()
        counts = np.concatenate([copies.take(1), copies.take(2)])
        rows, numbers = next(repeat_rows(counts, np.ones(3, np.int64)))
        keys = position_keys(seed, 0, rows.astype(np.uint64) * np.uint64(2), numbers)
        found[tuple(rows[np.argsort(keys)].tolist())] += 1
    assert len(found) == 9
    assert sum((count - 200) ** 2 / 200 for count in found.values()) < 26.1  # 8 degrees of freedom, probability 0.001


def test_the_copies_of_rows_are_numbered(monkeypatch):
    monkeypatch.setattr(replacement, "_CHUNK_ROWS", 4)
    pieces = list(repeat_rows(np.array([0, 3, 0, 1, 5]), np.ones(5, np.int64)))
    assert [row for rows, _ in pieces for row in rows] == [1, 1, 1, 3, 4, 4, 4, 4, 4]
    assert [number for _, numbers in pieces for number in numbers] == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    assert list(repeat_rows(np.zeros(3, np.int64), np.ones(3, np.int64))) == []


@pytest.mark.parametrize(("output", "name"), [("jsonl", "out.jsonl"), ("csv", "out.csv"), ("parquet", "out.parquet")])
def test_documents_of_any_format_have_a_head(tmp_path, corpus, output, name):
    assert run(corpus, tmp_path / name, output=output, shuf={"head_count": 11}).rows == 11


@pytest.mark.parametrize("count", [0, 3])
def test_a_compressed_head_is_a_whole_file(tmp_path, lines, many_parts, count):
    run(lines, tmp_path / "out.txt.gz", shuf={"head_count": count})
    with open_stream(str(tmp_path / "out.txt.gz"), "gzip") as stream:
        assert stream.read(10**6).count(b"\n") == count


def test_every_sample_is_as_likely(tmp_path):
    """Two of five lines that lie two bytes apart, in both orders: 20 outcomes over 2,000 seeds."""
    (tmp_path / "in.txt").write_bytes(b"a\nb\nc\nd\ne\n")
    found: Counter[str] = Counter()
    for seed in range(2000):
        order = np.argsort(position_keys(seed, 0, np.arange(0, 10, 2, dtype=np.uint64)))
        found["".join("abcde"[i] for i in order[:2])] += 1
        if seed < 3:
            run(tmp_path / "in.txt", tmp_path / f"{seed}.txt", seed=seed, shuf={"head_count": 2})
            assert (tmp_path / f"{seed}.txt").read_text().split() == ["abcde"[i] for i in order[:2]]
    assert len(found) == 20
    assert sum((count - 100) ** 2 / 100 for count in found.values()) < 43.8  # 19 degrees of freedom, probability 0.001


def test_the_smallest_keys_are_those_of_a_sort():
    random = np.random.default_rng(0)
    keys = random.integers(0, 50, 1000).astype(np.uint64)  # with many equal ones
    for count in (0, 1, 10, 999, 1000, 2000):
        smallest, admitted = SmallestKeys(count), []
        for piece in np.array_split(keys, 13):
            admitted += piece[smallest.admit(piece)].tolist()
        assert sorted(admitted)[:count] == sorted(keys.tolist())[:count]
    assert len(admitted) == 1000


def test_the_limits_of_the_shards():
    assert limits_of_shards(7, np.array([3, 0, 5, 4])) == [3, 0, 4, 0]
    assert limits_of_shards(99, np.array([3, 0, 5, 4])) == [3, 0, 5, 4]


@pytest.mark.parametrize("settings", [{"dedup": "exact"}, {"weights": {"in.txt": 2.0}}])
def test_a_head_of_an_unknown_number_of_rows_is_refused(tmp_path, lines, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--head-count is given with --weight.* or --dedup.*then take"):
        run("in.txt", "out.txt", shuf={"head_count": 1}, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize("suffix", ["txt", "txt.xz"])
def test_lines_that_end_with_nul_keep_their_newlines(tmp_path, many_parts, suffix):
    records = [b"one\ntwo", b"", b"\n", *LINES, b"last"]
    (tmp_path / "in.txt").write_bytes(b"\0".join(records))
    run(tmp_path / "in.txt", tmp_path / f"out.{suffix}", shuf={"zero_terminated": True})
    with open_stream(str(tmp_path / f"out.{suffix}"), "xz" if suffix == "txt.xz" else None) as stream:
        found = stream.read(10**6).removesuffix(b"\0").split(b"\0")
    assert Counter(found) == Counter(records)


def test_a_header_stays_first(tmp_path, lines, many_parts):
    (tmp_path / "a.txt").write_bytes(b"name\n----\n" + lines.read_bytes())
    manifest = run(tmp_path / "a.txt", tmp_path / "out.txt", shuf={"header": 2})
    first, second, *rest = (tmp_path / "out.txt").read_bytes().splitlines()
    assert (first, second) == (b"name", b"----")
    assert sorted(rest) == sorted(LINES)
    assert rest[:20] != LINES[:20]
    assert manifest.rows == 400


def test_equal_headers_are_written_once(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(b"\nhead\n" + name.encode())
    (tmp_path / "empty.txt").touch()
    run([tmp_path / f"{name}.txt" for name in ("a", "b", "empty")], tmp_path / "out.txt.gz", shuf={"header": 2})
    with open_stream(str(tmp_path / "out.txt.gz"), "gzip") as stream:
        assert stream.read(99) in (b"\nhead\na\nb\n", b"\nhead\nb\na\n")


def test_other_headers_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"head\n1\n")
    (tmp_path / "b.txt").write_bytes(b"other\n2\n")
    with pytest.raises(CorpusError, match=r"b\.txt: begins with another header than .*a\.txt"):
        run([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out.txt", shuf={"header": 1})
    assert not (tmp_path / "out.txt").exists()


def test_a_header_that_is_longer_than_a_piece_of_the_input_is_refused(tmp_path, lines, many_parts):
    with pytest.raises(CorpusError, match=r"in\.txt: its first 200 lines take more than .* bytes"):
        run(lines, tmp_path / "out.txt", shuf={"header": 200})


def test_a_file_that_is_a_header_alone_gives_it_back(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"head\n")
    run(tmp_path / "a.txt", tmp_path / "out.txt", shuf={"header": 5})
    assert (tmp_path / "out.txt").read_bytes() == b"head\n"


class KilledError(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("kill_after", [0, 1, 4])
def test_a_killed_run_keeps_header_and_head(tmp_path, lines, many_parts, monkeypatch, kill_after):
    shuf = {"header": 1, "head_count": 200}
    run(lines, tmp_path / "reference.txt", shuf=shuf)
    original, calls = passes.gather, []

    def gather(task):
        if len(calls) == kill_after:
            raise KilledError
        calls.append(task)
        return original(task)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "gather", gather)
        with pytest.raises(KilledError):
            run(lines, tmp_path / "out.txt", shuf=shuf)
    run(lines, tmp_path / "out.txt", shuf=shuf)
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "reference.txt").read_bytes()


def test_what_was_read_for_a_smaller_head_is_not_used_for_a_larger_one(tmp_path, lines, many_parts, monkeypatch):
    run(lines, tmp_path / "reference.txt", shuf={"head_count": 300})
    with monkeypatch.context() as patch:
        patch.setattr(single_file, "_publish", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            run(lines, tmp_path / "out.txt", shuf={"head_count": 3})
    run(lines, tmp_path / "out.txt", shuf={"head_count": 300})
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "reference.txt").read_bytes()


@pytest.mark.parametrize("option", [{"zero_terminated": True}, {"header": 1}, {"repeat": True, "head_count": 3}])
def test_what_only_lines_have_is_refused_for_documents(tmp_path, corpus, lines, option):
    name = next(iter(option)).replace("_", "-")
    for inputs, settings in [(corpus, {}), (lines, {"min_chars": 1}), (lines, {"document": "block"})]:
        filters = {"filters": {"min_chars": settings.pop("min_chars")}} if "min_chars" in settings else {}
        with pytest.raises(ConfigError, match=f"--{name}: only where lines of text become lines"):
            run(inputs, tmp_path / "out.txt", shuf=option, **settings, **filters)
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("text", ["1-400", "7-7", "5-4", "0-0", "95-1003", "9223372036854775800-9223372036854775807"])
@pytest.mark.parametrize("raw", [False, True])
def test_a_range_is_its_numbers(text, raw):
    low, high = map(int, text.split("-"))
    source = range_source(text)
    check_unchanged([source])
    expected = [str(number) for number in range(low, high + 1)]
    assert source.bytes == sum(len(line) + 1 for line in expected)
    options = ReadOptions(raw=raw, block_bytes=200)
    cuts = [0, source.units // 3, source.units]
    blocks = [
        block
        for start, end in itertools.pairwise(cuts)
        for block in read_records(source, options, start=start, end=end)
    ]
    found = [line.decode() if raw else line for block in blocks for line in block.texts.to_pylist()]
    assert found == expected
    assert [int(at) for block in blocks for at in block.positions] == list(range(len(expected)))


@pytest.mark.parametrize("text", ["9-1", "1-", "-1", "1", "a-b", "1-9223372036854775808", "1.5-2", "1-2-3", "１-２"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(CorpusError, match="is not of the form LO-HI"):
        range_source(text)


def test_a_range_is_shuffled(tmp_path, many_parts):
    run([], tmp_path / "out.txt", shuf={"input_range": "1000-1999"})
    assert sorted(map(int, (tmp_path / "out.txt").read_text().split())) == list(range(1000, 2000))


def test_a_file_is_shuffled_in_place(tmp_path, lines, many_parts):
    lines.chmod(0o640)
    (tmp_path / "link.txt").symlink_to("in.txt")
    run(lines, tmp_path / "reference.txt")
    run(tmp_path / "link.txt", tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink()
    assert lines.read_bytes() == (tmp_path / "reference.txt").read_bytes()
    assert stat.S_IMODE(lines.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "link.txt", "reference.txt"]


def test_an_interrupted_shuffle_in_place_leaves_the_input_and_goes_on(tmp_path, lines, many_parts, monkeypatch):
    before = lines.read_bytes()
    run(lines, tmp_path / "reference.txt")
    original = single_file._publish
    with monkeypatch.context() as patch:
        patch.setattr(single_file, "_publish", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            run(lines, lines)
    assert lines.read_bytes() == before
    assert single_file._publish is original
    run(lines, lines)
    assert lines.read_bytes() == (tmp_path / "reference.txt").read_bytes()


def test_documents_are_not_shuffled_in_place(tmp_path, make_corpus):
    path = make_corpus(tmp_path / "a.jsonl", ["one", "two"])
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="is an input, and only lines of text can be shuffled in place"):
        run(path, path, output="jsonl")
    assert path.read_bytes() == before


def test_another_file_is_not_replaced(tmp_path, lines):
    (tmp_path / "other.txt").write_text("precious")
    os.link(tmp_path / "other.txt", tmp_path / "link.txt")
    with pytest.raises(ArtifactError, match="already exists"):
        run(lines, tmp_path / "link.txt")
    assert (tmp_path / "other.txt").read_text() == "precious"
