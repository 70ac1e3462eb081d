"""What a user asks of a shuffle beyond order: weights, filters, kept columns, formats, damage, where spills go."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.text_shards import verify_text_shards
from tests.shuffle.shard_texts import iter_texts


@pytest.fixture
def two_files(tmp_path, make_corpus):
    make_corpus(tmp_path / "a.jsonl", [f"a{i}" for i in range(101)])
    make_corpus(tmp_path / "b.jsonl", [f"b{i}" for i in range(60)])
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


@pytest.mark.parametrize(("weight", "kept"), [(0.25, 25), (0.5, 50), (1.0, 101), (2.0, 202), (2.25, 227)])
def test_weights_are_exact_whatever_the_shards_and_memory(tmp_path, two_files, shuffle, contents, weight, kept):
    weights = {two_files[0]: weight}
    for name, settings in {"one": {"shards": 3}, "tiny": {"shards": 3, "memory": "1B"}}.items():
        manifest = shuffle(two_files, tmp_path / name, weights=weights, **settings)
        texts = Counter(iter_texts(tmp_path / name))
        counts = [count for text, count in texts.items() if text.startswith("a")]
        assert sum(counts) == kept
        assert {*counts} <= {int(weight), int(weight) + (weight % 1 > 0)}
        assert all(texts[f"b{i}"] == 1 for i in range(60))
        assert manifest.rows + manifest.statistics["sampled_out"] == manifest.statistics["offered"]
    assert contents(tmp_path / "one") == contents(tmp_path / "tiny")
    assert verify_text_shards(tmp_path / "one").rows == kept + 60


def test_another_seed_draws_other_documents(tmp_path, two_files, shuffle):
    drawn = []
    for seed in (0, 1):
        shuffle(two_files[0], tmp_path / str(seed), weights={two_files[0]: 0.5}, seed=seed)
        drawn.append({*iter_texts(tmp_path / str(seed))})
    assert [len(texts) for texts in drawn] == [50, 50]
    assert drawn[0] != drawn[1]


def test_copies_lie_anywhere(tmp_path, two_files, shuffle):
    shuffle(two_files[0], tmp_path / "out", weights={two_files[0]: 2.0})
    texts = list(iter_texts(tmp_path / "out"))
    assert sum(one == two for one, two in itertools.pairwise(texts)) < 8  # about one by chance


def test_a_share_of_duplicates_cannot_be_drawn():
    with pytest.raises(ConfigError, match="weights must be whole numbers"):
        ShuffleConfig.parse({"dedup": "exact", "weights": {"a": 0.5}}, where="test")


def test_filtered_documents_are_counted_and_kept_aside(tmp_path, make_corpus, shuffle):
    path = make_corpus(tmp_path / "a.jsonl", ["short", "long enough", "???????????????", "also long enough"])
    filters = {"min_chars": 8, "min_letter_share": 0.5}
    manifest = shuffle(path, tmp_path / "out", filters=filters, keep_dropped=True)
    assert sorted(iter_texts(tmp_path / "out")) == ["also long enough", "long enough"]
    assert manifest.statistics["dropped"] == {"letters below min_letter_share": 1, "shorter than min_chars": 1}
    lines = (tmp_path / "out" / "dropped" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert {(json.loads(line)["text"], json.loads(line)["position"]) for line in lines} == {
        ("short", 0),
        ("?" * 15, 42),
    }


def test_kept_columns_travel_with_their_text(tmp_path, shuffle):
    rows = [{"text": f"text {i}", "source": f"s{i}" if i % 2 else None, "n": i} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shuffle(tmp_path / "a.jsonl", tmp_path / "out", keep=("source", "n"), shards=3)
    table = pa.concat_tables([read_shard(path) for path in shard_paths(tmp_path / "out")])
    assert table.column_names == ["text", "source", "n"]
    expected = sorted((row["text"], row["source"], str(row["n"])) for row in rows if row["source"])
    assert sorted(tuple(row.values()) for row in table.to_pylist() if row["source"]) == expected


def test_many_formats_in_one_shuffle(tmp_path, make_corpus, shuffle):
    folder = tmp_path / "in"
    make_corpus(folder / "a.jsonl", ["jsonl"])
    (folder / "b.json").write_text('[{"text": "json 1"}, {"text": "json 2"}]')
    (folder / "c.csv").write_text('id,text\n1,"csv, with ""quotes"""\n')
    (folder / "d.tsv").write_text("text\tid\ntsv\t1\n")
    (folder / "e.txt.gz").write_bytes(gzip.compress(b"text\n"))
    pq.write_table(pa.table({"text": ["parquet"]}), folder / "f.parquet")
    manifest = shuffle(folder, tmp_path / "out")
    expected = ['csv, with "quotes"', "json 1", "json 2", "jsonl", "parquet", "text", "tsv"]
    assert sorted(iter_texts(tmp_path / "out")) == expected
    assert [entry.rows for entry in manifest.inputs] == [1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("memory", ["1B", "1GB"])
def test_a_damaged_file_ends_it_or_gives_what_lies_before_the_damage(tmp_path, make_corpus, shuffle, memory):
    texts = [f"document {i} " + "word " * (i % 50) for i in range(2000)]
    whole = gzip.compress(make_corpus(tmp_path / "whole.jsonl", texts).read_bytes())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match=r"cut\.jsonl\.gz: the gzip data is cut off or damaged"):
        shuffle(path, tmp_path / "out", memory=memory)
    manifest = shuffle(path, tmp_path / "out", memory=memory, on_bad_record="skip")
    found = sorted(iter_texts(tmp_path / "out"), key=lambda text: int(text.split()[1]))
    assert found == texts[: len(found)]
    assert 500 < len(found) < 2000
    assert manifest.inputs[0].rejected == {"the file is damaged from here on": 1}
    (line,) = (tmp_path / "out" / "rejected" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["position"] == len(found)


def test_spills_can_lie_elsewhere_and_leave_nothing(tmp_path, corpus, shuffle, contents):
    shuffle(corpus, tmp_path / "reference", shards=3)
    shuffle(corpus, tmp_path / "out", shards=3, spill=str(tmp_path / "spill"))
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    assert not [path for path in (tmp_path / "spill").rglob("*") if path.is_file()]


def test_spills_that_vanished_are_made_again(tmp_path, corpus, shuffle, contents, monkeypatch):
    """What an emptied local disk does: the first gather finds the spill files gone."""
    from kexue_train.shuffle import passes

    shuffle(corpus, tmp_path / "reference", shards=3)
    original, calls = passes.read_segments, []

    def read_segments(request):
        if not calls:
            for path in (tmp_path / "spill").rglob("*.spill"):
                path.unlink()
        calls.append(request)
        return original(request)

    monkeypatch.setattr(passes, "read_segments", read_segments)
    shuffle(corpus, tmp_path / "out", shards=3, spill=str(tmp_path / "spill"))
    assert len(calls) > 3
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.mark.slow
def test_two_workers_and_compressed_spills_give_the_same_bytes(tmp_path, corpus, shuffle, contents, monkeypatch):
    monkeypatch.setattr("kexue_train.shuffle.plan._MIN_RANGE_BYTES", 10_000)
    shuffle(corpus, tmp_path / "reference", shards=3)
    monkeypatch.setattr("kexue_train.shuffle.shuffle_corpus._CACHE_SHARE", 0.0)
    shuffle(corpus, tmp_path / "out", shards=3, executor=LocalExecutor(2))
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.mark.slow
def test_a_full_file_system_is_told_and_the_work_goes_on_once_there_is_room(tmp_path, make_corpus, repository):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        ballast = disk / "ballast"
        source = make_corpus(tmp_path / "a.jsonl", [f"{i} " + "word " * 200 for i in range(8000)])
        script = (
            "import kexue_train.shuffle.shuffle_corpus as stage, sys\n"
            "stage.require_disk = lambda *_: None\n"  # it would refuse before the start
            "from kexue_train.cli.app import main\n"
            "if __name__ == '__main__': main()\n"
        )
        (tmp_path / "run.py").write_text(script)
        ballast.write_bytes(bytes(18 << 20))
        command = [sys.executable, str(tmp_path / "run.py"), "shuffle", str(source), "-o", str(disk / "out")]
        command += ["--shards", "4", "--workers", "2"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
        assert done.returncode == 2
        assert "the disk is full" in done.stderr
        assert not (disk / "out").exists()
        ballast.unlink()
        again = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
        assert again.returncode == 0, again.stderr
        assert verify_text_shards(disk / "out").rows == 8000
    finally:
        subprocess.run(["umount", str(disk)], check=True)
