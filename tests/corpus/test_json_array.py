from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus import json_records
from kexue_train.corpus.json_records import iter_elements
from kexue_train.foundation.errors import CorpusError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\[]{},: 中\n'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


class Slow:
    """Gives a few bytes at a time, whatever is asked."""

    def __init__(self, data, step):
        self._raw, self._step = io.BytesIO(data), step

    def read(self, _):
        return self._raw.read(self._step)


@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 0, 2]), step=st.integers(1, 9))
def test_elements_are_those_of_the_json_module(values, indent, step):
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    found = list(iter_elements("a", Slow(b" \n" + data + b"\n", step)))
    assert [json.loads(element.data) for element in found] == values


@pytest.mark.parametrize("step", [1, 4, 100])
def test_an_element_over_the_limit_is_cut_short_and_the_next_ones_follow(step):
    data = json.dumps(["a", "x" * 50, {"k": "y" * 50}, "b"]).encode()
    sizes = [element.num_bytes for element in iter_elements("a", Slow(data, step), max_record_bytes=20)]
    assert sizes == [3, 53, 60, 3]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"42", "its first character is '4'"),
        (b"[1", "the JSON array is cut off in element 0"),
        (b"[", "the JSON array is cut off in element 0"),
        (b'[1, "a]', "the JSON array is cut off in element 1"),
        (b"[1] [2]", "unexpected data after the end"),
    ],
)
def test_what_is_no_whole_array_is_an_error(tmp_path, read, data, message):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        read(tmp_path / "a.json")


def test_one_wrong_element_costs_that_one_alone(tmp_path, read):
    (tmp_path / "a.json").write_bytes(
        b'\xef\xbb\xbf[{"text": "a"}, x, {"text": "\\ud800"}, 1, {"text": 2}, , {"text": "\xff"}, {"text": "b"},]'
    )
    result = read(tmp_path / "a.json")
    assert (result.texts, result.positions) == (["a", "b"], [0, 7])
    assert result.rejected == {
        "not valid JSON": 4,
        "not a JSON object": 1,
        "'text' is not a string": 1,
        "not UTF-8": 1,
    }


@pytest.mark.parametrize("data", [b"", b" \n", b"[]", b"[ \n ] "])
def test_an_empty_array_or_file_holds_no_record(tmp_path, read, data):
    (tmp_path / "a.json").write_bytes(data)
    assert read(tmp_path / "a.json").texts == []


def test_a_file_longer_than_a_step_is_read_through(tmp_path, read, monkeypatch):
    monkeypatch.setattr(json_records, "_CHUNK_BYTES", 64)
    texts = [f'text "{i}" \\ [,]' for i in range(500)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts]))
    assert read(tmp_path / "a.json", block_bytes=50).texts == texts
