"""The blocks of a tutorial, and how each of its commands is tried on a small corpus."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.reference.tensorflow_writer import write_checkpoint

TUTORIALS = ("own_chinese_encoder", "domain_corpus_on_a_cluster", "continue_from_published_weights")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

TINY = shlex.split(
    "shuffle.memory=256MB execution.tasks=local execution.num_workers=1 train.workers.launcher=local "
    "train.compute.engine=torch train.num_workers=1 train.workers.threads_per_worker=1 train.precision=fp32 "
    "train.steps=6 'optimizer.schedule={1: 1.0, 6: 0.1}' train.global_batch_size=4 train.micro_batch_size=2 "
    "train.checkpoints.every=3 train.logging.validate_every=6 samples.seq_len=64 samples.heldout_fraction=0.01 "
    "model.num_hidden_layers=1 model.hidden_size=32 model.num_attention_heads=2 model.intermediate_size=64"
)
"""Settings that make any configuration a run of a second; its stages and their order stay."""

CHANGED = {
    "kexue pipeline --config my-encoder/config.yaml": [*TINY, "tokenizer.vocab_size=220"],
    "kexue pipeline --config continue.yaml": TINY,
    "kexue pipeline --config domain.yaml --run-dir runs/rehearsal": [*TINY, "tokenizer.vocab_size=220"],
}
"""What a command that begins so is given in addition; everything else is run as it is printed."""

NOT_RUN = {
    "make venv": "installs packages from an index",
    "source .venv/bin/activate": "of the reader's shell",
    "kexue try": "takes two minutes; it has tests of its own",
    "sbatch": "needs Slurm; the batch scripts have tests of their own",
    "squeue": "needs Slurm",
    "tail": "of a job that runs",
    "kubectl": "needs Kubernetes; its files have tests of their own",
    "kexue pipeline --config domain.yaml --run-dir /shared/runs/domain --ray": "needs a Ray cluster",
    "kexue report /shared": "of the run on the cluster",
    "kexue metrics": "serves until it is stopped",
}
"""Why a command that begins so is not run. Those of kexue are at least read: options and overrides have to be known."""


class Block(NamedTuple):
    language: str
    text: str


def read_blocks(path: Path) -> list[Block]:
    """Return the code blocks of a document."""
    return [Block(*found) for found in _BLOCK.findall(path.read_text(encoding="utf-8"))]


def commands_of(block: Block) -> list[str]:
    """Return the commands of a block of shell, one a line; a backslash continues a line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def reason_not_to_run(command: str) -> str | None:
    return next((reason for begin, reason in NOT_RUN.items() if command.startswith(begin)), None)


def words_to_run(command: str) -> list[str]:
    """Return the words after ``kexue``, with quoted patterns left to the command, for a small run."""
    added = next((words for begin, words in CHANGED.items() if command.startswith(begin)), [])
    words = shlex.split(command)[1:]
    given = {word.partition("=")[0] for word in added}
    return [*(word for word in words if word.partition("=")[0] not in given), *added]


def write_corpus(folder: Path, *, documents: int) -> None:
    """Write Chinese documents of 2.8 kB, of made-up sentences, as the tutorials ask for: one a line, under ``text``."""
    chance = np.random.default_rng(0)
    letters = [chr(0x4E00 + 7 * number) for number in range(200)]
    known = ["中华", "人民", "共和国", "成立", "于", "本法", "规定", "施行", "今天", "天气", "很好", "鲁迅", "小说"]
    words = np.array([*known, *("".join(chance.choice(letters, 2)) for _ in range(400))])
    lines = []
    for _ in range(documents):
        sentences = ["".join(sentence) + "。" for sentence in chance.choice(words, (40, 11))]
        lines.append(json.dumps({"text": "".join(sentences)}, ensure_ascii=False) + "\n")
    for name in ("corpus", "sample"):
        (folder / name).mkdir()
        (folder / name / "texts.jsonl").write_text("".join(lines), encoding="utf-8")


def write_published_weights(folder: Path) -> None:
    """A model of the published form and names, and of the shape that ``TINY`` asks for."""
    target = folder / "chinese_roformer-v2-char_L-6_H-384_A-6"
    target.mkdir()
    text = (folder / "corpus" / "texts.jsonl").read_text(encoding="utf-8")
    letters = sorted({letter for letter in text if ord(letter) > 0x2E80})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *"1949年立一"]
    pieces = list(dict.fromkeys(pieces))
    (target / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    sizes = {"vocab_size": len(pieces), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = sizes | {
        "intermediate_size": 64,
        "hidden_act": "relu",
        "type_vocab_size": 2,
        "max_position_embeddings": 512,
    }
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02}
    (target / "bert_config.json").write_text(json.dumps(config), encoding="utf-8")
    chance = np.random.default_rng(0)
    at = "bert/encoder/layer_0"
    shapes = {"bert/embeddings/word_embeddings": (len(pieces), 32), "bert/embeddings/token_type_embeddings": (2, 32)}
    shapes |= {f"{at}/attention/self/{name}/kernel": (32, 32) for name in ("query", "key", "value")}
    shapes |= {f"{at}/attention/output/dense/kernel": (32, 32), f"{at}/intermediate/dense/kernel": (32, 64)}
    shapes |= {f"{at}/output/dense/kernel": (64, 32)}
    tensors = {name: (chance.normal(size=shape) * 0.05).astype(np.float32) for name, shape in shapes.items()}
    write_checkpoint(target / "bert_model.ckpt", tensors)
