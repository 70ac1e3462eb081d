"""Portable checkpoints: a Hugging Face model folder plus the optimizer's state and where training was.

engine.full_tensors → writer (host copy, then a thread) → folder (format, retention) → mirror (a thread) → storage
FullTensors.overwrite ← latest (restore; the newest whole one of folder and storage)
"""

from kexue_train.train.checkpoint.events import Events
from kexue_train.train.checkpoint.folder import CheckpointFolder, Retention, list_checkpoints
from kexue_train.train.checkpoint.format import (
    FullTensors,
    TrainerState,
    checkpoint_name,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    step_of,
)
from kexue_train.train.checkpoint.latest import Restored, latest_checkpoint, restore
from kexue_train.train.checkpoint.mirror import Mirror
from kexue_train.train.checkpoint.storage import Storage
from kexue_train.train.checkpoint.writer import CheckpointWriter

__all__ = [
    "CheckpointFolder",
    "CheckpointWriter",
    "Events",
    "FullTensors",
    "Mirror",
    "Restored",
    "Retention",
    "Storage",
    "TrainerState",
    "checkpoint_name",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "read_checkpoint",
    "restore",
    "save_checkpoint",
    "step_of",
]
