"""One of two versions whose training steps are timed in turn: ``cpu_step_side.py JSON``, run by ``cpu_step.py``.

Whatever version of the repository ``PYTHONPATH`` names is measured, so this takes nothing that earlier ones lack. It
answers every line of its input with one of JSON: the seconds that the process has worked on one step.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import torch

from benchmarks.encoder_data import made_up_rows, micro_batches
from kexue_train.foundation.runtime import keep_freed_memory
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.modeling_roformer_v2 import sequence_starts
from kexue_train.model.recompute import enable_recompute
from kexue_train.optim.build import build_optimizer
from kexue_train.optim.config import OptimizerConfig
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.engine import TorchEngine
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import PretrainingObjective

_BATCHES, _MASKED_SHARE, _SEED = 4, 0.15, 0


def main() -> None:
    """Build the training that the argument describes, and do a step whenever a line comes."""
    given = json.loads(sys.argv[1])
    keep_freed_memory()  # as a training does
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    width, rows, seq_len = given["width"], given["rows"], given["seq_len"]
    shape = ModelConfig(
        num_hidden_layers=given["layers"], hidden_size=width, num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        max_position_embeddings=seq_len,
    )  # fmt: skip
    name, share = given["precision"], None
    if name == "auto":
        from kexue_train.train.precision import bf16_share, takes_bf16  # noqa: PLC0415  # earlier versions lack it

        share = bf16_share(shape, rows, seq_len, torch.device("cpu"))
        name = "bf16" if takes_bf16(share) else "fp32"
    model = RoFormerV2ForPreTraining(build_hf_config(shape, given["vocab"]))
    if given["recompute"] != "none":
        enable_recompute(model.roformer, given["recompute"])
    heads = pretraining_heads(ObjectiveConfig(nsp_weight=0.5))
    objective = PretrainingObjective(model, heads, autocast=torch.bfloat16 if name == "bf16" else None)
    objective.expected = [rows * seq_len * _MASKED_SHARE, 2.0 * rows]
    optimizer = build_optimizer(OptimizerConfig(), model, accumulation_steps=given["accumulation"], seed=_SEED)
    engine = TorchEngine(objective, optimizer)
    made = made_up_rows(rows * _BATCHES, seq_len=seq_len, vocab_size=given["vocab"])
    batches = [batch.packed for batch in micro_batches(made, rows, seq_len, torch.device("cpu"))]
    for batch in batches:
        batch["sequence_starts"] = sequence_starts(batch["sequence_ids"]).int()
    done = 0
    for _ in sys.stdin:
        before = time.process_time()
        for _ in range(given["accumulation"]):
            engine.micro_step(batches[done % _BATCHES])
            done += 1
        _say(seconds=time.process_time() - before)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    _say(precision=name, share=share, weights=digest)


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
