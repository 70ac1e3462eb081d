"""Zip and tar: every member is read as a file of its own, and what cannot be read is counted, whatever the archive."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import tarfile
import zipfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import describe_position, read_records
from kexue_train.corpus.records import PART_BITS, ReadOptions
from kexue_train.foundation.errors import CorpusError, DamagedInputError, MemoryLimitError
from tests.corpus.written_formats import WRITERS

ROWS = [{"text": f"text {i}", "source": "s"} for i in range(5)]
TEXTS = [row["text"] for row in ROWS]
STREAMED = {name: WRITERS[name](ROWS) for name in ("a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv")}


def to_zip(members, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def to_tar(members, mode="w", form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as archive:
        for name, data in members:
            if isinstance(name, tarfile.TarInfo):
                archive.addfile(name)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


KINDS = {
    "a.zip": to_zip,
    "stored.zip": lambda members: to_zip(members, zipfile.ZIP_STORED),
    "lzma.zip": lambda members: to_zip(members, zipfile.ZIP_LZMA),
    "a.zip.gz": lambda members: gzip.compress(to_zip(members)),
    "a.tar": to_tar,
    "gnu.tar": lambda members: to_tar(members, form=tarfile.GNU_FORMAT),
    "a.tgz": lambda members: to_tar(members, "w:gz"),
    "a.tar.bz2": lambda members: to_tar(members, "w:bz2"),
    "a.txz": lambda members: to_tar(members, "w:xz"),
}


def put(tmp_path, kind, members):
    path = tmp_path / kind
    path.write_bytes(KINDS[kind](members))
    return path


def read_blocks(path, *, ranges=((0, None),), **options):
    """Return texts, positions, reasons of rejected records, what was left out, and whether the end was damaged."""
    (source,) = find_inputs([str(path)], document=options.get("document", "line"))
    texts, positions, rejected, left_out, is_damaged = [], [], [], Counter(), False
    for start, end in ranges:
        try:
            for block in read_records(source, ReadOptions(**options), start=start, end=end):
                texts += block.texts.to_pylist()
                positions += block.positions.tolist()
                rejected += [(entry.position, entry.reason, entry.detail) for entry in block.rejected]
                left_out.update(block.left_out)
        except DamagedInputError:
            is_damaged = True
    return texts, positions, rejected, left_out, is_damaged


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_every_format_that_goes_forward_are_read(tmp_path, kind):
    members = [(f"folder {i}/{'x' * 150}/{name}", data) for i, (name, data) in enumerate(STREAMED.items())]
    members += [
        ("packed/b.jsonl.gz", gzip.compress(STREAMED["a.jsonl"])),
        ("c.txt.bz2", bz2.compress(STREAMED["a.txt"])),
    ]
    members += [("part-00000", STREAMED["a.jsonl"]), ("lines.json", STREAMED["a.jsonl"])]
    texts, positions, rejected, left_out, is_damaged = read_blocks(put(tmp_path, kind, members))
    assert texts == TEXTS * len(members)
    assert positions == sorted(set(positions))
    assert [position >> PART_BITS for position in positions] == [i for i in range(len(members)) for _ in TEXTS]
    assert (rejected, left_out, is_damaged) == ([], Counter(), False)


@given(
    sizes=st.lists(st.integers(0, 3), max_size=6),
    cuts=st.lists(st.integers(1, 99), max_size=4),
    block_bytes=st.integers(1, 300),
    kind=st.sampled_from(["a.zip", "a.tgz", "a.tar"]),
)
def test_the_records_do_not_depend_on_cuts_and_blocks(tmp_path_factory, sizes, cuts, block_bytes, kind):
    tmp_path = tmp_path_factory.mktemp("archives")
    members = [(f"{i}.jsonl", WRITERS["a.jsonl"](ROWS[:size])) for i, size in enumerate(sizes)]
    path = put(tmp_path, kind, members)
    (source,) = find_inputs([str(path)])
    edges = [0, *sorted({cut % source.units for cut in cuts} - {0}), None]
    ranges = list(itertools.pairwise(edges))
    whole = read_blocks(path)
    assert whole[0] == [text for size in sizes for text in TEXTS[:size]]
    assert read_blocks(path, ranges=ranges, block_bytes=block_bytes) == whole


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_a_member_can_be_a_document(tmp_path, kind):
    path = put(tmp_path, kind, [("b.txt", b"one\n\ntwo\n"), ("a.txt", b"three"), ("blank.txt", b" \n")])
    assert read_blocks(path, document="file")[0] == ["one\n\ntwo", "three"]
    assert read_blocks(path, document="block")[0] == ["one", "two", "three"]


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_what_is_no_data_is_left_out_and_counted(tmp_path, kind):
    names = ["__MACOSX/._a.jsonl", ".hidden.jsonl", "x/.git/a.txt", "image.png", "README.md", "binary"]
    members = [(name, b"\0\1\2") for name in names] + [("a.jsonl", STREAMED["a.jsonl"]), ("./b/../b.txt", b"good\n")]
    texts, _, rejected, left_out, _ = read_blocks(put(tmp_path, kind, members))
    assert (texts, rejected) == ([*TEXTS, "good"], [])
    assert left_out == {"hidden member of an archive": 3, "member of an archive of unknown format": 3}


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_what_cannot_be_read_costs_its_member_alone(tmp_path, kind):
    members = [
        ("inner.zip", to_zip([("a.txt", b"a")])),
        ("inner.tar.gz", gzip.compress(to_tar([("a.txt", b"a")]))),
        ("t.parquet", WRITERS["a.parquet"](ROWS)),
        ("b.7z", b"7z"),
        ("page.jsonl", b"<!DOCTYPE html><html></html>"),
        ("utf16.txt", "text\n".encode("utf-16")),
        ("cut.jsonl.gz", gzip.compress(STREAMED["a.jsonl"])[:-10]),
        ("bad.jsonl", b'{"text": 1}\n{"text": "good"}\n'),
    ]
    texts, _, rejected, _, is_damaged = read_blocks(put(tmp_path, kind, members))
    assert texts[-1] == "good"
    assert not is_damaged
    assert [(position >> PART_BITS, reason) for position, reason, _ in rejected] == [
        (0, "archive in an archive"),
        (1, "archive in an archive"),
        (2, "table in an archive"),
        (3, "packed member of an archive"),
        (4, "member of an archive that is something else"),
        (5, "member of an archive that is something else"),
        (6, "damaged member of an archive"),
        (7, "'text' is not a string"),
    ]
    assert len({position for position, *_ in rejected}) == len(members)
    for (name, _), (_, _, detail) in zip(members, rejected, strict=True):
        assert name in detail


def test_a_member_without_a_text_column_is_an_error_as_the_file_would_be(tmp_path):
    path = put(tmp_path, "a.zip", [("a.csv", b"title\nx\n")])
    with pytest.raises(CorpusError, match=r"a\.zip/a\.csv: has no column 'text'"):
        read_blocks(path)
    with pytest.raises(CorpusError, match=r"a\.zip/b\.txt: is a text file, which has no columns to keep"):
        read_blocks(put(tmp_path, "a.zip", [("b.txt", b"x\n")]), keep=("source",))


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_no_link_and_no_name_leads_out_of_an_archive(tmp_path):
    (tmp_path / "secret.txt").write_text("secret\n")
    members = [
        ("x/a.txt", b"a\n"),
        link("x/inside.txt", "a.txt"),
        link("x/hard.txt", "x/a.txt", tarfile.LNKTYPE),
        link("x/above.txt", "../x/a.txt"),
        link("x/out.txt", "../../secret.txt"),
        link("x/absolute.txt", str(tmp_path / "secret.txt")),
        link("x/pipe.txt", "", tarfile.FIFOTYPE),
        ("../secret.txt", b"its own\n"),
    ]
    texts, _, rejected, left_out, _ = read_blocks(put(tmp_path, "a.tar", members))
    assert texts == ["a", "its own"]
    assert left_out == {"link within an archive": 3}
    assert [reason for _, reason, _ in rejected] == ["link out of an archive"] * 2 + [
        "member of an archive that is no file"
    ]


def test_a_link_in_a_zip_is_none_to_follow(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        entry = zipfile.ZipInfo("out.txt")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    (tmp_path / "a.zip").write_bytes(out.getvalue())
    assert [reason for _, reason, _ in read_blocks(tmp_path / "a.zip")[2]] == ["link out of an archive"]


def test_an_encrypted_member_is_refused_by_name(tmp_path):
    data = bytearray(to_zip([("a.txt", b"secret\n"), ("b.txt", b"open\n")]))
    data[6] |= 1  # in the header of the first member
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    texts, _, ((position, reason, detail),), _, _ = read_blocks(tmp_path / "a.zip")
    assert (texts, position, reason) == (["open"], 0, "encrypted member of an archive")
    assert detail.startswith("a.txt: ")


MANY = [(f"{i}.txt", f"text {i} {i * 7919 % 1000}\n".encode()) for i in range(40)]


@pytest.mark.parametrize("kind", ["a.tar", "a.tgz", "a.tar.bz2"])
def test_a_tar_cut_anywhere_gives_the_whole_records_before(tmp_path, kind):
    whole = KINDS[kind](MANY)
    expected, counts = [data.decode().strip() for _, data in MANY], []
    for size in [*range(30, len(whole) - 1, len(whole) // 40), len(whole) - 1]:
        (tmp_path / kind).write_bytes(whole[:size])
        first = read_blocks(tmp_path / kind)
        assert first == read_blocks(tmp_path / kind, block_bytes=7)
        texts, _, rejected, _, is_damaged = first
        assert texts == expected[: len(texts)]
        assert not rejected
        is_padding = kind == "a.tar" and not whole[size - 1024 :].strip(b"\0")
        assert is_damaged or is_padding
        counts.append(len(texts))
    assert counts == sorted(counts)
    assert counts[-1] >= 20


def test_a_damaged_header_in_the_middle_of_a_tar_is_no_end(tmp_path):
    whole = bytearray(to_tar(MANY))
    at = whole.index(b"20.txt")
    whole[at : at + 2] = b"xx"
    (tmp_path / "a.tar").write_bytes(whole)
    texts, _, _, _, is_damaged = read_blocks(tmp_path / "a.tar")
    assert (len(texts), is_damaged) == (20, True)


def test_a_second_tar_in_the_same_file_is_not_lost_in_silence(tmp_path):
    (tmp_path / "a.tar").write_bytes(to_tar(MANY) + to_tar(MANY))
    texts, *_, is_damaged = read_blocks(tmp_path / "a.tar")
    assert (len(texts), is_damaged) == (40, True)
    (tmp_path / "a.tar").write_bytes(b"")
    assert read_blocks(tmp_path / "a.tar")[0] == []
    (tmp_path / "a.tar").write_bytes(b"something else\n" * 99)
    with pytest.raises(CorpusError, match="is no tar archive"):
        read_blocks(tmp_path / "a.tar")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_a_zip_costs_one_member(tmp_path, method):
    long = "".join(f"{i} {i * 7919 % 100_000}\n" for i in range(20_000)).encode()
    whole = bytearray(to_zip([("0.txt", b"first\n"), ("1.txt", long), ("2.txt", b"last\n")], method))
    at = whole.index(b"2.txt") - len(whole) // 4
    whole[at : at + 8] = bytes(byte ^ 0xA5 for byte in whole[at : at + 8])
    (tmp_path / "a.zip").write_bytes(whole)
    first, *others = [read_blocks(tmp_path / "a.zip", block_bytes=size) for size in (1 << 20, 999, 100_000)]
    texts, _, (*_, (position, reason, _)), _, is_damaged = first
    assert (texts[0], texts[-1], is_damaged) == ("first", "last", False)
    assert (position >> PART_BITS, reason) == (1, "damaged member of an archive")
    assert all(other == first for other in others)


def test_a_zip_that_is_cut_off_has_no_directory(tmp_path):
    (tmp_path / "a.zip").write_bytes(to_zip(MANY)[:-30])
    assert read_blocks(tmp_path / "a.zip")[::4] == ([], True)


def test_bombs_are_bounded(tmp_path):
    bomb = b" " * (100 * 2**20)
    path = put(tmp_path, "a.zip", [("bomb.txt", bomb), ("good.txt", b"good\n")])
    texts, _, ((_, reason, _),), _, _ = read_blocks(path)
    assert (texts, reason) == (["good"], "record longer than 64 MiB")
    whole = to_zip([("a.txt", b"a\n" * 500_000), ("b.txt", b"b\n" * 500_000)], zipfile.ZIP_STORED)
    at = whole.index(b"PK\x01\x02")
    entry = whole[at : whole.index(b"PK\x01\x02", at + 4)]
    size, many = len(entry), 3
    end = whole[-22:-14] + many.to_bytes(2, "little") * 2 + (size * many).to_bytes(4, "little") + whole[-6:]
    (tmp_path / "over.zip").write_bytes(whole[:at] + entry * many + end)
    with pytest.raises(CorpusError, match="lie over each other"):
        read_blocks(tmp_path / "over.zip")


def test_a_directory_or_a_header_larger_than_memory_is_refused(tmp_path):
    path = put(tmp_path, "a.zip", [(f"{i}.txt", b"") for i in range(50)])
    with pytest.raises(MemoryLimitError, match="its directory of members takes"):
        read_blocks(path, memory_bytes=10_000)
    info = tarfile.TarInfo("a.txt")
    info.pax_headers = {"comment": "x" * (17 << 20)}
    (tmp_path / "a.tar").write_bytes(to_tar([(info, b"")]))
    assert read_blocks(tmp_path / "a.tar")[::4] == ([], True)


def test_positions_name_the_member(tmp_path):
    path = put(tmp_path, "a.tar", [("a.txt", b"a\nb\n"), ("b.txt", b"c\nd\n")])
    (source,) = find_inputs([str(path)])
    positions = read_blocks(path)[1]
    assert describe_position(source, positions[-1]) == f"{path}: position 2 of member 1"


def test_an_archive_is_read_over_a_uri_as_a_file_is(tmp_path):
    for kind in ("a.zip", "a.tgz"):
        path = put(tmp_path, kind, MANY)
        assert read_blocks(path.as_uri()) == read_blocks(path)


def test_the_content_tells_an_archive_without_suffix(tmp_path):
    for kind in ("a.zip", "a.tar"):
        path = put(tmp_path, kind, MANY).rename(tmp_path / "part")
        assert len(read_blocks(path)[0]) == len(MANY)
