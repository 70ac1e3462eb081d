import gzip
import json

import pytest

from kexue_train.downstream.evaluate.config import EvaluateConfig
from kexue_train.downstream.evaluate.evaluate_model import evaluate_model
from kexue_train.foundation.errors import ConfigError, StaleArtifactError
from tests.downstream.evaluate.tiny_artifacts import export_model, tiny_model

CONFIG = EvaluateConfig(masked_sentences=("word1 [MASK]",), num_predictions=2)


def test_results_are_written_and_found_again(tmp_path, exported, samples):
    manifest = evaluate_model(CONFIG, exported, samples, tmp_path / "evaluate", seed=0)
    mlm = json.loads((tmp_path / "evaluate" / "mlm.json").read_text())
    assert mlm["mlm_loss"] == manifest.statistics["mlm_loss"]
    assert mlm["baselines"]["most_frequent_token_text"].startswith("word")
    assert json.loads((tmp_path / "evaluate" / "predictions.json").read_text())[0]["sentence"] == "word1 [MASK]"
    before = (tmp_path / "evaluate" / "mlm.json").stat().st_mtime_ns
    assert evaluate_model(CONFIG, exported, samples, tmp_path / "evaluate", seed=0) == manifest
    assert (tmp_path / "evaluate" / "mlm.json").stat().st_mtime_ns == before


def test_another_model_makes_the_results_stale(tmp_path, exported, samples):
    evaluate_model(CONFIG, exported, samples, tmp_path / "evaluate", seed=0)
    other = export_model(tiny_model(seed=1), tmp_path / "hf")
    with pytest.raises(StaleArtifactError, match="'hf_model' was rebuilt"):
        evaluate_model(CONFIG, other, samples, tmp_path / "evaluate", seed=0)


@pytest.fixture
def with_tasks(tmp_path):
    """A configuration with a task of one's own, and the file of its records."""
    records = [{"sentence": f"word{i}", "label": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "words.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "my.yaml").write_text(
        "words: {title: t, test: words.json, labels: {a: word1, b: word2}, text: '{sentence}', prompt: 'word3 {label}',"
        " pet: {text: '{sentence} [MASK]'}}"
    )
    tasks = {"data": tmp_path, "tasks": (str(tmp_path / "my.yaml"), "tnews")}
    return CONFIG.model_copy(update=tasks), tmp_path / "words.json"


def test_zero_shot_tasks_are_part_of_the_results_even_if_one_fails(tmp_path, exported, samples, with_tasks):
    manifest = evaluate_model(with_tasks[0], exported, samples, tmp_path / "evaluate", seed=0)
    assert evaluate_model(with_tasks[0], exported, samples, tmp_path / "evaluate", seed=0) == manifest
    words, tnews = json.loads((tmp_path / "evaluate" / "zero_shot.json").read_text())["tasks"]
    assert [score["method"] for score in words["scores"]] == ["nsp", "pet"]
    assert "test_public.json: cannot be read" in tnews["failures"][0]["error"]


def test_other_records_make_the_results_stale(tmp_path, exported, samples, with_tasks):
    config, records = with_tasks
    evaluate_model(config, exported, samples, tmp_path / "evaluate", seed=0)
    records.write_text(records.read_text() + '{"sentence": "word9", "label": "a"}\n')
    with pytest.raises(StaleArtifactError, match=r"words\.json was added, removed or changed"):
        evaluate_model(config, exported, samples, tmp_path / "evaluate", seed=0)


def test_sets_of_sentence_pairs_are_part_of_the_results_and_their_files_of_what_they_are_made_from(
    tmp_path, exported, samples
):
    pairs = tmp_path / "sets" / "own" / "test.jsonl.gz"
    pairs.parent.mkdir(parents=True)

    def write(count: int) -> None:
        records = [{"text_a": f"word{i} word1", "text_b": f"word{i} word2", "score": i} for i in range(count)]
        pairs.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))

    write(6)
    config = CONFIG.model_copy(update={"sts_data": tmp_path / "sets", "sts_sets": ("own",)})
    evaluate_model(config, exported, samples, tmp_path / "evaluate", seed=0)
    [own] = json.loads((tmp_path / "evaluate" / "sts.json").read_text())["sets"]
    assert (own["name"], own["pairs"]) == ("own", 6)
    write(7)
    with pytest.raises(StaleArtifactError, match=r"test\.jsonl\.gz was added, removed or changed"):
        evaluate_model(config, exported, samples, tmp_path / "evaluate", seed=0)


def test_an_unknown_task_is_refused_before_anything_is_scored(tmp_path, exported, samples):
    config = CONFIG.model_copy(update={"data": tmp_path, "tasks": ("tnew",)})
    with pytest.raises(ConfigError, match="no task 'tnew'"):
        evaluate_model(config, exported, samples, tmp_path / "evaluate", seed=0)
    assert not (tmp_path / "evaluate").exists()


def test_sentence_without_a_mask_is_refused_by_the_configuration():
    with pytest.raises(ConfigError, match="holds no"):
        EvaluateConfig.parse({"masked_sentences": ["nothing hidden"]}, where="run.yaml")


def test_default_sentences_have_one_mask_each():
    assert [sentence.count("[MASK]") for sentence in EvaluateConfig().masked_sentences] == [1, 1, 1]
