from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kexue_train.foundation.errors import CorpusError

HOSTILE = Path(__file__).parents[3] / "shared" / "data" / "hostile"
pytestmark = pytest.mark.skipif(not HOSTILE.is_dir(), reason="the kit of hostile files is not on this machine")

NO_JSON, NO_UTF8, NO_STRING, TOO_LONG = (
    "not valid JSON",
    "not UTF-8",
    "'text' is not a string",
    "record longer than 64 MiB",
)
OUTCOMES = {  # name: (documents, rejected by reason, blank)
    "good.jsonl": (5, {}, 0),
    "good.jsonl.gz": (5, {}, 0),
    "zero_byte.jsonl.gz": (0, {}, 0),
    "one_line_50mb.jsonl.gz": (3, {}, 0),
    "one_line_50mb_no_newline.txt.gz": (1, {}, 0),
    "invalid_utf8.jsonl": (2, {NO_UTF8: 1}, 0),
    "gbk.jsonl": (0, {NO_UTF8: 2}, 0),
    "bom.jsonl": (5, {}, 0),
    "crlf.jsonl": (5, {}, 0),
    "crlf_inside.txt": (6, {}, 1),  # here a line is a document
    "cr_only.jsonl": (0, {NO_JSON: 1}, 0),
    "mixed_eol.jsonl": (4, {}, 2),
    "no_final_newline.jsonl": (5, {}, 0),
    "nul.jsonl": (3, {NO_JSON: 2}, 0),
    "unicode_zoo.jsonl": (5, {}, 1),
    "broken_line.jsonl": (3, {NO_JSON: 4}, 0),
    "missing_text.jsonl": (2, {"no key 'text'": 3}, 0),
    "nonstring_text.jsonl": (2, {NO_STRING: 6}, 0),
    "not_objects.jsonl": (1, {"not a JSON object": 5}, 0),
    "nan.jsonl": (3, {}, 0),
    "empty.jsonl": (0, {}, 0),
    "empty_texts.jsonl": (2, {}, 3),
    "one_sentence.jsonl": (5, {}, 0),
    "all_one_document.jsonl": (1, {}, 0),
    "duplicates.jsonl": (100, {}, 0),
    "extra_keys.jsonl": (2, {}, 0),
    "name with spaces & 中文 ünïcode (1).jsonl": (5, {}, 0),
    "x" * 200 + ".jsonl": (1, {}, 0),
    "directory.jsonl": (1, {}, 0),
    "no_suffix": (5, {}, 0),
    "nulls.parquet": (2, {NO_STRING: 1}, 1),
    "empty.parquet": (0, {}, 0),
}
REFUSED = {
    "truncated_mid.jsonl.gz": "cut off or damaged near byte 1116",
    "truncated_trailer.jsonl.gz": "cut off or damaged near byte 2224",
    "plain_named_gz.jsonl.gz": "the name says gzip",
    "other_schema.parquet": "'id', 'content', 'score'",
    "text_binary.parquet": "holds binary",
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_record_is_accepted_blank_or_rejected_with_a_reason(read, name):
    result = read(HOSTILE / name)
    assert (len(result.texts), result.rejected, result.blank) == OUTCOMES[name]
    assert not any(text.startswith("\ufeff") or text.endswith(("\r", "\n")) for text in result.texts)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "quotes.tsv",
            {"text_keys": ("text_a",)},
            (1, {"wrong number of fields": 3}, 0),
        ),  # a tab is a tab, quoted or not
        ("newline_in_field.csv", {"text_keys": ("review",)}, (2, {}, 0)),
        ("huge_field.csv", {"text_keys": ("review",)}, (2, {}, 0)),
        ("crlf_inside.txt", {"document": "block"}, (2, {}, 0)),
        ("crlf_inside.txt", {"document": "file"}, (1, {}, 0)),
        ("crlf_inside.txt", {"raw": True}, (7, {}, 0)),
        ("nul.jsonl", {"keep": ("source",)}, (3, {NO_JSON: 2}, 0)),
    ],
)
def test_tables_and_documents_are_read_as_told(read, name, options, expected):
    result = read(HOSTILE / name, **options)
    assert (len(result.texts), result.rejected, result.blank) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_by_name(read, name):
    with pytest.raises(CorpusError, match=REFUSED[name]) as caught:
        read(HOSTILE / name)
    assert name in str(caught.value)


def test_only_newlines_hold_no_document(read):
    assert not read(HOSTILE / "only_newlines.jsonl").texts


@pytest.mark.slow
def test_a_decompression_bomb_is_rejected_within_bounded_memory():
    limit = 4 << 30  # of addresses; what is resident is asserted below
    script = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from kexue_train.corpus.inputs import find_inputs\n"
        "from kexue_train.corpus.readers import read_records\n"
        "(source,) = find_inputs([sys.argv[1]])\n"
        "found = [entry.reason for block in read_records(source) for entry in block.rejected]\n"
        f"assert found == [{TOO_LONG!r}], found\n"
        # Not ru_maxrss: that of a child starts at what its parent held when it forked.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(HOSTILE / "bomb_1gib.jsonl.gz")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert int(done.stdout) < 450 * 1024  # KiB: a third of what the bomb unpacks to
