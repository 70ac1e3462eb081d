"""Write a model as a folder that ``from_pretrained(..., trust_remote_code=True)`` loads without kexue_train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from kexue_train.model.config import ModelConfig
from kexue_train.model.configuration_roformer_v2 import RoFormerV2Config
from kexue_train.model.modeling_roformer_v2 import RoFormerV2ForMaskedLM, RoFormerV2ForPreTraining

_TOKENIZER_SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = ("tokenizer.json", _TOKENIZER_SETTINGS, "special_tokens_map.json", "vocab.txt")
VOCAB_MULTIPLE = 128
TASK_HEADS = "task_heads"
"""Where the layers of labelled tasks are in a model that trains on them; a checkpoint has them, an export has not."""
_CONFIGURATION, _MODELING, _VARIANTS = "configuration_roformer_v2", "modeling_roformer_v2", "variants_roformer_v2"
_MODELS = {
    "AutoModel": "RoFormerV2Model",
    "AutoModelForPreTraining": "RoFormerV2ForPreTraining",
    "AutoModelForMaskedLM": "RoFormerV2ForMaskedLM",
    "AutoModelForNextSentencePrediction": "RoFormerV2ForNextSentencePrediction",
    "AutoModelForSequenceClassification": "RoFormerV2ForSequenceClassification",
    "AutoModelForTokenClassification": "RoFormerV2ForTokenClassification",
    "AutoModelForQuestionAnswering": "RoFormerV2ForQuestionAnswering",
    "AutoModelForMultipleChoice": "RoFormerV2ForMultipleChoice",
}


def code_files(config: RoFormerV2Config) -> list[str]:
    """Return the names of the Python files that a folder of such a model carries."""
    variants = [] if config.attention == "softmax" else [f"{_VARIANTS}.py"]
    return [f"{_CONFIGURATION}.py", f"{_MODELING}.py", *variants]


def _auto_map(config: RoFormerV2Config) -> dict[str, str]:
    module = _MODELING if config.attention == "softmax" else _VARIANTS
    models = {auto: f"{module}.{name}" for auto, name in _MODELS.items()}
    return {"AutoConfig": f"{_CONFIGURATION}.{RoFormerV2Config.__name__}", **models}


def padded_vocab_size(vocab_size: int) -> int:
    """Return the rows of the word table: ``vocab_size`` rounded up to a multiple of 128, a shape for matrix units.

    The rows beyond are no input, no label and no prediction: ids come from the tokenizer, random ones from below its
    size, and the model has ``num_tokens`` logits.
    """
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def build_hf_config(config: ModelConfig, vocab_size: int) -> RoFormerV2Config:
    """Return the Hugging Face configuration of the ``model`` section; rounds a tokenizer's ``vocab_size`` up."""
    fields = config.model_dump(exclude={"rms_norm_eps"})
    padded = padded_vocab_size(vocab_size)
    hf_config = RoFormerV2Config(vocab_size=padded, num_tokens=vocab_size, layer_norm_eps=config.rms_norm_eps, **fields)
    hf_config.architectures = [RoFormerV2ForPreTraining.__name__]
    hf_config.auto_map = _auto_map(hf_config)
    return hf_config


def untied_weights(model: RoFormerV2ForPreTraining | RoFormerV2ForMaskedLM) -> dict[str, Tensor]:
    """Return the model's own tensors by name, tied ones once: what a folder holds."""
    tied = set(type(model)._tied_weights_keys) if model.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def without_task_heads(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the model itself."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(f"{TASK_HEADS}.")}


def write_hf_folder(
    model: RoFormerV2ForPreTraining | RoFormerV2ForMaskedLM,
    folder: Path,
    tokenizer: Path | None,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write configuration, weights (tied ones once), modelling code and the tokenizer's files into ``folder``.

    Args:
        model: The model; with ``weights`` only its class and configuration are looked at.
        folder: An existing folder.
        tokenizer: Folder of a tokenizer, if there is one.
        weights: In place of the model's own, with the names of ``untied_weights``.
    """
    config = model.config.to_dict() | {"auto_map": _auto_map(model.config), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in (weights or untied_weights(model)).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in code_files(model.config):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    for name in TOKENIZER_FILES:
        if tokenizer and (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    limit_tokenizer(folder, model.config)


def limit_tokenizer(folder: Path, config: RoFormerV2Config) -> None:
    """Let the tokenizer in ``folder``, if there is one, cut texts with ``truncation=True`` to what the model takes."""
    path = folder / _TOKENIZER_SETTINGS
    if path.exists():
        settings = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": config.max_position_embeddings}
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
