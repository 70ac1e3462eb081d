"""The exported folder: checked before it is there, loadable by anyone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from kexue_train.export import export_hf as module
from kexue_train.export.export_hf import compare_logits, export_hf
from kexue_train.foundation.artifacts import verify_artifact
from kexue_train.foundation.errors import ArtifactError, StaleArtifactError
from tests.train.tiny_training import make_checkpoint, make_model


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "hf"
    export_hf(checkpoint, out)
    return out


def test_the_export_is_whole_and_says_what_it_is(exported, checkpoint):
    manifest = verify_artifact(exported)
    assert (manifest.kind, manifest.statistics["steps"]) == ("hf_model", 6)
    assert manifest.statistics["max_logit_difference"] <= 1e-6
    assert (exported / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert {"tokenizer.json", "modeling_roformer_v2.py", "config.json"} <= manifest.files.keys()
    assert not {"optimizer.safetensors", "trainer_state.json"} & manifest.files.keys()


def test_the_model_card_tells_the_training(exported):
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in (
        "1 layers, hidden size 32",
        "6 steps of 8 rows",
        "lr 0.002",
        "| seed | 7 |",
        "1 · 32 · 2 · 48",
        "160 WordPiece units; the word table has 256 rows",
    ):
        assert text in card


def test_the_tokenizer_cuts_texts_to_what_the_model_takes(exported, checkpoint, samples):
    for folder in (exported, checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert len(tokenizer("汉字" * 5000, truncation=True)["input_ids"]) == 32
        assert len(tokenizer("汉字" * 5000, "汉字", truncation="only_first", padding="max_length")["input_ids"]) == 32
    before, after = (
        json.loads((folder / "tokenizer_config.json").read_text()) for folder in (samples / "tokenizer", exported)
    )
    assert after == before | {"model_max_length": 32}


def test_no_row_of_the_table_that_is_no_token_is_an_answer(exported, checkpoint):
    for folder in (exported, checkpoint):
        fill = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), trust_remote_code=True, top_k=160)
        assert sorted(answer["token"] for answer in fill("The [MASK] was quiet.")) == list(range(160))


def test_a_checkpoint_of_an_older_version_is_exported_with_its_number_of_tokens(exported, checkpoint, tmp_path):
    old = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    config = json.loads((old / "config.json").read_text(encoding="utf-8"))
    del config["num_tokens"]
    (old / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert module._read_model(old).config.num_tokens == 160
    assert AutoModelForMaskedLM.from_pretrained(old, trust_remote_code=True).config.num_tokens is None


def test_every_class_opens_the_folder_without_a_word_about_the_heads_of_others(exported):
    for auto in (AutoModel, AutoModelForPreTraining, AutoModelForMaskedLM, AutoModelForNextSentencePrediction):
        _, info = auto.from_pretrained(exported, trust_remote_code=True, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_folder_with_the_head_of_a_task_opens_as_every_other_class(exported, tmp_path):
    trust = {"trust_remote_code": True}
    for task in (AutoModelForSequenceClassification, AutoModelForQuestionAnswering):
        task.from_pretrained(exported, **trust).save_pretrained(tmp_path / task.__name__)
        for auto in (AutoModel, AutoModelForMaskedLM):
            _, info = auto.from_pretrained(tmp_path / task.__name__, output_loading_info=True, **trust)
            assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_card_that_people_changed_is_no_other_model(exported, checkpoint, tmp_path):
    out = shutil.copytree(exported, tmp_path / "hf")
    (out / "README.md").write_text("---\nlicense: mit\n---\n# Ours\n", encoding="utf-8")
    assert verify_artifact(out) == verify_artifact(exported)
    export_hf(checkpoint, out)
    assert "# Ours" in (out / "README.md").read_text(encoding="utf-8")


def test_exporting_again_does_nothing_and_anew_gives_the_same_bytes(exported, checkpoint, tmp_path, monkeypatch):
    export_hf(checkpoint, tmp_path / "hf")
    assert (tmp_path / "hf" / "manifest.json").read_bytes() == (exported / "manifest.json").read_bytes()
    monkeypatch.setattr(module, "open_partial", None)
    export_hf(checkpoint, exported)


def test_a_corrupted_weight_is_noticed_and_nothing_published(checkpoint, tmp_path, monkeypatch):
    write = module.write_hf_folder

    def corrupt(model, folder, tokenizer):
        weight = model.roformer.encoder.layer[0].attention.output.dense.weight
        before = weight.detach().clone()
        weight.data[0, 0] += 1
        write(model, folder, tokenizer)
        weight.data.copy_(before)

    monkeypatch.setattr(module, "write_hf_folder", corrupt)
    with pytest.raises(ArtifactError, match=r"logits differ from the checkpoint's by .* not published"):
        export_hf(checkpoint, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    monkeypatch.undo()
    assert export_hf(checkpoint, tmp_path / "hf").statistics["max_logit_difference"] <= 1e-6


def test_a_weight_that_is_not_a_number_is_noticed(exported, checkpoint, tmp_path):
    model, _ = make_model(verify_artifact(checkpoint) and module._read_model(checkpoint).config.num_tokens, seed=6)
    assert compare_logits(model, exported) <= 1e-6
    model.roformer.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    assert not compare_logits(model, exported) <= module.TOLERANCE


def test_a_damaged_checkpoint_is_refused(checkpoint, tmp_path):
    damaged = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, damaged)
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: checksum"):
        export_hf(damaged, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_another_artifact_is_no_checkpoint(samples, tmp_path):
    with pytest.raises(ArtifactError, match="not a checkpoint"):
        export_hf(samples, tmp_path / "hf")


def test_another_checkpoint_needs_replace(exported, samples, tmp_path):
    out = tmp_path / "hf"
    shutil.copytree(exported, out)
    other = make_checkpoint(tmp_path / "checkpoints", samples, step=7)
    with pytest.raises(StaleArtifactError, match="its input 'checkpoint' was rebuilt"):
        export_hf(other, out)
    assert export_hf(other, out, replace=True).statistics["steps"] == 7


_ELSEWHERE = """
import importlib.util, sys
assert importlib.util.find_spec("kexue_train") is None, "kexue_train can be imported here"
import torch
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("The harbour was quiet that [MASK].", return_tensors="pt")["input_ids"]
with torch.no_grad():
    model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    masked = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    assert torch.equal(model(ids).prediction_logits, masked(ids).logits)
    torch.save((ids, model(ids).prediction_logits), sys.argv[2])
"""


@pytest.mark.slow
def test_the_export_loads_where_kexue_train_is_not_installed(exported, checkpoint, tmp_path):
    # -I ignores PYTHONPATH and the current folder; an editable install is taken off the path by hand.
    hide = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    hide += f"sys.path[:] = [p for p in sys.path if p != {str(Path(module.__file__).parents[2])!r}]\n"
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", hide + _ELSEWHERE, str(exported), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids, logits = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        assert torch.equal(module._read_model(checkpoint).eval()(ids).prediction_logits, logits)
