"""What people use models with, on an exported folder, in processes where kexue_train cannot be imported."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from kexue_train.export.export_hf import export_hf
from tests.export.snippets import Shown, run_on_terminal

pytestmark = pytest.mark.slow


class Client(NamedTuple):
    """A program, and the packages that it needs beside transformers."""

    packages: tuple[str, ...]
    program: str


_ELSEWHERE = """
import sys, warnings
from pathlib import Path
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = {paths}
import importlib.util
assert importlib.util.find_spec("kexue_train") is None, "kexue_train can be imported here"
import huggingface_hub
huggingface_hub.constants.HF_HUB_OFFLINE = True
import os
Path({name!r}).mkdir()
os.chdir({name!r})
import torch
from transformers import (AutoModel, AutoModelForMaskedLM, AutoModelForMultipleChoice, AutoModelForQuestionAnswering,
                          AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer,
                          DataCollatorForLanguageModeling, Trainer, TrainingArguments, default_data_collator, pipeline)
folder, trust = {folder!r}, {{"trust_remote_code": True}}
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
text = "The harbour was quiet that [MASK]."
inputs = tokenizer(text, return_tensors="pt")
torch.manual_seed(0)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)
"""

_CLIENTS = {
    "pipelines compute what the models do": Client(
        (),
        """
with torch.no_grad():
    masked = AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()
    at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    best = masked(**inputs).logits[0, at].softmax(-1).topk(5)
    found = pipeline("fill-mask", model=folder, **trust)(text)
    assert [answer["token"] for answer in found] == best.indices.tolist(), found
    assert max(abs(a["score"] - p) for a, p in zip(found, best.values.tolist())) < 1e-6

    features = pipeline("feature-extraction", model=folder, **trust)(text, return_tensors=True)
    close(features, AutoModel.from_pretrained(folder, **trust).eval()(**inputs).last_hidden_state)

    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust).eval()
    scores = pipeline("text-classification", model=classifier, tokenizer=tokenizer)([text, "A"], top_k=None)
    expected = classifier(**tokenizer([text, "A"], return_tensors="pt", padding=True)).logits.softmax(-1)
    for row, given in zip(expected, scores):
        by_label = [{s["label"]: s["score"] for s in given}[f"LABEL_{label}"] for label in range(3)]
        close(row, torch.tensor(by_label))

    pipeline("token-classification", model=AutoModelForTokenClassification.from_pretrained(folder, **trust),
             tokenizer=tokenizer)(text)
    pipeline("text-classification", model=folder, **trust)(text)
    AutoModelForQuestionAnswering.from_pretrained(folder, **trust)(**inputs)
    AutoModelForMultipleChoice.from_pretrained(folder, **trust)(**{k: v[:, None] for k, v in inputs.items()})
""",
    ),
    "what is saved again still opens alone": Client(
        (),
        """
classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust).eval()
classifier.save_pretrained("again"), tokenizer.save_pretrained("again")
assert Path("again", "modeling_roformer_v2.py").exists()
loaded = AutoModelForSequenceClassification.from_pretrained("./again", **trust).eval()
assert torch.equal(loaded(**inputs).logits, classifier(**inputs).logits)
""",
    ),
    "Trainer goes on with masked words, and after a stop as if there was none": Client(
        ("accelerate",),
        """
blocks = tokenizer("The harbour was quiet that morning. " * 40, add_special_tokens=False)["input_ids"]
rows = [{"input_ids": blocks[i : i + 16]} for i in range(0, len(blocks) - 16, 16)]  # run_mlm's groups of texts


def train(folder_of_model, out, *, stop=6, resume=False):
    model = AutoModelForMaskedLM.from_pretrained(folder_of_model, **trust)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    arguments = TrainingArguments(out, max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
                                  gradient_checkpointing=True, use_cpu=True, report_to=[], learning_rate=1e-2,
                                  lr_scheduler_type="constant", save_steps=3, seed=3, disable_tqdm=True)
    masks = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=5)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer,
                      data_collator=masks)
    first = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=f"{out}/checkpoint-3" if resume else None)
    assert trainer.state.global_step == 6
    assert all(not torch.equal(before[name], weight) for name, weight in model.named_parameters()), "one stood still"
    return trainer, first, trainer.evaluate()["eval_loss"]


trainer, first, last = train(folder, "out")
assert last < first - 0.5, (first, last)
trainer.save_model("trained")
loaded = AutoModelForMaskedLM.from_pretrained("./trained", **trust).eval()
assert torch.equal(loaded(**inputs).logits, trainer.model.eval()(**inputs).logits)
at_three = AutoModelForMaskedLM.from_pretrained("out/checkpoint-3", **trust)
assert not torch.equal(at_three.eval()(**inputs).logits, loaded(**inputs).logits)
_, _, resumed = train(folder, "out", resume=True)
assert resumed < first - 0.5, (first, resumed)
""",
    ),
    "Trainer hands on the sequences of packed rows": Client(
        ("accelerate",),
        """
ids = tokenizer("The harbour was quiet.")["input_ids"]
packed = {"input_ids": ids + ids, "sequence_ids": [1] * len(ids) + [2] * len(ids), "labels": ids + ids,
          "position_ids": [*range(len(ids)), *range(len(ids))]}
model = AutoModelForMaskedLM.from_pretrained(folder, **trust)
arguments = TrainingArguments("out", use_cpu=True, report_to=[], per_device_train_batch_size=2)
trainer = Trainer(model, arguments, train_dataset=[packed] * 2, data_collator=default_data_collator)
batch = next(iter(trainer.get_train_dataloader()))
assert batch.keys() == packed.keys(), batch.keys()
model.eval()
alone = model(input_ids=torch.tensor([ids])).logits
close(model(**batch).logits[:1, len(ids):], alone)
""",
    ),
    "accelerate trains, and opens a folder in pieces": Client(
        ("accelerate",),
        """
from accelerate import Accelerator
plain = AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()
parts = {"roformer.embeddings": "cpu", "roformer.encoder": "disk", "roformer.norm": "cpu", "cls": "cpu"}
offloaded = AutoModelForMaskedLM.from_pretrained(folder, device_map=parts, offload_folder="offloaded", **trust)
with torch.no_grad():
    close(offloaded(**inputs).logits, plain(**inputs).logits)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = AutoModelForMaskedLM.from_pretrained(folder, **trust).train()
rows = torch.utils.data.DataLoader(inputs["input_ids"].repeat(8, 1), batch_size=2)
model, optimizer, rows = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), rows)
losses = []
for _ in range(4):
    for ids in rows:
        with accelerator.accumulate(model):
            loss = model(input_ids=ids, labels=ids).loss
            accelerator.backward(loss)
            optimizer.step(), optimizer.zero_grad()
            losses.append(loss.item())
assert losses[-1] < losses[0] - 0.1, losses
accelerator.unwrap_model(model).save_pretrained("trained")
again = AutoModelForMaskedLM.from_pretrained("./trained", **trust).eval()
assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)
""",
    ),
    "PEFT adapts the linear layers and nothing else": Client(
        ("peft",),
        """
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
names = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust)
frozen = {name: weight.clone() for name, weight in base.roformer.named_parameters()}
config = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=names, modules_to_save=["classifier"])
model = get_peft_model(base, config).train()
adapted = {name.partition(".lora_A")[0].rpartition("layer.0.")[2] for name, _ in model.named_parameters()
           if ".layer.0." in name and "lora_A" in name}
assert adapted == {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                   "intermediate.dense", "output.dense"}, adapted
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
losses = []
for _ in range(8):
    loss = model(**inputs, labels=torch.tensor([2])).loss
    loss.backward(), optimizer.step(), optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0] - 0.1, losses
stored = {name.replace("base_layer.", ""): weight for name, weight in base.roformer.named_parameters()}
assert all(torch.equal(stored[name], weight) for name, weight in frozen.items())
model.eval().save_pretrained("adapter")
again = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust)
again = PeftModel.from_pretrained(again, "adapter").eval()
close(again(**inputs).logits, model(**inputs).logits)
merged = again.merge_and_unload()
close(merged(**inputs).logits, model(**inputs).logits)
merged.save_pretrained("merged")
alone = AutoModelForSequenceClassification.from_pretrained("./merged", **trust).eval()
assert torch.equal(alone(**inputs).logits, merged(**inputs).logits)
""",
    ),
    "sentence-transformers gives the mean of the states, trains and saves": Client(
        ("sentence_transformers",),
        """
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
texts = ["The harbour was quiet.", "They count words, boats and storms, and they never sleep."]
model = SentenceTransformer(folder, device="cpu", **trust)
batch = tokenizer(texts, return_tensors="pt", padding=True)
encoder, mask = AutoModel.from_pretrained(folder, **trust).eval(), batch["attention_mask"][..., None]
with torch.no_grad():
    expected = (encoder(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
close(model.encode(texts, convert_to_tensor=True), expected)
assert model.max_seq_length == encoder.config.max_position_embeddings

model.train()
features = [model.tokenize(texts), model.tokenize(texts[::-1])]
MultipleNegativesRankingLoss(model)(features, labels=None).backward()
assert all(weight.grad is not None for name, weight in model.named_parameters()), "a weight has no gradient"
model.eval().save("saved")
again = SentenceTransformer("./saved", device="cpu", **trust)
close(again.encode(texts, convert_to_tensor=True), expected)
""",
    ),
    "torch.export and ONNX give the same numbers for other shapes": Client(
        ("onnx", "onnxscript", "onnxruntime"),
        """
warnings.simplefilter("ignore")
import onnxruntime
model = AutoModelForMaskedLM.from_pretrained(folder, **trust).eval()
short, long = (tokenizer([text, text * times], return_tensors="pt", padding=True) for times in (2, 3))
batch, slots = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("slots", min=2, max=512)
names = ["input_ids", "attention_mask", "token_type_ids"]
shapes = {name: {0: batch, 1: slots} for name in names}
arguments = {name: short[name] for name in names}
exported = torch.export.export(model, (), kwargs=arguments, dynamic_shapes=shapes)
torch.onnx.export(exported, (), "model.onnx", kwargs=arguments, input_names=names, output_names=["logits"])
program, session = exported.module(), onnxruntime.InferenceSession("model.onnx")
for inputs in (short, long, inputs):
    inputs = {name: inputs[name] for name in names}
    expected = model(**inputs).logits
    close(program(**inputs).logits, expected)
    [logits] = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    close(torch.from_numpy(logits), expected)
""",
    ),
}


def _missing(client: Client) -> list[str]:
    return [name for name in client.packages if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def shown(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """How every client ended; one process imports torch and transformers, and each client runs in a copy of it."""
    work = tmp_path_factory.mktemp("run")
    export_hf(checkpoint, work / "hf")
    # The packages of this process, without this repository and without its copies of modelling code.
    ours = ("kexue_train", "transformers_modules")
    paths = [path for path in sys.path if path and not any((Path(path) / name).is_dir() for name in ours)]
    return run_on_terminal(
        {
            name: _ELSEWHERE.format(paths=json.dumps(paths), folder=str(work / "hf"), name=name) + client.program
            for name, client in _CLIENTS.items()
            if not _missing(client)
        },
        work,
    )


@pytest.mark.parametrize("name", _CLIENTS)
def test_client(name: str, shown: dict[str, Shown]) -> None:
    if missing := _missing(_CLIENTS[name]):
        pytest.skip(f"needs {', '.join(missing)}; `make venv` installs them")
    code, text = shown[name]
    assert code == 0, text
