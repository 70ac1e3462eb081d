"""Published weights come in unchanged, in both forms, and nothing that does not fit is let through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer, BertTokenizer

from kexue_train.downstream.load_model import load_model
from kexue_train.export.import_weights import import_weights
from kexue_train.foundation.artifacts import verify_artifact
from kexue_train.foundation.errors import ArtifactError, StaleArtifactError
from kexue_train.model import RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining
from tests.reference.tensorflow_writer import write_checkpoint

SIZES = {"vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好我们abcdefghij0123456789", "##ing", "walk"]
VOCABULARY = [*PIECES, *(f"[unused{number}]" for number in range(60 - len(PIECES)))]
TABLES = ("word_embeddings", "token_type_embeddings")


@pytest.fixture(scope="module")
def kernels() -> dict[str, np.ndarray]:
    """A model as TensorFlow holds it: the published names, kernels [in, out]."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) * 0.2).astype(np.float32)

    values = {"bert/embeddings/word_embeddings": draw(60, 48), "bert/embeddings/token_type_embeddings": draw(2, 48)}
    for layer in range(2):
        at = f"bert/encoder/layer_{layer}"
        values |= {f"{at}/attention/self/{name}/kernel": draw(48, 48) for name in ("query", "key", "value")}
        values[f"{at}/attention/output/dense/kernel"] = draw(48, 48)
        values |= {f"{at}/intermediate/dense/kernel": draw(48, 80), f"{at}/output/dense/kernel": draw(80, 48)}
    return values


def in_pytorch(kernels: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same under JunnYu's names, written out by hand from its module tree."""
    weights = {}
    for table in TABLES:
        weights[f"roformer.embeddings.{table}.weight"] = torch.from_numpy(kernels[f"bert/embeddings/{table}"])
    for layer in range(2):
        for ours, theirs in [
            ("attention.self.query", "attention/self/query"),
            ("attention.self.key", "attention/self/key"),
            ("attention.self.value", "attention/self/value"),
            ("attention.output.dense", "attention/output/dense"),
            ("intermediate.dense", "intermediate/dense"),
            ("output.dense", "output/dense"),
        ]:
            kernel = kernels[f"bert/encoder/layer_{layer}/{theirs}/kernel"]
            weights[f"roformer.encoder.layer.{layer}.{ours}.weight"] = torch.from_numpy(kernel.T.copy())
    return weights


def write_vocabulary(folder: Path, pieces: list[str] = VOCABULARY) -> None:
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")


@pytest.fixture
def tensorflow_folder(kernels, tmp_path) -> Path:
    """A folder as published for bert4keras."""
    folder = tmp_path / "chinese_roformer-v2-char"
    folder.mkdir()
    config = SIZES | {"hidden_act": "relu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config |= {"type_vocab_size": 2, "max_position_embeddings": 512, "initializer_range": 0.02}
    (folder / "bert_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_checkpoint(folder / "bert_model.ckpt", kernels, block_bytes=200)
    write_vocabulary(folder)
    return folder


@pytest.fixture
def pytorch_folder(kernels, tmp_path) -> Path:
    """A folder as JunnYu's package writes it: a table of sines and the word head beside the weights."""
    folder = tmp_path / "roformer_v2_chinese_char"
    folder.mkdir()
    config = {"model_type": "roformer", "norm_type": "rms_norm", "use_bias": False, "rotary_value": False}
    config |= SIZES | {"embedding_size": 48, "use_cache": True, "pooler_activation": "linear", "layer_norm_eps": 1e-12}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = in_pytorch(kernels)
    weights["roformer.encoder.embed_positions.weight"] = torch.randn(512, 12)
    weights["cls.predictions.decoder.weight"] = weights["roformer.embeddings.word_embeddings.weight"].clone()
    torch.save(weights, folder / "pytorch_model.bin")
    write_vocabulary(folder)
    return folder


@pytest.fixture(params=["tensorflow", "pytorch"])
def folder(request) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


def test_every_weight_arrives_in_its_place(folder, kernels, tmp_path):
    manifest = import_weights(folder, tmp_path / "hf")
    assert verify_artifact(tmp_path / "hf") == manifest
    written = load_file(tmp_path / "hf" / "model.safetensors")
    expected = in_pytorch(kernels)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert manifest.statistics == {"parameters": sum(w.numel() for w in expected.values()), "has_nsp_head": False}


def test_both_forms_give_the_same_model(tensorflow_folder, pytorch_folder, tmp_path):
    for name, source in (("a", tensorflow_folder), ("b", pytorch_folder)):
        import_weights(source, tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_the_result_opens_with_transformers_alone(folder, tmp_path):
    import_weights(folder, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    inputs = tokenizer("今天[MASK]很好", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 4, 8, 9, 3]]
    direct = RoFormerV2ForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    assert torch.equal(model(**inputs).logits, direct(**inputs).logits)
    assert "No next-sentence head" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_a_model_with_a_pair_head_gets_a_fresh_one_and_evaluation_knows(folder, tmp_path):
    import_weights(folder, tmp_path / "hf")
    _, info = AutoModelForPreTraining.from_pretrained(tmp_path / "hf", trust_remote_code=True, output_loading_info=True)
    assert set(info["missing_keys"]) == {f"cls.next_sentence.{name}.weight" for name in ("dense", "classifier")}
    assert not load_model(tmp_path / "hf").has_nsp_head


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")  # transformers 5.8 builds its BertTokenizer so
def test_the_vocabulary_is_berts(folder, tmp_path):
    import_weights(folder, tmp_path / "hf")
    ours, berts = AutoTokenizer.from_pretrained(tmp_path / "hf"), BertTokenizer(str(folder / "vocab.txt"))
    for text in ("今天天气Walking很好!", "ÁB  cd\t[MASK]e zzz", "", "我们", "walkinging 12 a-b"):
        assert ours(text)["input_ids"] == berts(text)["input_ids"]
    assert ours("今", "天")["token_type_ids"] == [0, 0, 0, 1, 1]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    import_weights(folder, tmp_path / "cased")
    assert AutoTokenizer.from_pretrained(tmp_path / "cased")("A")["input_ids"] == [2, 1, 3]


def test_an_own_export_comes_in_with_its_pair_head(kernels, pytorch_folder, tmp_path):
    config = RoFormerV2ForMaskedLM.from_pretrained(pytorch_folder).config
    model = RoFormerV2ForPreTraining(config)
    shutil.rmtree(pytorch_folder)
    model.save_pretrained(pytorch_folder)
    assert import_weights(pytorch_folder, tmp_path / "hf").statistics["has_nsp_head"]
    loaded = RoFormerV2ForPreTraining.from_pretrained(tmp_path / "hf")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("act", ["gelu", "silu", "sigmoid", "tanh", "linear"])
def test_every_activation_of_the_model_comes_in(folder, kernels, tmp_path, act):
    path = next(folder.glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": act}), encoding="utf-8")
    import_weights(folder, tmp_path / "hf")
    assert RoFormerV2ForMaskedLM.from_pretrained(tmp_path / "hf").config.hidden_act == act
    written = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(written[name], weight) for name, weight in in_pytorch(kernels).items())


def test_gated_layers_come_in(folder, kernels, tmp_path):
    path = next(folder.glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": ["gelu", "linear"]}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"intermediate.dense_2\S* \[(48, 80|80, 48)\] is missing"):
        import_weights(folder, tmp_path / "hf")
    second = {
        f"bert/encoder/layer_{layer}/intermediate/dense_2/kernel": np.ones((48, 80), np.float32) for layer in (0, 1)
    }
    if path.name == "bert_config.json":
        write_checkpoint(folder / "bert_model.ckpt", kernels | second)
    else:
        names = [f"roformer.encoder.layer.{layer}.intermediate.dense_2.weight" for layer in (0, 1)]
        torch.save(in_pytorch(kernels) | {name: torch.ones(80, 48) for name in names}, folder / "pytorch_model.bin")
    import_weights(folder, tmp_path / "hf")
    model = RoFormerV2ForMaskedLM.from_pretrained(tmp_path / "hf")
    assert all(layer.intermediate.dense_2.weight.eq(1).all() for layer in model.roformer.encoder.layer)


def test_the_tokenizer_of_imported_weights_cuts_texts_to_what_the_model_takes(folder, tmp_path):
    import_weights(folder, tmp_path / "hf")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")("我们" * 900, truncation=True)["input_ids"]) == 512


def test_without_a_vocabulary_there_is_no_tokenizer(folder, tmp_path):
    (folder / "vocab.txt").unlink()
    import_weights(folder, tmp_path / "hf")
    assert not list((tmp_path / "hf").glob("*token*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("bert/encoder/layer_1/output/dense/kernel"),
         r"bert/encoder/layer_1/output/dense/kernel \[80, 48\] is missing"),
        (lambda w: w.update({"bert/embeddings/LayerNorm/gamma": np.ones(48, np.float32)}),
         r"bert/embeddings/LayerNorm/gamma \[48\] has no place in it"),
        (lambda w: w.update({"bert/encoder/layer_2/output/dense/kernel": np.ones((80, 48), np.float32)}),
         r"bert/encoder/layer_2/output/dense/kernel \[80, 48\] has no place in it"),
        (lambda w: w.update({"bert/encoder/layer_0/intermediate/dense/kernel": np.ones((80, 48), np.float32)}),
         r"bert/encoder/layer_0/intermediate/dense/kernel has shape \[80, 48\] where \[48, 80\] is needed"),
        (lambda w: w.update({"bert/embeddings/word_embeddings": np.ones((59, 48), np.float32)}),
         r"bert/embeddings/word_embeddings has shape \[59, 48\] where \[60, 48\] is needed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_tensorflow_checkpoint_is_named(kernels, tensorflow_folder, tmp_path, change, message):
    weights = dict(kernels)
    change(weights)
    write_checkpoint(tensorflow_folder / "bert_model.ckpt", weights)
    with pytest.raises(ArtifactError, match=rf"bert_model\.ckpt\.index: not the weights.*{message}.*bert_config\.json"):
        import_weights(tensorflow_folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("roformer.encoder.layer.1.output.dense.weight"),
         r"roformer.encoder.layer.1.output.dense.weight \[48, 80\] is missing"),
        (lambda w: w.update({"cls.predictions.bias": torch.ones(60)}), r"cls.predictions.bias \[60\] has no place"),
        (lambda w: w.update({"roformer.encoder.layer.0.intermediate.dense.weight": torch.ones(48, 80)}),
         r"layer.0.intermediate.dense.weight has shape \[48, 80\] where \[80, 48\] is needed"),
        (lambda w: w.update({"cls.predictions.decoder.weight": torch.ones(60, 48)}), "is not the word table"),
        (lambda w: w.update({"cls.next_sentence.dense.weight": torch.ones(48, 48)}),
         r"cls.next_sentence.classifier.weight \[2, 48\] is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_what_does_not_fit_a_pytorch_file_is_named(kernels, pytorch_folder, tmp_path, change, message, file):
    weights = in_pytorch(kernels)
    change(weights)
    (pytorch_folder / "pytorch_model.bin").unlink()
    (save_file if "safe" in file else torch.save)(weights, pytorch_folder / file)
    with pytest.raises(ArtifactError, match=rf"{file}: .*{message}"):
        import_weights(pytorch_folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embedding_size": 24}, "embedding_size=24: this model has embedding_size=48 only"),
        ({"use_bias": True}, "version 1, with layer norms and biases|use_bias=True"),
        ({"hidden_act": "swish"}, "hidden_act='swish'"),
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(folder, tmp_path, values, message):
    path = next(folder.glob("*config.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"config\.json: not the configuration .*({message})"):
        import_weights(folder, tmp_path / "hf")


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (VOCABULARY[:-1], "59 pieces, but vocab_size=60"),
        ([*VOCABULARY[:-1], "walk"], "'walk' is also in line"),
        ([piece if piece != "[MASK]" else "x" for piece in VOCABULARY], r"lacks \[MASK\]"),
        ([VOCABULARY[1], VOCABULARY[0], *VOCABULARY[2:]], r"\[PAD\] has id 1; it must be 0"),
    ],
)
def test_a_vocabulary_that_is_not_the_models_is_refused(folder, tmp_path, pieces, message):
    write_vocabulary(folder, pieces)
    with pytest.raises(ArtifactError, match=rf"vocab\.txt\S* .*{message}.*give the model's own file"):
        import_weights(folder, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_folder_without_weights_or_configuration_says_what_is_needed(folder, tmp_path):
    with pytest.raises(
        ArtifactError, match=r"holds no weights; give a folder with config\.json and model\.safetensors"
    ):
        import_weights(tmp_path, tmp_path / "hf")
    next(folder.glob("*config.json")).unlink()
    with pytest.raises(ArtifactError, match=r"holds no .*config\.json, which gives the size of the model"):
        import_weights(folder, tmp_path / "hf")


def test_two_checkpoints_in_a_folder_are_one_too_many(kernels, tensorflow_folder, tmp_path):
    write_checkpoint(tensorflow_folder / "other.ckpt", kernels)
    with pytest.raises(ArtifactError, match=r"several TensorFlow checkpoints \(bert_model\.ckpt\.index, other"):
        import_weights(tensorflow_folder, tmp_path / "hf")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_damaged_file_is_named(pytorch_folder, tmp_path, file):
    (pytorch_folder / "pytorch_model.bin").unlink()
    (pytorch_folder / file).write_bytes(b"no weights at all")
    with pytest.raises(ArtifactError, match=rf"{file}: cannot be read as weights"):
        import_weights(pytorch_folder, tmp_path / "hf")


def test_importing_again_does_nothing_and_other_weights_need_replace(folder, kernels, tmp_path, monkeypatch):
    first = import_weights(folder, tmp_path / "hf")
    with monkeypatch.context() as patched:
        patched.setattr("kexue_train.export.import_weights.open_partial", None)
        assert import_weights(folder, tmp_path / "hf") == first
    write_vocabulary(folder, [*VOCABULARY[:-1], "another"])
    with pytest.raises(StaleArtifactError, match=r"vocab\.txt was added, removed or changed"):
        import_weights(folder, tmp_path / "hf")
    import_weights(folder, tmp_path / "hf", replace=True)
    assert "another" in (tmp_path / "hf" / "vocab.txt").read_text(encoding="utf-8")


def test_golden_numbers_of_another_implementation_in_and_out(repository, tmp_path):
    """Made by JunnYu/RoFormer_pytorch. In: the same logits. Out: its names, bits and configuration again."""
    golden = repository.parent / "shared" / "golden" / "roformer_v2"
    if not golden.is_dir():
        pytest.skip("needs ../shared/golden/roformer_v2 beside the repository")
    source = tmp_path / "published"
    source.mkdir()
    shutil.copy(golden / "golden_a.config.json", source / "config.json")
    shutil.copy(golden / "golden_a.weights.safetensors", source / "model.safetensors")
    import_weights(source, tmp_path / "hf")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf", trust_remote_code=True).eval()
    expected = load_file(golden / "golden_a.io.safetensors")
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(output.hidden_states[-1][real], expected["last_hidden_state"][real], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits[real], expected["logits"][real], atol=1e-5, rtol=0)
    theirs = load_file(golden / "golden_a.weights.safetensors")
    written = load_file(tmp_path / "hf" / "model.safetensors")
    # Its table of sines is computed, its word head is tied.
    assert theirs.keys() - written.keys() == {
        "roformer.encoder.embed_positions.weight",
        "cls.predictions.decoder.weight",
    }
    assert all(torch.equal(written[name], theirs[name]) for name in written)
    given = json.loads((golden / "golden_a.config.json").read_text(encoding="utf-8"))
    ours = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8"))
    sizes = [*SIZES, "embedding_size", "hidden_act", "norm_type", "use_bias", "rotary_value", "layer_norm_eps"]
    assert {key: ours[key] for key in sizes} == {key: given[key] for key in sizes}
