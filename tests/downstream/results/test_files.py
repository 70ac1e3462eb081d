"""Every kind of result survives its file, and files that name no kind are still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kexue_train.downstream.results.explanation import Explanation
from kexue_train.downstream.results.few_shot import FewShotResults
from kexue_train.downstream.results.files import (
    RESULT_TYPES,
    UnknownResult,
    name_kind_of_old_file,
    read_result,
    write_result,
)
from kexue_train.downstream.results.fine_tuning import FineTuningResults
from kexue_train.downstream.results.held_out import HeldOutResults
from kexue_train.downstream.results.paraphrase import ParaphraseResults
from kexue_train.downstream.results.similarity import StsResults
from kexue_train.downstream.results.trained_vectors import VectorResults
from kexue_train.downstream.results.zero_shot import ZeroShotResults
from kexue_train.foundation.errors import ArtifactError

# Written before files named their kind, of tiny models and a few records.
OLD = Path(__file__).parent / "old_files"
FORMS = {
    "mlm": HeldOutResults,
    "mlm_sentences": HeldOutResults,
    "zero_shot": ZeroShotResults,
    "sts_given": StsResults,
    "tasks": FineTuningResults,
    "vectors": VectorResults,
    "vectors_am": VectorResults,
    "few_shot": FewShotResults,
    "paraphrase": ParaphraseResults,
    "explain": Explanation,
}


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_an_old_file_is_read_whole(name, form):
    old = json.loads((OLD / f"{name}.json").read_text(encoding="utf-8"))
    result = read_result(OLD / f"{name}.json")
    assert isinstance(result, form)
    assert without_newer_values(result.model_dump(mode="json"), old) == {"kind": result.kind} | old


NEWER = {
    "keep_rule": "gradient",
    **dict.fromkeys(("dropout", "temperature", "scale", "margin", "sentences")),
    "rdrop": 0.0,
    "margins": [],
}
"""What old files do not have, as it is read."""


def without_newer_values(found, old):
    """What was read, without the values of ``NEWER`` that ``old`` lacks."""
    if isinstance(found, dict) and isinstance(old, dict):
        kept = {key: value for key, value in found.items() if key in old or NEWER.get(key, found) != value}
        return {key: without_newer_values(value, old.get(key)) for key, value in kept.items()}
    if isinstance(found, list) and isinstance(old, list) and len(found) == len(old):
        return [without_newer_values(*entries) for entries in zip(found, old, strict=True)]
    return found


@pytest.mark.parametrize("name", FORMS)
def test_a_result_is_the_same_after_writing_and_reading(name, tmp_path):
    result = read_result(OLD / f"{name}.json")
    write_result(tmp_path / "new" / "file.json", result)
    assert json.loads((tmp_path / "new" / "file.json").read_text(encoding="utf-8"))["kind"] == result.kind
    assert read_result(tmp_path / "new" / "file.json") == result


@pytest.mark.parametrize("name", FORMS)
def test_every_kind_is_shown_in_full_rows(name):
    result = read_result(OLD / f"{name}.json")
    assert result.tables()
    for table in result.tables():
        assert table.caption
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_every_kind_of_result_has_an_old_file_and_a_name_of_its_own():
    kinds = {form.model_fields["kind"].default for form in RESULT_TYPES}
    assert set(FORMS.values()) == set(RESULT_TYPES)
    assert len(kinds) == len(RESULT_TYPES)


def test_a_file_that_names_its_kind_is_not_guessed():
    record = {"kind": "something new", "tasks": [], "means": {}}
    assert name_kind_of_old_file(record) is record


def test_contents_of_another_version_are_shown_as_they_are(tmp_path):
    (tmp_path / "zero_shot.json").write_text(json.dumps({"kind": "zero_shot", "tasks": [{"task": "a", "score": 0.5}]}))
    result = read_result(tmp_path / "zero_shot.json")
    assert isinstance(result, UnknownResult)
    assert result.tables()[-1].rows == [["a", "0.5"]]
    assert (result.scores(), result.failures) == ([], [])


def test_failures_name_what_is_missing():
    [failure] = read_result(OLD / "vectors.json").failures
    assert (failure.subject, failure.missing) == ("nothere", "set")
    assert failure.text.startswith("nothere: no set: sts/nothere: no train.jsonl.gz")


@pytest.mark.parametrize("content", ["{", "[]", "\0"])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "mlm.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"mlm\.json"):
        read_result(tmp_path / "mlm.json")
