"""Weights to start with in place of random ones: of a published model, or of an own one on new data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from kexue_train.batches.mixed import TrainingData
from kexue_train.foundation.artifacts import Manifest, digest_of, file_checksum
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from kexue_train.model import RoFormerV2ForPreTraining

logger = logging.getLogger(__name__)

_FILES = ("config.json", "model.safetensors")
_TOKENIZER = "tokenizer.json"
_WORDS = "roformer.embeddings.word_embeddings.weight"
_PAIR_HEAD = "cls.next_sentence."
# What the weights have been trained to compute with: key of config.json -> (key of the model section, released value).
_ARCHITECTURE = {
    "num_hidden_layers": ("num_hidden_layers", 12),
    "hidden_size": ("hidden_size", 768),
    "num_attention_heads": ("num_attention_heads", 12),
    "intermediate_size": ("intermediate_size", 3072),
    "hidden_act": ("hidden_act", "relu"),
    "norm_placement": ("norm_placement", "post"),
    "layer_norm_eps": ("rms_norm_eps", 1e-12),
    "log_n_scale": ("log_n_scale", None),
    "attention": ("attention", "softmax"),
    "num_key_value_heads": ("num_key_value_heads", None),
    "latent_size": ("latent_size", None),
    "latent_rotary_size": ("latent_rotary_size", None),
}
# The same, where training knows one value only.
_FIXED = {"rotary_base": 10000.0, "type_vocab_size": 2}


def check_initial_weights(folder: Path, model: ModelConfig, samples: TrainingData) -> None:
    """Check that the weights in ``folder`` fit the model section and the tokenizer of the samples.

    Raises:
        ArtifactError: If the folder holds no model in Hugging Face form.
        ConfigError: If its architecture or vocabulary is another one; says what differs and how to fix it.
    """
    config = _read_config(folder)
    ours: dict[str, Any] = model.model_dump(mode="json")
    keys = {key: (f"model.{name}", ours[name], released) for key, (name, released) in _ARCHITECTURE.items()}
    keys |= {key: (key, value, value) for key, value in _FIXED.items()}
    differences = [
        f"{key} is {config.get(key, released)!r} there, {name}={wanted!r} here"
        for key, (name, wanted, released) in keys.items()
        if config.get(key, released) != wanted
    ]
    if differences:
        raise ConfigError(
            f"train.init_from={folder}: is of another architecture: {'; '.join(differences)}. Change the model section "
            "to fit the weights, or give other weights"
        )
    _check_vocabulary(folder, samples)


def digest_of_weights(folder: Path) -> str:
    """Changes with the weights in ``folder`` and how they are to be used.

    Raises:
        ArtifactError: If the folder holds no model in Hugging Face form.
    """
    _require_files(folder)
    return digest_of({name: file_checksum(folder / name) for name in _FILES})


def recorded_digest_of_weights(manifest: Manifest) -> str | None:
    """Return what ``digest_of_weights`` gives for the folder that ``manifest`` describes; None if it holds no model."""
    if any(name not in manifest.files for name in _FILES):
        return None
    return digest_of({name: manifest.files[name].checksum for name in _FILES})


def load_initial_weights(folder: Path, model: RoFormerV2ForPreTraining) -> None:
    """Copy the weights in ``folder`` into ``model``, in place.

    What may be missing stays as it is: the NSP head, which published models lack, the heads of labelled tasks, and the
    rows of the word table that only fill it up to a multiple of 128. Heads of tasks that are not trained are left out.

    Raises:
        ArtifactError: Names every tensor that is missing, not the model's, or of another shape.
    """
    import torch  # noqa: PLC0415  # checks need none of it
    from safetensors.torch import load_file  # noqa: PLC0415  # the same

    from kexue_train.model.hf_folder import TASK_HEADS, untied_weights  # noqa: PLC0415  # the same

    needed = untied_weights(model)
    tied = model.state_dict().keys() - needed.keys()
    found = {name: tensor for name, tensor in load_file(folder / _FILES[1]).items() if name not in tied}
    found = {name: tensor for name, tensor in found.items() if name in needed or not name.startswith(f"{TASK_HEADS}.")}
    if _WORDS in needed and _WORDS in found:
        rows = min(len(needed[_WORDS]), len(found[_WORDS]))
        needed[_WORDS], found[_WORDS] = needed[_WORDS][:rows], found[_WORDS][:rows]
    fresh = [name for name in needed.keys() - found.keys() if name.startswith((_PAIR_HEAD, f"{TASK_HEADS}."))]
    if problems := _compare(needed, found, fresh):
        more = f" and {len(problems) - 5} more" if problems[5:] else ""
        remedy = (
            "The head of a labelled task has an output for each label: give the task another name, or take weights "
            "that lack its head"
            if all(f" {TASK_HEADS}." in problem for problem in problems)
            else "Convert published weights with 'kexue import-weights', or give other ones"
        )
        raise ArtifactError(f"train.init_from={folder}: {'; '.join(problems[:5])}{more}. {remedy}")
    with torch.no_grad():
        for name, tensor in found.items():
            needed[name].copy_(tensor)
    if any(name.startswith(_PAIR_HEAD) for name in fresh):
        logger.warning("%s has no %s*: these weights start at random", folder, _PAIR_HEAD)


def _compare(needed: dict[str, Tensor], found: dict[str, Tensor], fresh: list[str]) -> list[str]:
    problems = []
    for name in sorted(needed.keys() | found.keys() - set(fresh)):
        has, needs = (list(tensors[name].shape) if name in tensors else None for tensors in (found, needed))
        if name not in fresh and has != needs:
            problems.append(f"tensor {name} has shape {has} there, {needs} is needed")
    return problems


def _require_files(folder: Path) -> None:
    for name in _FILES:
        if not (folder / name).is_file():
            raise ArtifactError(
                f"train.init_from={folder}: holds no {name}; give a folder of 'kexue export' or a checkpoint, or "
                "convert published weights with 'kexue import-weights FOLDER --out DIR'"
            )


def _read_config(folder: Path) -> dict[str, Any]:
    _require_files(folder)
    path = folder / _FILES[0]
    try:
        config = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}); give a whole model folder") from None
    if config.get("model_type") != "roformer_v2":
        raise ConfigError(
            f"{path}: model_type={config.get('model_type')!r}, training starts from 'roformer_v2'; convert published "
            "weights with 'kexue import-weights FOLDER --out DIR'"
        )
    return config


def _check_vocabulary(folder: Path, samples: TrainingData) -> None:
    from kexue_train.samples.bert_tokenizer import read_tokenizer  # noqa: PLC0415  # training needs no tokenizer

    remedy = (
        f"make the samples with the vocabulary of the weights: 'kexue tokenizer SHARDS --from {folder} --out DIR', "
        "then 'kexue samples --tokenizer DIR'"
    )
    rows = _rows_of_word_table(folder / _FILES[1])
    if rows < samples.vocab_size:
        raise ConfigError(
            f"train.init_from={folder}: its word table has {rows} rows, the tokenizer of {samples.folders[0]} "
            f"{samples.vocab_size} pieces; {remedy}"
        )
    if not (folder / _TOKENIZER).exists():  # imported without vocab.txt
        logger.warning("%s: no %s, so whether the samples have its vocabulary is unknown", folder, _TOKENIZER)
        return
    theirs, ours = (
        {id_: piece for piece, id_ in read_tokenizer(path / _TOKENIZER, remedy=remedy).get_vocab().items()}
        for path in (folder, samples.folders[0] / "tokenizer")
    )
    different = sorted(id_ for id_ in theirs.keys() | ours.keys() if theirs.get(id_) != ours.get(id_))
    if different:
        first = different[0]
        raise ConfigError(
            f"train.init_from={folder}: has another vocabulary ({len(theirs)} pieces) than {samples.folders[0]} "
            f"({len(ours)}): {len(different)} ids differ, such as {first}, {theirs.get(first)!r} there and "
            f"{ours.get(first)!r} here; {remedy}"
        )


def _rows_of_word_table(file: Path) -> int:
    try:
        with safe_open(file, framework="numpy") as tensors:
            return int(tensors.get_slice(_WORDS).get_shape()[0])
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{file}: {_WORDS} cannot be read ({error}); convert published weights with 'kexue import-weights', or "
            "copy the file again"
        ) from None
