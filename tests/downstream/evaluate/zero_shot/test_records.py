import json

import pytest

from kexue_train.downstream.task_files import Record, fill_template, fill_text, read_data_file
from kexue_train.foundation.errors import EvaluationError


def record(**values):
    return Record(values, "data.json:3")


def test_records_are_lines_whatever_else_a_string_holds(tmp_path):
    path = tmp_path / "data.json"
    values = [{"a": "one\u2028two\u0085three"}, {"a": "crlf"}]
    path.write_bytes(b"\r\n".join(json.dumps(value, ensure_ascii=False).encode() for value in values) + b"\r\n\n")
    found = read_data_file(path)
    assert [entry.values for entry in found] == values
    assert [entry.where for entry in found] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"data\.json:2: not valid JSON"),
        (b'{"a": 1}\n[1, 2]\n', r"data\.json:2: holds \[1, 2\]; expected one JSON object"),
        (b'{"a": "\xff"}\n', r"data\.json:1: not valid JSON"),
        (b"\n  \n", r"data\.json: holds no record"),
        (b"", r"data\.json: holds no record"),
    ],
)
def test_damaged_files_are_refused_by_line(content, message, tmp_path):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        read_data_file(tmp_path / "data.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"none\.json: cannot be read \(No such file"):
        read_data_file(tmp_path / "none.json")


def test_templates_take_numbers_truth_values_lists_and_values_inside_mappings():
    values = record(n=3, yes=True, keywords=["x", "y"], target={"span": "he"})
    assert fill_template("{n}|{yes}|{keywords}|{target.span}|{label}", values, "L") == "3|true|x,y|he|L"


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, 2]])
def test_other_values_are_refused(value):
    with pytest.raises(EvaluationError, match=r"data\.json:3: 'a' is .*; expected text, a number, or a list of texts"):
        fill_template("{a}", record(a=value))


def test_a_missing_value_is_refused_with_those_that_are_there():
    with pytest.raises(EvaluationError, match=r"data\.json:3: no value 'b\.c'; the record has a, b"):
        fill_template("{b.c}", record(a="x", b="y"))


def test_a_text_is_parted_around_its_longest_value():
    assert fill_text("<{a}|{b}>", record(a="short", b="much longer")) == ("<short|", "much longer", ">")
    assert fill_text("<{a}|{b}>", record(a="much longer", b="short")) == ("<", "much longer", "|short>")
    assert fill_text("nothing", record()) == ("", "nothing", "")


def test_a_text_is_parted_at_its_blank():
    assert fill_text("{a}", record(a="left #x# right"), "#x#") == ("left ", "", " right")


@pytest.mark.parametrize(("text", "times"), [("none", 0), ("#x# and #x#", 2)])
def test_a_text_without_its_one_blank_is_refused(text, times):
    with pytest.raises(EvaluationError, match=rf"data\.json:3: the text has the blank '#x#' {times} times"):
        fill_text("{a}", record(a=text), "#x#")


@pytest.mark.parametrize("value", [[], "abc", None])
def test_candidates_are_a_list(value):
    with pytest.raises(EvaluationError, match="expected a list of candidates"):
        record(c=value).texts("c")
