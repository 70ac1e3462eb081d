"""Keep a trained encoder of sentence vectors."""

from __future__ import annotations

from pathlib import Path

from kexue_train.downstream.evaluate.sentence_vectors.sentence_transformers_folder import (
    write_sentence_transformers_folder,
)
from kexue_train.downstream.load_model import LoadedHead
from kexue_train.downstream.settings import Pooling
from kexue_train.foundation.artifacts import let_umask_decide


def save_vector_encoder(loaded: LoadedHead, folder: Path, pooling: Pooling, max_length: int) -> None:
    """Write a trained encoder with its pooling as a folder that sentence-transformers opens."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sentence_transformers_folder(
        loaded, folder, folder.name, pooling=pooling, max_length=max_length, has_new_weights=True
    )
    let_umask_decide(folder)
