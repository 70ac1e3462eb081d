"""Load an exported model the way a user does, and say clearly what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kexue_train.errors import EvaluationError, ResourceError

_MODEL_TYPE = "roformer_v2"
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


def load_model(model_dir: Path) -> LoadedModel:
    """Load ``model_dir`` with its own modelling code; nothing is downloaded.

    Raises:
        EvaluationError: If the folder holds no model, another kind of model, or one with missing weights.
        ResourceError: If transformers is not installed.
    """
    if not (model_dir / "config.json").is_file():
        raise EvaluationError(
            f"{model_dir}: no config.json, so no Hugging Face model; "
            "give the folder 'hf' of a run or a checkpoint 'step-...'"
        )
    transformers = import_transformers()
    try:
        with _no_progress_bar(transformers):
            model, info = transformers.AutoModelForPreTraining.from_pretrained(
                model_dir, trust_remote_code=True, local_files_only=True, output_loading_info=True
            )
    except _LOAD_ERRORS as error:
        raise EvaluationError(
            f"{model_dir}: cannot be loaded as a model with MLM and NSP heads ({_first_line(error)}); "
            "give a folder written by 'kexue export', or export the checkpoint again"
        ) from None
    if model.config.model_type != _MODEL_TYPE:
        raise EvaluationError(
            f"{model_dir}: a model of type {model.config.model_type!r}, "
            f"but only {_MODEL_TYPE!r} can score packed sample rows; give a folder written by 'kexue export'"
        )
    missing = {str(name) for name in info["missing_keys"]}
    without_nsp = {name for name in missing if name.startswith("cls.next_sentence.")}
    if missing - without_nsp:
        raise EvaluationError(
            f"{model_dir}: {len(missing - without_nsp)} weights are missing, first {min(missing - without_nsp)!r}; "
            "the model would be scored with random numbers in their place, so export the checkpoint again"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return LoadedModel(model.float().to(device).eval(), device, has_nsp_head=not without_nsp)


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer in an exported folder.

    Raises:
        EvaluationError: If there is none, or it has no mask token.
        ResourceError: If transformers is not installed.
    """
    transformers = import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, trust_remote_code=True, local_files_only=True)
    except _LOAD_ERRORS as error:
        raise EvaluationError(
            f"{model_dir}: holds no tokenizer that can be loaded ({_first_line(error)}); export the checkpoint again"
        ) from None
    if tokenizer.mask_token_id is None:
        raise EvaluationError(f"{model_dir}: the tokenizer has no mask token, so no masked sentence can be completed")
    return tokenizer


def import_transformers() -> Any:
    """The transformers package.

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
def _no_progress_bar(transformers: Any) -> Iterator[None]:
    """Transformers draws a bar on standard error, through the stage's own progress display."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
