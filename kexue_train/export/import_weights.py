"""Published RoFormerV2 weights -> the Hugging Face folder that ``kexue export`` would write of them.

Two forms are read: the folders of JunnYu/RoFormer_pytorch, whose names are ours, and the TensorFlow checkpoints of
bert4keras, whose kernels are [in, out]. Every tensor must be there, with its shape, and no other.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kexue_train.export.model_card import write_import_card
from kexue_train.export.tensorflow_checkpoint import TensorFlowCheckpoint
from kexue_train.export.vocabulary import write_tokenizer_of
from kexue_train.foundation.artifacts import (
    InputFile,
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
)
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import write_hf_folder

Shape = tuple[int, ...]
_DECODER, _WORDS = "cls.predictions.decoder.weight", "roformer.embeddings.word_embeddings.weight"
_SINES = "roformer.encoder.embed_positions.weight"
"""A table of sines and cosines in JunnYu's files; here they are computed."""


@dataclass(frozen=True)
class PublishedWeights:
    """A folder of published weights: what it holds by our names, in our layout."""

    form: str
    """``pytorch`` or ``bert4keras``."""
    files: list[Path]
    config: RoFormerV2Config
    shapes: dict[str, Shape]
    names: dict[str, str]
    """Our name of a tensor -> its name in the file."""
    read: Callable[[str], Tensor]
    """Our name of a tensor -> its values."""


def import_weights(folder: Path, out_dir: Path, *, replace: bool = False, progress: Progress = SILENT) -> Manifest:
    """Write ``out_dir`` from ``folder``; ``from_pretrained(out_dir, trust_remote_code=True)`` opens it.

    Released weights have no NSP head: the folder holds none either, and whoever loads a model with that head gets a
    fresh one. The tokenizer is BERT's, over ``vocab.txt``; without that file the folder has none.

    Args:
        folder: Holds config.json and model.safetensors or pytorch_model.bin, or bert_config.json and NAME.ckpt.index
            with its .data file; vocab.txt too if there shall be a tokenizer.
        out_dir: The folder to write.
        replace: Rebuild a stale or damaged folder.
        progress: Receives notes.

    Raises:
        ArtifactError: If a file is missing, damaged or of another model; tensors are named, with their shapes.
    """
    source = open_source(folder)
    files = [*source.files, *(path for path in [folder / "vocab.txt"] if path.exists())]
    inputs = [_describe(path) for path in files]
    recipe = Recipe(
        kind="hf_model",
        settings={"imported_from": source.form},
        inputs=[(entry.uri, entry.bytes, entry.modified_ns) for entry in inputs],
    )
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    model = build_model(source)
    partial = open_partial(out_dir, recipe)
    write_hf_folder(model, partial, tokenizer=None)
    if (folder / "vocab.txt").exists():
        write_tokenizer_of(folder, partial, source.config)
    else:
        progress.note(f"{folder}: no vocab.txt, so the imported model has no tokenizer")
    has_nsp_head = isinstance(model, RoFormerV2ForPreTraining)
    write_import_card(partial, source.form, model.config, has_nsp_head=has_nsp_head)
    statistics = {"parameters": sum(p.numel() for p in model.parameters()), "has_nsp_head": has_nsp_head}
    described = describe_files(partial)
    return publish(partial, out_dir, build_manifest(recipe, described, inputs=inputs, statistics=statistics))


def open_source(folder: Path) -> PublishedWeights:
    """Find out which form of weights ``folder`` holds and open it.

    Raises:
        ArtifactError: If it holds none, or several.
    """
    if indices := sorted(folder.glob("*.index")):
        if len(indices) > 1:
            names = ", ".join(path.name for path in indices)
            raise ArtifactError(f"{folder}: holds several TensorFlow checkpoints ({names}); leave one of them there")
        return _open_bert4keras(folder, indices[0])
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return _open_pytorch(folder, folder / name)
    raise ArtifactError(
        f"{folder}: holds no weights; give a folder with config.json and model.safetensors or pytorch_model.bin, or "
        "with bert_config.json and NAME.ckpt.index with its .data file"
    )


def build_model(source: PublishedWeights) -> RoFormerV2ForMaskedLM | RoFormerV2ForPreTraining:
    """Build the model with the source's weights in fp32; with the NSP head if the source has its weights.

    Raises:
        ArtifactError: Names every tensor that is missing, not the model's, or of another shape.
    """
    has_nsp_head = any(name.startswith("cls.next_sentence.") for name in source.shapes)
    with torch.device("meta"):
        model = (RoFormerV2ForPreTraining if has_nsp_head else RoFormerV2ForMaskedLM)(source.config)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != _DECODER}
    found = {name: shape for name, shape in source.shapes.items() if name not in (_DECODER, _SINES)}
    if problems := _compare(found, needed, source.names):
        more = f" and {len(problems) - 5} more" if problems[5:] else ""
        raise ArtifactError(
            f"{source.files[-1]}: not the weights of this RoFormerV2: {'; '.join(problems[:5])}{more}. Give "
            f"the weights that belong to {source.files[0].name}"
        )
    weights = {name: source.read(name) for name in needed}
    if _DECODER in source.shapes and not torch.equal(source.read(_DECODER), weights[_WORDS]):
        raise ArtifactError(
            f"{source.files[-1]}: {_DECODER} is not the word table; an untied word head cannot be imported"
        )
    model.load_state_dict(weights | {_DECODER: weights[_WORDS]}, assign=True)
    model.tie_weights()
    model.eval()
    return model


def _compare(found: Mapping[str, Shape], needed: Mapping[str, Shape], names: Mapping[str, str]) -> list[str]:
    problems = []
    for name in sorted(found.keys() | needed.keys()):
        given = names.get(name, name)
        has, needs = (list(_in_file(given, shapes[name])) if name in shapes else None for shapes in (found, needed))
        if has is None:
            problems.append(f"{given} {needs} is missing")
        elif needs is None:
            problems.append(f"{given} {has} has no place in it")
        elif has != needs:
            problems.append(f"{given} has shape {has} where {needs} is needed")
    return problems


def _in_file(given: str, shape: Shape) -> Shape:
    """Return a shape in the layout of the file that names the tensor ``given``; the mapping is its own inverse."""
    return shape[::-1] if given.endswith("/kernel") else shape


def _open_pytorch(folder: Path, weights: Path) -> PublishedWeights:
    config_file, config = _read_config(folder, "config.json")
    try:
        if weights.suffix == ".safetensors":
            tensors = load_file(weights)
        else:
            tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{weights}: cannot be read as weights ({first}); copy the file again") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    read = lambda name: tensors[name].float()  # noqa: E731  # one expression
    return PublishedWeights("pytorch", [config_file, weights], config, shapes, {name: name for name in shapes}, read)


def _open_bert4keras(folder: Path, index: Path) -> PublishedWeights:
    config_file, config = _read_config(folder, "bert_config.json", "config.json")
    checkpoint = TensorFlowCheckpoint(index)
    names = bert4keras_names(config)
    ours = {theirs: name for name, theirs in names.items()}
    shapes = {ours.get(theirs, theirs): _in_file(theirs, entry.shape) for theirs, entry in checkpoint.entries.items()}

    def read(name: str) -> Tensor:
        values = torch.from_numpy(checkpoint.read(names[name])).float()
        return values.T.contiguous() if names[name].endswith("/kernel") else values

    data = sorted(folder.glob(f"{index.stem}.data-*"))
    return PublishedWeights("bert4keras", [config_file, *data, index], config, shapes, names, read)


def bert4keras_names(config: RoFormerV2Config) -> dict[str, str]:
    """Return our name of each tensor -> its name in a TensorFlow checkpoint; those ending in /kernel are transposed."""
    feed_forward = ["intermediate/dense", "output/dense"]
    if not isinstance(config.hidden_act, str):  # bert4keras names no second kernel; this is ours in its form
        feed_forward.append("intermediate/dense_2")
    names = {
        f"roformer.embeddings.{table}.weight": f"bert/embeddings/{table}"
        for table in ("word_embeddings", "token_type_embeddings")
    }
    kernels = [*(f"attention/self/{part}" for part in ("query", "key", "value")), "attention/output/dense"]
    for layer in range(config.num_hidden_layers):
        for kernel in [*kernels, *feed_forward]:
            ours = f"roformer.encoder.layer.{layer}.{kernel.replace('/', '.')}.weight"
            names[ours] = f"bert/encoder/layer_{layer}/{kernel}/kernel"
    return names


def _read_config(folder: Path, *names: str) -> tuple[Path, RoFormerV2Config]:
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise ArtifactError(f"{folder}: holds no {' or '.join(names)}, which gives the size of the model")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return path, RoFormerV2Config.from_dict(values)
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: not the configuration of a RoFormerV2 that can be imported ({error})") from None


def _describe(path: Path) -> InputFile:
    status = path.stat()
    return InputFile(uri=str(path.absolute()), bytes=status.st_size, modified_ns=status.st_mtime_ns)
