"""Who takes part in the comparison of time to quality: ours, the peers, and ours with one part exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.optimizer_training import Rule
from benchmarks.padded_batches import one_sequence_per_row
from benchmarks.quality_ablations import SinglePieces, draw_as_bert, learn_positions
from benchmarks.quality_learners import Learner, Ours, Task, bert, modernbert, roformer
from kexue_train.batches.dataset import SampleDataset

TIGER, ADAMW = Rule("tiger", 0.965), Rule("adamw")


@dataclass(frozen=True, slots=True)
class Contender:
    """An encoder with its optimizer."""

    name: str
    title: str
    make: Callable[[Task, SampleDataset], Learner]
    rule: Rule = TIGER
    lrs: tuple[float, ...] = ()
    """Learning rates of which the best one is taken; empty: that of ``OURS[0]``."""
    reads: Callable[[SampleDataset], SampleDataset] = lambda dataset: dataset
    """What it is trained on; all are scored on the same rows."""


OURS = (
    Contender("ours", "kexue_train, Tiger", Ours, TIGER, (2.5e-3, 5e-3, 1e-2)),
    Contender("ours-adamw", "kexue_train, AdamW", Ours, ADAMW, (1e-3, 2e-3, 4e-3)),
)
PEERS = (
    Contender("bert", "BERT, AdamW", bert, ADAMW, (5e-4, 1e-3, 2e-3)),
    Contender("roformer", "RoFormer, AdamW", roformer, ADAMW, (5e-4, 1e-3, 2e-3)),
    Contender("modernbert", "ModernBERT, AdamW", modernbert, ADAMW, (5e-4, 1e-3, 2e-3)),
)
ABLATIONS = (
    Contender("positions", "learnt positions for RoPE", partial(Ours, change=learn_positions)),
    Contender("init", "initialised as BERT", partial(Ours, change=draw_as_bert)),
    Contender("unpacked", "one sequence per row, padded", partial(Ours, prepare=one_sequence_per_row)),
    Contender("pieces", "pieces hidden one by one", Ours, reads=SinglePieces),
    Contender("no-nsp", "no next sentences", partial(Ours, nsp_weight=0.0)),
)
"""The optimizer is the sixth: ``ours-adamw``."""
EVERYBODY = {contender.name: contender for contender in (*OURS, *PEERS, *ABLATIONS)}
