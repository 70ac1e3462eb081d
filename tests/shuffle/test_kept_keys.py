"""What the inputs hold besides the text: told if it is not kept, and kept if all is asked for."""

from __future__ import annotations

import json

import pytest

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus
from kexue_train.shuffle.single_file import shuffle_to_file
from kexue_train.shuffle.text_shards import verify_text_shards

HOW = "(--keep NAME keeps one, --keep-all all; in a configuration shuffle.keep, shuffle.keep_all)"


class Notes(list[str]):
    """A ``Progress`` that keeps what it is told."""

    def update(self, *_, **__):
        pass

    def note(self, message):
        self.append(message)


@pytest.fixture
def made(tmp_path):
    """Shuffles records to JSON Lines; returns them sorted by text, and what was said."""

    def make(records, **settings):
        for number, lines in enumerate(records):
            (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        notes, out = Notes(), tmp_path / "out.jsonl"
        out.unlink(missing_ok=True)
        config = ShuffleConfig(output="jsonl", **settings)
        inputs = [str(tmp_path / f"{number}.jsonl") for number in range(len(records))]
        shuffle_to_file(config, inputs, str(out), seed=0, executor=LocalExecutor(1), progress=notes)
        found = [json.loads(line) for line in out.read_text().splitlines()]
        return sorted(found, key=lambda line: line["text"]), notes

    return make


def test_keys_that_are_not_kept_are_told_in_one_line(made):
    _, notes = made([[{"text": "a", "url": "u", "lang": "en"}], [{"text": "b", "year": 1999}]], keep=("url",))
    assert f"not kept: 'lang', 'year' {HOW}" in notes
    _, notes = made([[{"text": "a", "url": "u"}]], keep=("url",))
    assert not [note for note in notes if note.startswith("not kept")]


def test_many_keys_are_counted(made):
    _, notes = made([[{"text": "a"} | {f"k{i}": 0 for i in range(30)}]])
    assert f"not kept: 'k0', 'k1', 'k10', 'k11', 'k12' and 25 more {HOW}" in notes


def test_keys_of_many_records_are_told(made):
    _, notes = made([[{"text": "a"}] * 3000 + [{"text": "b", "late": 1}] * 64])
    assert f"not kept: 'late' {HOW}" in notes


def test_all_keys_are_kept_if_that_is_asked_for(made):
    found, notes = made([[{"text": "a", "url": "u", "n": {"k": 1}}], [{"text": "b", "year": 1999}]], keep_all=True)
    assert found == [
        {"text": "a", "n": '{"k":1}', "url": "u", "year": None},
        {"text": "b", "n": None, "url": None, "year": "1999"},
    ]
    assert not [note for note in notes if note.startswith("not kept")]


def test_a_key_that_comes_late_is_not_lost(made):
    records = [[{"text": "a"}] * 9000 + [{"text": "b", "late": 1}]]
    with pytest.raises(CorpusError, match=r"0\.jsonl:9001: .* unexpected key \('late'.*name it with --keep"):
        made(records, keep_all=True)
    found, _ = made(records, keep_all=True, on_bad_record="skip")
    assert len(found) == 9000


def test_shards_with_all_keys_are_whole_and_found_complete(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "url": "u"}\n')
    make = {"seed": 0, "executor": LocalExecutor(1)}
    for config in (ShuffleConfig(keep_all=True), ShuffleConfig(keep_all=True), ShuffleConfig(keep=("url",))):
        manifest = shuffle_corpus(config, [str(tmp_path / "a.jsonl")], tmp_path / "shards", **make)
        assert manifest.settings["keep"] == ["url"]
        assert manifest.statistics["unread_keys"] == []
    verify_text_shards(tmp_path / "shards")


def test_what_cannot_be_kept_is_refused(made):
    with pytest.raises(ConfigError, match="key 'text' beside 'body'"):
        made([[{"body": "a", "text": "b"}]], text_key="body", keep_all=True)
    for settings, message in (({"keep": ["url"]}, "remove 'keep'"), ({"output": "lines"}, "plain lines")):
        with pytest.raises(ConfigError, match=message):
            ShuffleConfig.parse({"keep_all": True} | settings, where="here")


def test_a_pipe_cannot_be_looked_at_beforehand(tmp_path):
    config = ShuffleConfig(output="jsonl", format="jsonl", keep_all=True)
    with pytest.raises(ConfigError, match="-: is read once"):
        shuffle_to_file(config, ["-"], str(tmp_path / "out.jsonl"), seed=0, executor=LocalExecutor(1))
