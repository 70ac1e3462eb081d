"""Load an exported model the way a user does, and say clearly what it lacks."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kexue_train.downstream.folder_code import may_run_code
from kexue_train.foundation.artifacts import let_umask_decide
from kexue_train.foundation.errors import EvaluationError, ResourceError

_MODEL_TYPE = "roformer_v2"
_MODEL_FILES = ("config.json", "modules.json")
"""By which transformers and sentence-transformers know their folders."""
# Whatever is wrong inside a folder (code, JSON, weights), transformers reports it by one of these.
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    AttributeError,
    TypeError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class LoadedModel:
    """A ``RoFormerV2ForPreTraining`` in evaluation mode, in fp32, on the best device here."""

    model: Any
    device: torch.device
    has_nsp_head: bool
    """False if the folder holds no weights for the NSP head."""

    @property
    def vocab_size(self) -> int:
        """Rows of the word table."""
        return int(self.model.config.vocab_size)

    @property
    def parameters(self) -> int:
        """Number of weights, the tied word table counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True)
class LoadedHead:
    """Any model of transformers with one head, in evaluation mode, in fp32, on the best device here; its tokenizer."""

    model: Any
    tokenizer: Any
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.model.device
        return device

    @property
    def model_type(self) -> str:
        """The name of the architecture."""
        return str(self.model.config.model_type)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def longest_input(self) -> int | None:
        """Tokens of the longest input it was made for; None if it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def fitting(self, tokens: int) -> int:
        """Return ``tokens``, or fewer if the model was made for fewer."""
        return min(tokens, self.longest_input or tokens)


def load_model(model_dir: Path) -> LoadedModel:
    """Load ``model_dir`` with its own modelling code, if that is ours or trusted; nothing is downloaded.

    Raises:
        EvaluationError: If the folder holds no model, another kind of model, or one with missing weights.
        ResourceError: If transformers is not installed.
    """
    model, missing = load_pretrained(model_dir, "AutoModelForPreTraining", "a model with MLM and NSP heads")
    if model.config.model_type != _MODEL_TYPE:
        raise EvaluationError(
            f"{model_dir}: a model of type {model.config.model_type!r}, "
            f"but only {_MODEL_TYPE!r} can score packed sample rows; give a folder written by 'kexue export'"
        )
    without_nsp = {name for name in missing if name.startswith("cls.next_sentence.")}
    require_weights(model_dir, missing - without_nsp)
    return LoadedModel(model, model.device, has_nsp_head=not without_nsp)


def load_next_sentence_model(model_dir: Path, **settings: Any) -> LoadedHead:
    """Load any model that ``AutoModelForNextSentencePrediction`` opens, with its tokenizer; nothing is downloaded.

    ``settings`` replace those of its configuration.

    Raises:
        EvaluationError: If the folder holds no model or tokenizer, the model has no NSP head, or weights are missing.
        ResourceError: If transformers is not installed.
    """
    instead = "score its masked words instead: --method pet, or 'kexue evaluate mlm'"
    try:
        model, missing = load_pretrained(
            model_dir, "AutoModelForNextSentencePrediction", "a model with an NSP head", **settings
        )
    except EvaluationError as error:
        raise EvaluationError(f"{error}; if it was trained without next sentences, {instead}") from None
    body = f"{model.base_model_prefix}."
    head = {name for name in missing if not name.startswith(body) or ".pooler." in name}
    require_weights(model_dir, missing - head)
    if head:
        raise EvaluationError(f"{model_dir}: has no weights for an NSP head ({min(head)!r} is missing); {instead}")
    return with_tokenizer(model_dir, model, ("cls_token", "sep_token"))


def load_masked_lm(model_dir: Path) -> LoadedHead:
    """Load any model that ``AutoModelForMaskedLM`` opens, with its tokenizer; nothing is downloaded.

    Raises:
        EvaluationError: If the folder holds no model or tokenizer, the model has no MLM head, or weights are missing.
        ResourceError: If transformers is not installed.
    """
    model, missing = load_pretrained(model_dir, "AutoModelForMaskedLM", "a model with an MLM head")
    require_weights(model_dir, missing)
    return with_tokenizer(model_dir, model, ("cls_token", "sep_token", "mask_token"))


def load_encoder(model_dir: Path, **settings: Any) -> LoadedHead:
    """Load any model that ``AutoModel`` opens, without head, with its tokenizer; nothing is downloaded.

    ``settings`` replace those of its configuration.

    Raises:
        EvaluationError: If the folder holds no model or tokenizer, or weights are missing.
        ResourceError: If transformers is not installed.
    """
    model, missing = load_pretrained(model_dir, "AutoModel", "an encoder", **settings)
    require_weights(model_dir, {name for name in missing if not name.startswith("pooler.")})
    return with_tokenizer(model_dir, model, ("cls_token", "sep_token"))


def load_pretrained(model_dir: Path, auto_class: str, kind: str, **settings: Any) -> tuple[Any, set[str]]:
    """Load what ``auto_class`` of transformers opens, in evaluation mode, in fp32, on the best device here.

    ``settings`` replace those of its configuration.

    Returns:
        The model, and the names of the weights that the folder lacks.

    Raises:
        EvaluationError: If the folder holds no model, none of this ``kind`` (words for the message), or other code
            than ours that nobody trusts.
        ResourceError: If transformers is not installed.
    """
    _require_config(model_dir)
    runs_code = may_run_code(model_dir)
    transformers = import_transformers()
    return open_with(getattr(transformers, auto_class), model_dir, kind, trust_remote_code=runs_code, **settings)


def _require_config(model_dir: Path) -> None:
    if not (model_dir / "config.json").is_file():
        raise EvaluationError(
            f"{model_dir}: no config.json, so no Hugging Face model; "
            "give the folder 'hf' of a run or a checkpoint 'step-...'"
        )


def open_with(model_class: Any, model_dir: Path, kind: str, **settings: Any) -> tuple[Any, set[str]]:
    """Load the weights in ``model_dir`` by ``model_class``; else as ``load_pretrained``.

    A class of kexue_train computes with its own code, whatever code the folder carries.
    """
    _require_config(model_dir)
    try:
        with _quiet(import_transformers()):
            model, info = model_class.from_pretrained(
                model_dir, local_files_only=True, output_loading_info=True, **settings
            )
    except _LOAD_ERRORS as error:
        raise EvaluationError(
            f"{model_dir}: cannot be loaded as {kind} ({_first_line(error)}); "
            "give a folder written by 'kexue export', or export the checkpoint again"
        ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.float().to(device).eval(), {str(name) for name in info["missing_keys"]}


def require_weights(model_dir: Path, missing: set[str]) -> None:
    """Check that no weight is ``missing``.

    Raises:
        EvaluationError: If one is.
    """
    if missing:
        raise EvaluationError(
            f"{model_dir}: {len(missing)} weights are missing, first {min(missing)!r}; "
            "the model would be scored with random numbers in their place, so export the checkpoint again"
        )


def with_tokenizer(model_dir: Path, model: Any, special: tuple[str, ...]) -> LoadedHead:
    """Return ``model`` with the tokenizer in ``model_dir``, which needs the ``special`` tokens.

    Raises:
        EvaluationError: If there is no such tokenizer, or it has more tokens than the model.
    """
    tokenizer = load_model_tokenizer(model_dir, special)
    if len(tokenizer) > model.config.vocab_size:
        raise EvaluationError(
            f"{model_dir}: the tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}; "
            "give the model's own tokenizer"
        )
    return LoadedHead(model, tokenizer, model_dir)


def load_model_tokenizer(model_dir: Path, special: tuple[str, ...] = ("mask_token",)) -> Any:
    """Load the tokenizer of an exported folder.

    Raises:
        EvaluationError: If it is missing, or lacks one of the ``special`` tokens.
        ResourceError: If transformers is not installed.
    """
    runs_code = may_run_code(model_dir)
    transformers = import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model_dir, trust_remote_code=runs_code, local_files_only=True
        )
    except _LOAD_ERRORS as error:
        raise EvaluationError(
            f"{model_dir}: holds no tokenizer that can be loaded ({_first_line(error)}); export the checkpoint again"
        ) from None
    for name in special:
        if getattr(tokenizer, name) is None:
            raise EvaluationError(
                f"{model_dir}: the tokenizer has no {name}, which this evaluation needs; "
                "name it in tokenizer_config.json or special_tokens_map.json"
            )
    return tokenizer


def import_transformers() -> Any:
    """Import the transformers package.

    Raises:
        ResourceError: If it is not installed.
    """
    try:
        import transformers  # noqa: PLC0415  # a door: evaluation's only use of transformers, and seconds to import
    except ImportError:
        raise ResourceError(
            "transformers is not installed, which loading an exported model needs; "
            "install it with pip install 'kexue_train[train]'"
        ) from None
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence transformers, whose bars and tables of unused weights would disturb the stage's own display."""
    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_with_head(model_dir: Path, auto_class: str, num_labels: int, *, seed: int, **settings: Any) -> Any:
    """Load the encoder in ``model_dir`` under a fresh head, in fp32, on the best device here.

    Args:
        model_dir: Exported model, or any that ``auto_class`` of transformers opens.
        auto_class: Such as ``AutoModelForSequenceClassification``.
        num_labels: Outputs of the head.
        seed: Fixes the head.
        settings: Replace those of its configuration.

    Raises:
        EvaluationError: If the folder holds no such model, or lacks weights of the encoder.
        ResourceError: If transformers is not installed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, missing = load_pretrained(
            model_dir, auto_class, f"a model that {auto_class} opens", num_labels=num_labels, **settings
        )
    body = f"{model.base_model_prefix}."
    require_weights(model_dir, {name for name in missing if name.startswith(body) and ".pooler." not in name})
    return model


def with_fresh_weights(model: Any, *, seed: int) -> Any:
    """Return a model of the same class and sizes that has learnt nothing, on the same device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(copy.deepcopy(model.config)).float().to(model.device).eval()


def refuse_other_contents(folders: Iterable[Path], *, option: str = "--save") -> None:
    """Refuse to save models where something else lies; those of an earlier training are written over.

    ``option`` is the one that names the folder, for the message.

    Raises:
        EvaluationError: If one of the folders is a file, or holds other things and no model.
    """
    for folder in folders:
        if folder.is_dir() and (not any(folder.iterdir()) or any((folder / name).exists() for name in _MODEL_FILES)):
            continue
        if os.path.lexists(folder) or folder.parent.is_file():
            raise EvaluationError(
                f"{folder}: would take the place of something that is no model and is left alone; give an empty or new "
                f"folder with {option}"
            )


def save_encoder(model: Any, tokenizer: Any, folder: Path, names: Sequence[str]) -> None:
    """Write a fine-tuned model, its tokenizer and the ``names`` of its labels as a folder for ``from_pretrained``."""
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    let_umask_decide(folder)
