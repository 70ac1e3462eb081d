"""What the corpus has of the tasks' held-out texts, against a search by hand."""

from __future__ import annotations

import pytest

from kexue_train.foundation.errors import EvaluationError
from kexue_train.supervised.contamination import find_in_documents, normalised, shingle_hashes
from kexue_train.supervised.needs import NEAR, SIZE, RowsDir
from kexue_train.supervised.prepare import read_contamination
from tests.supervised.tiny_tasks import prepare, section, write_tasks

TEXT = "Nobody expected the storm that came over the harbour at noon, and the boats were lost."
OTHER = "今天天气很好，我们去公园散步，晚上再一起吃饭，然后回家看书写信听音乐。"


def share_by_hand(text, document):
    """Share of the different shingles of ``text`` that ``document`` has."""
    shingles = [{t[i : i + SIZE] for i in range(len(t) - SIZE + 1)} for t in map(normalised, (text, document))]
    return len(shingles[0] & shingles[1]) / len(shingles[0])


def test_a_text_is_found_whatever_its_case_and_punctuation():
    (found,) = find_in_documents({"a": [TEXT, OTHER]}, ["Before. " + TEXT.upper().replace(",", " --") + " After."])
    assert (found.texts, found.exact, found.near, found.too_short) == (2, 1, 0, 0)
    assert found.share == 0.5


@pytest.mark.parametrize("changed", [1, 2, 4])
def test_a_near_duplicate_is_one_by_its_share_of_shingles(changed):
    words = TEXT.split()
    for number in range(changed):
        words[4 * number + 1] = "something"
    document = " ".join(words)
    (found,) = find_in_documents({"a": [TEXT]}, ["nothing at all", document])
    assert found.exact == 0
    assert found.near == (share_by_hand(TEXT, document) >= NEAR)


def test_shingles_of_two_documents_do_not_add_up():
    half = len(TEXT) // 2
    (found,) = find_in_documents({"a": [TEXT]}, [TEXT[: half + 15], TEXT[half - 15 :]])
    assert (found.exact, found.near) == (0, 0)


def test_short_texts_are_counted_and_not_looked_for():
    (found,) = find_in_documents({"a": ["too short", "好的", TEXT]}, ["too short", "好的"])
    assert (found.texts, found.too_short, found.exact, found.near) == (3, 2, 0, 0)


def test_equal_texts_of_two_tasks_are_found_for_both():
    first, second = find_in_documents({"a": [TEXT], "b": [OTHER, TEXT]}, [TEXT])
    assert (first.exact, second.exact) == (1, 1)


def test_equal_shingles_have_equal_hashes_and_different_ones_differ():
    text = normalised(TEXT + OTHER + TEXT)
    hashes = shingle_hashes(text).tolist()
    shingles = [text[i : i + SIZE] for i in range(len(hashes))]
    assert len(set(zip(shingles, hashes, strict=True))) == len(set(shingles)) == len(set(hashes))
    assert not len(shingle_hashes("a" * (SIZE - 1)))


def test_a_task_whose_held_out_texts_the_corpus_has_is_refused_unless_allowed(samples, tmp_path):
    shards, text = samples.parent / "shards", "Document 1. Nobody expected the storm; it came at noon."
    records = {number: {"a": text, "b": "", "label": ("yes", "no")[number % 2]} for number in range(40)}
    folder = write_tasks(tmp_path / "tasks", {"sorted": records})
    dev = folder / "sorted-dev.jsonl"
    dev.write_text('{"a": "' + text + '", "b": "", "label": "yes"}\n')
    with pytest.raises(EvaluationError, match=r"sorted: of 1 texts .* has 1 as they are and 0 nearly \(100.0%\)"):
        prepare(section(folder, {"mlm": 1, "sorted": 1, "marked": 1}), samples, tmp_path / "out", shards)
    allowed = section(folder, {"mlm": 1, "sorted": 1, "marked": 1}, max_contamination=1.0)
    prepare(allowed, samples, tmp_path / "out", shards)
    found = {entry.task: entry for entry in read_contamination(RowsDir(tmp_path / "out" / "supervised"))}
    assert found["sorted"].exact == 1
    assert found["marked"].exact == found["marked"].near == 0
