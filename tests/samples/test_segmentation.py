from __future__ import annotations

from pathlib import Path

import pytest
import rjieba

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.segmentation import (
    Entry,
    prepare_words,
    read_dictionary,
    segmenter,
    word_settings,
    write_dictionary,
)

TEXT = "他们在蓝鲸落地生根"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_dictionary_has_words_with_and_without_frequency_and_tag(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", "\ufeff云计算 5 n\r\n\n创新办 i\n八一双鹿 3\n台中\n")
    assert read_dictionary(path) == [
        Entry("云计算", 5, "n"),
        Entry("创新办", None, "i"),
        Entry("八一双鹿", 3),
        Entry("台中"),
    ]


@pytest.mark.parametrize("line", ["云计算 5 n 7", "云计算 n 5", "云计算 -5", "云计算 5.0 n"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "d.txt", f"台中\n{line}\n")
    with pytest.raises(ArtifactError, match=rf"d\.txt:2: '{line}' is not of the form"):
        read_dictionary(path)


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes("台中\n".encode() + "云计算".encode("gb18030"))
    with pytest.raises(ArtifactError, match=r"d\.txt:2: not UTF-8"):
        read_dictionary(tmp_path / "d.txt")


def test_a_written_list_is_read_back_the_most_frequent_first(tmp_path: Path) -> None:
    write_dictionary(tmp_path / "w.txt", {"丙": 1, "甲": 2, "甲乙": 7, "乙": 1})
    assert read_dictionary(tmp_path / "w.txt") == [Entry("甲乙", 7), Entry("甲", 2), Entry("丙", 1), Entry("乙", 1)]


def test_words_of_a_dictionary_join_those_of_jieba(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", "蓝鲸落地\n")
    words = segmenter(SampleConfig(dictionary=path), path)(TEXT)
    assert words != rjieba.cut(TEXT)
    assert words == ["他们", "在", "蓝鲸落地", "生根"]
    assert segmenter(SampleConfig(), None)(TEXT) == rjieba.cut(TEXT)


def test_settings_hold_what_is_in_the_dictionary_not_where_it_lies(tmp_path: Path) -> None:
    one, copy = (write(tmp_path / name, "蓝鲸落地\n") for name in ("one.txt", "copy.txt"))
    other = write(tmp_path / "other.txt", "蓝鲸 落地\n")
    settings = [word_settings(SampleConfig(dictionary=path))["dictionary"] for path in (one, copy, other)]
    assert settings[0] == settings[1] != settings[2]
    with pytest.raises(ConfigError, match=r"samples\.dictionary=.*missing\.txt: no such file"):
        word_settings(SampleConfig(dictionary=tmp_path / "missing.txt"))


def test_the_word_list_is_made_once(tmp_path: Path, text_shards: Path) -> None:
    assert prepare_words(SampleConfig(), text_shards, tmp_path) is None
    path = prepare_words(SampleConfig(words="pmi"), text_shards, tmp_path)
    before = path.stat().st_mtime_ns
    assert prepare_words(SampleConfig(words="pmi"), text_shards, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert "学生" in {entry.word for entry in read_dictionary(path)} or len(read_dictionary(path)) > 10


@pytest.mark.parametrize("values", [{"words": "pmi"}, {"dictionary": "d.txt"}])
def test_settings_that_would_do_nothing_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="whole_word=false"):
        SampleConfig.parse({"whole_word": False, **values}, where="test")


def test_a_dictionary_is_for_jieba(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adds words to jieba"):
        SampleConfig.parse({"words": "pmi", "dictionary": "d.txt"}, where="test")


@pytest.mark.parametrize("words", ["jieba", "pmi"])
def test_samples_carry_the_word_list_they_were_made_with(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, words: str
) -> None:
    dictionary = write(tmp_path / "d.txt", "去公园\n") if words == "jieba" else None
    config = SampleConfig(seq_len=64, words=words, dictionary=dictionary)

    def build(name: str) -> Path:
        build_samples(config, text_shards, tokenizer_folder, tmp_path / name, seed=1, executor=LocalExecutor(1))
        return tmp_path / name

    manifest = read_manifest(build("one"))
    assert "words.txt" in manifest.files
    assert manifest.content_digest == read_manifest(build("two")).content_digest
    plain = SampleConfig(seq_len=64)
    build_samples(plain, text_shards, tokenizer_folder, tmp_path / "plain", seed=1, executor=LocalExecutor(1))
    other = read_manifest(tmp_path / "plain")
    assert manifest.statistics["document_tokens"] == other.statistics["document_tokens"]
    assert manifest.statistics["words"] != other.statistics["words"]
