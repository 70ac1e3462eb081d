"""transformers' own tools on an exported folder, in a process where kexue_train cannot be imported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kexue_train.export.export_hf import export_hf

pytestmark = pytest.mark.slow

_ELSEWHERE = """
import json, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = json.loads(sys.argv[2])
import importlib.util, warnings
assert importlib.util.find_spec("kexue_train") is None, "kexue_train can be imported here"
import torch
from transformers import (AutoModel, AutoModelForMaskedLM, AutoModelForMultipleChoice, AutoModelForQuestionAnswering,
                          AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, pipeline)
folder, trust = sys.argv[1], {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "The harbour was quiet that [MASK]."
"""


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "hf"
    export_hf(checkpoint, out)
    return out


@pytest.fixture
def elsewhere(exported: Path, tmp_path: Path):
    """Run Python there; it must end well."""

    def run(program: str) -> None:
        # The packages of this process, without this repository and without its copies of modelling code.
        ours = ("kexue_train", "transformers_modules")
        paths = [path for path in sys.path if path and not any((Path(path) / name).is_dir() for name in ours)]
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
        command = [sys.executable, "-I", "-c", _ELSEWHERE + program, str(exported), json.dumps(paths)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


def need(*packages: str) -> None:
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}, no dependency of this project")


def test_pipelines_compute_what_the_models_do(elsewhere):
    elsewhere("""
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    masked = AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()
    at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = masked(**inputs).logits[0, at].softmax(-1).topk(5)
    found = pipeline("fill-mask", model=folder, **trust)(text)
    assert [answer["token"] for answer in found] == best.indices.tolist(), found
    assert max(abs(a["score"] - p) for a, p in zip(found, best.values.tolist())) < 1e-6

    features = pipeline("feature-extraction", model=folder, **trust)(text, return_tensors=True)
    encoder = AutoModel.from_pretrained(folder, **trust).eval()
    torch.testing.assert_close(features, encoder(**inputs).last_hidden_state, atol=1e-5, rtol=0)

    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust).eval()
    scores = pipeline("text-classification", model=classifier, tokenizer=tokenizer)([text, "A"], top_k=None)
    expected = classifier(**tokenizer([text, "A"], return_tensors="pt", padding=True)).logits.softmax(-1)
    for row, given in zip(expected, scores):
        by_label = [{s["label"]: s["score"] for s in given}[f"LABEL_{label}"] for label in range(3)]
        torch.testing.assert_close(row, torch.tensor(by_label), atol=1e-5, rtol=0)

    pipeline("token-classification", model=AutoModelForTokenClassification.from_pretrained(folder, **trust),
             tokenizer=tokenizer)(text)
    pipeline("text-classification", model=folder, **trust)(text)
    AutoModelForQuestionAnswering.from_pretrained(folder, **trust)(**inputs)
    AutoModelForMultipleChoice.from_pretrained(folder, **trust)(**{k: v[:, None] for k, v in inputs.items()})
""")


def test_what_is_saved_again_still_opens_alone(elsewhere):
    elsewhere("""
from pathlib import Path
classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust).eval()
classifier.save_pretrained("again"), tokenizer.save_pretrained("again")
assert (Path("again") / "modeling_roformer_v2.py").exists()
loaded = AutoModelForSequenceClassification.from_pretrained("./again", **trust).eval()
inputs = tokenizer(text, return_tensors="pt")
assert torch.equal(loaded(**inputs).logits, classifier(**inputs).logits)
""")


def test_trainer_takes_two_steps(elsewhere):
    need("accelerate")
    elsewhere("""
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
model = AutoModelForMaskedLM.from_pretrained(folder, **trust)
rows = [{**tokenizer("The harbour was quiet that morning. " * (1 + i % 3))} for i in range(8)]
before = {name: weight.clone() for name, weight in model.named_parameters()}
arguments = TrainingArguments("out", max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                              gradient_checkpointing=True, use_cpu=True, report_to=[], learning_rate=1e-2)
trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer,
                  data_collator=DataCollatorForLanguageModeling(tokenizer))
result = trainer.train()
assert result.global_step == 2 and 0 < result.training_loss < 20, result
assert all(not torch.equal(before[name], weight) for name, weight in model.named_parameters()), "a weight stood still"
trainer.save_model("trained")
loaded = AutoModelForMaskedLM.from_pretrained("./trained", **trust).eval()
inputs = tokenizer(text, return_tensors="pt")
assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
""")


_EXPORTABLE = """
warnings.simplefilter("ignore")
model = AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()
short, long = (tokenizer([text, text * times], return_tensors="pt", padding=True) for times in (2, 3))
batch, slots = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("slots", min=2, max=512)
names = ["input_ids", "attention_mask", "token_type_ids"]
shapes = {name: {0: batch, 1: slots} for name in names}
arguments = {name: short[name] for name in names}
one = tokenizer(text, return_tensors="pt")
"""


def test_torch_export_gives_the_same_numbers_for_other_shapes(elsewhere):
    elsewhere(f"""{_EXPORTABLE}
program = torch.export.export(model, (), kwargs=arguments, dynamic_shapes=shapes).module()
for inputs in (short, long, one):
    inputs = {{name: inputs[name] for name in names}}
    torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
""")


def test_onnx_gives_the_same_numbers_for_other_shapes(elsewhere):
    need("onnx", "onnxscript", "onnxruntime")
    elsewhere(f"""{_EXPORTABLE}
import onnxruntime
torch.onnx.export(model, (), "model.onnx", kwargs=arguments, dynamic_shapes=shapes, dynamo=True, input_names=names,
                  output_names=["logits"])
session = onnxruntime.InferenceSession("model.onnx")
for inputs in (short, long, one):
    logits = session.run(["logits"], {{name: inputs[name].numpy() for name in names}})[0]
    torch.testing.assert_close(torch.from_numpy(logits), model(**inputs).logits, atol=1e-5, rtol=0)
""")
