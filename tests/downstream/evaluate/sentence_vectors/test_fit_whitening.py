"""An encoder with its whitening, made by one worker or several, and read by the rules of sentence-transformers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from kexue_train.cli.app import app
from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.evaluate.sentence_vectors.fit_whitening import fit_whitening
from kexue_train.downstream.evaluate.sentence_vectors.score_set import choose_whitening
from kexue_train.downstream.evaluate.sentence_vectors.whitening import WHITENING_NAME, Whitening
from kexue_train.downstream.load_model import load_encoder
from kexue_train.downstream.settings import POOLINGS, Pooling
from kexue_train.foundation.artifacts import verify_artifact
from kexue_train.foundation.errors import ConfigError, EvaluationError, StaleArtifactError
from tests.downstream.evaluate.sentence_vectors.oracles import make_records, write_set
from tests.downstream.evaluate.zero_shot.tiny_models import export_roformer, make_bert

TEXTS = [str(record["text_a"]) for record in make_records(90)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"roformer": export_roformer(root / "roformer"), "bert": make_bert(root / "bert", "BertModel")}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "all.txt").write_text("\n".join(TEXTS) + "\n\n")
    (tmp_path / "half.txt").write_text("\n".join(TEXTS[:40]))
    (tmp_path / "rest.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS[40:]).encode()))
    return tmp_path


def read_as_sentence_transformers(folder: Path, sentences: list[str]) -> np.ndarray:
    """What the modules of ``modules.json`` make of sentences, from the documented meaning of their files."""
    loaded = load_encoder(folder)
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    features = loaded.tokenizer(
        sentences, padding=True, truncation=True, max_length=settings["max_seq_length"], return_tensors="pt"
    )
    with torch.no_grad():
        output = loaded.model(**features)
    tokens, mask = output.last_hidden_state, features["attention_mask"][..., None]
    vectors = tokens[:, 0]
    for module in json.loads((folder / "modules.json").read_text())[1:]:
        config = json.loads((folder / module["path"] / "config.json").read_text())
        weights_file = folder / module["path"] / "model.safetensors"
        tensors = load_file(weights_file) if weights_file.exists() else {}
        match module["type"]:
            case "sentence_transformers.models.WeightedLayerPooling":
                layers = torch.stack(output.hidden_states)[config["layer_start"] :]  # the configuration asks for them
                weights = tensors["layer_weights"]
                tokens = (weights[:, None, None, None] * layers).sum(0) / weights.sum()
            case "sentence_transformers.models.Pooling":
                assert [key for key, value in config.items() if value is True] == [
                    "pooling_mode_cls_token" if config["pooling_mode_cls_token"] else "pooling_mode_mean_tokens"
                ]
                mean = (tokens * mask).sum(1) / mask.sum(1)
                vectors = tokens[:, 0] if config["pooling_mode_cls_token"] else mean
            case "sentence_transformers.models.Dense":
                assert config["activation_function"] == "torch.nn.modules.linear.Identity"
                assert tensors["linear.weight"].shape == (config["out_features"], config["in_features"])
                vectors = vectors @ tensors["linear.weight"].T + tensors["linear.bias"]
            case other:
                raise AssertionError(other)
    return vectors.numpy()


@pytest.mark.parametrize("model", ["roformer", "bert"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_folder_gives_the_whitened_vectors(
    models: dict[str, Path], texts: Path, tmp_path: Path, model: str, pooling: Pooling
) -> None:
    out = tmp_path / "encoder"
    manifest = fit_whitening(models[model], [texts / "all.txt"], out, pooling=pooling, dimensions=5, max_length=12)
    assert manifest.statistics == {"sentences": 90, "dimensions": 5}
    verify_artifact(out)
    loaded = load_encoder(models[model])
    vectors = encode_sentences(loaded, Sentences.read(loaded.tokenizer, TEXTS, 12), [pooling])[pooling]
    white = Whitening.load(out / "whitening.safetensors")[0].apply(vectors)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(5), atol=1e-6)
    np.testing.assert_allclose(read_as_sentence_transformers(out, TEXTS), white, atol=2e-4)


def test_sentence_transformers_itself_agrees(models: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is no dependency")
    fit_whitening(models["bert"], [texts / "all.txt"], tmp_path / "encoder", pooling="first-last")
    model = package.SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    found = read_as_sentence_transformers(tmp_path / "encoder", TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), found, atol=2e-4)


def test_shares_of_the_sentences_merge_to_the_whitening_of_all(
    models: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    bert = models["bert"]
    fit_whitening(bert, [texts / "all.txt"], tmp_path / "whole")
    fit_whitening(bert, [texts / "half.txt"], tmp_path / "first")
    manifest = fit_whitening(bert, [tmp_path / "first", texts / "rest.txt.gz"], tmp_path / "merged")
    assert manifest.statistics["sentences"] == 90
    whole, merged = (Whitening.load(tmp_path / name / "whitening.safetensors")[0] for name in ("whole", "merged"))
    some = np.random.default_rng(0).normal(size=(7, 16))
    first, second = whole.apply(some), merged.apply(some)
    np.testing.assert_allclose(first @ first.T, second @ second.T, rtol=1e-4)


def test_what_does_not_fit_together_is_refused(models: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    made = fit_whitening(models["bert"], [texts / "half.txt"], done)
    assert fit_whitening(models["bert"], [texts / "half.txt"], done) == made
    with pytest.raises(StaleArtifactError, match="pooling changed"):
        fit_whitening(models["bert"], [texts / "half.txt"], done, pooling="cls")
    with pytest.raises(EvaluationError, match="but with another pooling"):
        fit_whitening(models["bert"], [done], tmp_path / "new", pooling="cls")
    with pytest.raises(EvaluationError, match="but with another model"):
        fit_whitening(models["roformer"], [done], tmp_path / "new")
    (texts / "none.txt").write_text("\n \n")
    with pytest.raises(EvaluationError, match="no vectors"):
        fit_whitening(models["bert"], [texts / "none.txt"], tmp_path / "new")
    (texts / "latin.txt").write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(EvaluationError, match=r"latin\.txt: cannot be read as UTF-8"):
        fit_whitening(models["bert"], [texts / "latin.txt"], tmp_path / "new")
    with pytest.raises(EvaluationError, match=r"absent\.txt: No such file"):
        fit_whitening(models["bert"], [texts / "absent.txt"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_commands_work_together(models: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    bert, out, white = str(models["bert"]), str(tmp_path / "sts.json"), str(tmp_path / "white")
    ended = CliRunner().invoke(app, ["finetune", "whitening", bert, str(texts / "all.txt"), "-o", white])
    assert ended.exit_code == 0, ended.output
    write_set(tmp_path / "data" / "mine", make_records())
    common = ["evaluate", "sts", bert, str(tmp_path / "data"), "--set", "mine", "-o", out]
    ended = CliRunner().invoke(app, [*common, "--whitening", white])
    assert ended.exit_code == 0, ended.output
    scores = json.loads(Path(out).read_text())["sets"][0]["scores"]
    assert [(s["pooling"], s["whitening"]) for s in scores] == [
        ("cls", "none"), ("mean", "none"), ("first-last", "none"), ("first-last", "given"),
    ]  # fmt: skip
    ended = CliRunner().invoke(app, [*common, "--whitening", "3", "--pooling", "mean"])
    assert [row.split()[0] for row in ended.stdout.splitlines() if row.startswith("mine")] == ["mine"]
    assert json.loads(Path(out).read_text())["sets"][0]["scores"][1]["dimensions"] == 3
    write_set(tmp_path / "data" / "mine", [])
    assert CliRunner().invoke(app, common).exit_code == 1


def test_choices_in_words() -> None:
    assert (choose_whitening("none").kind, choose_whitening("all").kind) == ("none", "own")
    assert choose_whitening("256").dimensions == 256
    with pytest.raises(ConfigError, match="--whitening '0' is not a folder"):
        choose_whitening("0")


def test_a_whitening_of_an_unknown_pooling_is_refused(tmp_path: Path) -> None:
    whitening = Whitening(np.zeros(2), np.eye(2))
    whitening.save(tmp_path / WHITENING_NAME, pooling="max")
    with pytest.raises(EvaluationError, match="the pooling 'max', which is not one of cls, mean, first-last"):
        choose_whitening(str(tmp_path))


def test_a_pooling_counts_once_and_an_unknown_one_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    write_set(tmp_path / "data" / "mine", make_records())
    common = [
        "evaluate",
        "sts",
        str(models["bert"]),
        str(tmp_path / "data"),
        "--set",
        "mine",
        "-o",
        str(tmp_path / "sts.json"),
    ]
    options = ["--whitening", "none", "--pooling", "mean", "--pooling", "cls", "--pooling", "mean"]
    assert CliRunner().invoke(app, [*common, *options]).exit_code == 0
    scores = json.loads((tmp_path / "sts.json").read_text())["sets"][0]["scores"]
    assert [score["pooling"] for score in scores] == ["mean", "cls"]
    ended = CliRunner().invoke(app, [*common, "--pooling", "max"])
    assert isinstance(ended.exception, ConfigError)
    assert "'cls', 'mean' or 'first-last'" in str(ended.exception)
