import json

import pytest

from kexue_train.errors import ConfigError, StaleArtifactError
from kexue_train.evaluate.config import EvaluateConfig
from kexue_train.evaluate.evaluate_model import evaluate_model
from tests.evaluate.tiny_artifacts import export_model, tiny_model

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
    with pytest.raises(StaleArtifactError, match="'hf_model' was made anew"):
        evaluate_model(CONFIG, other, samples, tmp_path / "evaluate", seed=0)


def test_sentence_without_a_mask_is_refused_by_the_configuration():
    with pytest.raises(ConfigError, match="holds no"):
        EvaluateConfig.parse({"masked_sentences": ["nothing hidden"]}, where="run.yaml")


def test_default_sentences_have_one_mask_each():
    assert [sentence.count("[MASK]") for sentence in EvaluateConfig().masked_sentences] == [1, 1, 1]
