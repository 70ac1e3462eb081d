"""One small task of each kind, with files and YAML, for the samples of ``tests/train/tiny_training.py``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kexue_train.batches.mixed import MixedDataset
from kexue_train.batches.open_samples import open_samples
from kexue_train.downstream.finetune.tasks.task import SupervisedTask
from kexue_train.supervised.config import SupervisedConfig
from kexue_train.supervised.needs import RowsDir, load_tasks
from kexue_train.supervised.prepare import prepare_rows
from tests.train.tiny_training import SEQ_LEN

WORDS_OF = ("harbour", "storm", "boats", "words", "winter", "pier", "noon")
SIZES = {"sorted": 40, "marked": 30, "asked": 30, "chosen": 24}
TASKS: dict[str, dict[str, Any]] = {
    "sorted": {"kind": "classification", "text": "{a}", "text_b": "{b}", "label": "label"},
    "marked": {"kind": "tagging", "text": "text"},
    "asked": {"kind": "reading"},
    "chosen": {"kind": "choice", "context": "{text}", "question": "{question}"},
}
KINDS = tuple(TASKS)


def record_of(name: str, number: int) -> dict[str, Any]:
    """Return one record; neighbours differ in text and label."""
    word, other = WORDS_OF[number % 7], WORDS_OF[(number // 2) % 7]
    text = f"They count the {word} and never sleep, {number}."
    start = text.index(word)
    if name == "sorted":
        return {
            "a": f"The {word} was quiet.",
            "b": f"Nobody expected {other} {number}.",
            "label": "yes" if word == other else ("no", "maybe")[number % 2],
        }
    if name == "marked":
        return {
            "text": text,
            "entities": [{"start": start, "end": start + len(word), "type": ("THING", "TIME")[number % 2]}],
        }
    if name == "asked":
        return {"context": text, "question": "what?", "answers": [{"text": word, "start": start}]}
    options = [word, *(w for w in WORDS_OF if w != word)][: 2 + number % 3]
    turn = number % len(options)
    return {"text": text, "question": "what?", "options": options[-turn:] + options[:-turn], "label": turn}


def write_tasks(folder: Path, changes: dict[str, dict[int, dict[str, Any]]] | None = None) -> Path:
    """Write the files of all tasks and their YAML; ``changes`` replace training records by task and number."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        for split, first, count in (("train", 0, size), ("dev", 1000, 10)):
            records = [record_of(name, first + number) for number in range(count)]
            for number, record in (changes or {}).get(name, {}).items():
                if split == "train":
                    records[number] = record
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    described = {
        name: {"title": name, "train": f"{name}-train.jsonl", "dev": f"{name}-dev.jsonl", "max_length": SEQ_LEN, **task}
        for name, task in TASKS.items()
    }
    (folder / "tasks.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    return folder


def section(folder: Path, mix: dict[str, float], **changes: Any) -> SupervisedConfig:
    """Return the section of a configuration."""
    values = {"data": str(folder), "tasks": [str(folder / "tasks.yaml")], "mix": mix, "steps": 8, **changes}
    return SupervisedConfig.parse(values, where="test")


def prepare(config: SupervisedConfig, samples: Path, out: Path, shards: Path | None = None) -> Path:
    """Make the rows below ``out``; return the file of the mix."""
    return prepare_rows(config, samples, shards, RowsDir(out / "supervised"), longest=SEQ_LEN, seed=7)


def open_mix(file: Path) -> MixedDataset:
    """Open what a training with this mix reads."""
    (data,) = open_samples(file).values()
    assert isinstance(data, MixedDataset)
    return data


def tasks_of(folder: Path, names: Sequence[str] = KINDS) -> dict[str, SupervisedTask]:
    """Return the tasks themselves."""
    return load_tasks(section(folder, dict.fromkeys(names, 1.0)))
