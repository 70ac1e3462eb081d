"""Sample shards and exported models of a few kilobytes, made by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import kexue_train.model
from kexue_train.foundation.arrow_shards import ShardWriter, shard_name
from kexue_train.foundation.artifacts import MANIFEST_NAME, Recipe, build_manifest, describe_files, write_atomic
from kexue_train.samples.schema import sample_schema

SEQ_LEN, VOCAB, HELDOUT = 32, 60, 12
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
WORDS = [f"word{i}" for i in range(VOCAB - 5)]


@dataclass(frozen=True)
class Pack:
    """One row: its sequences, each (ids of A, ids of B or None, label)."""

    sequences: list[tuple[list[int], list[int] | None, int]]

    def columns(self) -> dict[str, list[int]]:
        """The values of the row's columns, word_starts not yet packed; every token is a word."""
        ids: list[int] = []
        lengths, a_lengths = [], []
        for a, b, _ in self.sequences:
            sequence = [2, *a, 3] + ([*b, 3] if b is not None else [])
            ids += sequence
            lengths.append(len(sequence))
            a_lengths.append(len(a) + 2)
        ids += [0] * (SEQ_LEN - len(ids))
        return {
            "input_ids": ids,
            "sequence_lengths": lengths,
            "segment_a_lengths": a_lengths,
            "next_sentence_labels": [label for _, _, label in self.sequences],
            "word_starts": list(np.packbits(np.ones(SEQ_LEN, np.uint8), bitorder="little")),
        }


def make_packs(number: int) -> list[Pack]:
    """Rows of two pairs and one single sequence, tokens drawn with falling frequency."""
    random = np.random.default_rng(5)

    def tokens() -> list[int]:
        return (5 + np.minimum(random.geometric(0.12, random.integers(2, 5)), VOCAB - 6)).tolist()

    return [
        Pack(
            [
                (tokens(), tokens(), int(random.integers(2))),
                (tokens(), tokens(), int(random.integers(2))),
                (tokens(), None, -100),
            ]
        )
        for _ in range(number)
    ]


def write_samples(folder: Path, packs: list[Pack], *, heldout_rows: int = HELDOUT, vocab_size: int = VOCAB) -> Path:
    """A folder of sample shards in one file."""
    folder.mkdir(parents=True)
    rows = [pack.columns() for pack in packs]
    schema = sample_schema(SEQ_LEN, vocab_size)
    arrays = [pa.array([row[name] for row in rows], schema.field(name).type) for name in schema.names]
    with ShardWriter(folder / shard_name(0, 1), schema) as writer:
        writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
    counts = np.bincount(np.concatenate([row["input_ids"] for row in rows[heldout_rows:]]), minlength=vocab_size)
    counts[:5] = 0
    np.save(folder / "token_counts.npy", counts)
    statistics = {
        "seq_len": SEQ_LEN,
        "vocab_size": vocab_size,
        "heldout_rows": heldout_rows,
        "sequences": sum(len(row["sequence_lengths"]) for row in rows),
        "special_token_ids": SPECIAL,
    }
    files = describe_files(folder, {shard_name(0, 1): len(rows)})
    manifest = build_manifest(Recipe(kind="sample_shards", settings={}), files, rows=len(rows), statistics=statistics)
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json())
    return folder


def tiny_model(seed: int = 0) -> torch.nn.Module:
    """A random two-layer model whose weights are large enough for its answers to differ."""
    from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining

    torch.manual_seed(seed)
    config = RoFormerV2Config(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return RoFormerV2ForPreTraining(config).eval()


def export_model(model: torch.nn.Module, folder: Path) -> Path:
    """What the export stage writes: weights, configuration, modelling code, tokenizer, manifest."""
    model.save_pretrained(folder)
    source = Path(kexue_train.model.__file__).parent
    for name in ("configuration_roformer_v2.py", "modeling_roformer_v2.py"):
        shutil.copy(source / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_roformer_v2.RoFormerV2Config",
        "AutoModel": "modeling_roformer_v2.RoFormerV2Model",
        "AutoModelForPreTraining": "modeling_roformer_v2.RoFormerV2ForPreTraining",
        "AutoModelForMaskedLM": "modeling_roformer_v2.RoFormerV2ForMaskedLM",
        "AutoModelForNextSentencePrediction": "modeling_roformer_v2.RoFormerV2ForNextSentencePrediction",
    }
    write_atomic(folder / "config.json", json.dumps(config))
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in SPECIAL}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    write_atomic(folder / "tokenizer_config.json", json.dumps(settings))
    manifest = build_manifest(Recipe(kind="hf_model", settings={}), describe_files(folder))
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json())
    return folder
