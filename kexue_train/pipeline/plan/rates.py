"""Measured rates that estimates rest on. Each is explained, with its machine and date, in ``benchmarks/RESULTS.md``.

Unless said otherwise they are of one CPU (half of a machine with 2 cores, AMD EPYC), without a GPU.
"""

from __future__ import annotations

import math

CORPUS_BYTES_PER_SECOND = 0.41e6
"""Installed documentation, in one process whatever the CPUs ("demo run"): 16.0 MB in 38.9 s."""

SHUFFLE_BYTES_PER_CPU_SECOND = 62e6
"""JSON Lines, 512 MB of memory ("the shuffle beside its peers"): 121 to 127 MB/s on 2 cores."""
SHUFFLE_BYTES_PER_DISK_SECOND = 185e6
"""``dd`` twice on the same disk, in bytes of input: a machine's disk may allow no more, whatever its CPUs."""
START_SECONDS = 4.0
"""A local Ray, its first tasks, the end ("demo run": 4.8 s for a shuffle of 15.5 MB)."""

TOKENIZER_BYTES_PER_SECOND = 2.3e6
"""WordPiece of 8,192 pieces ("demo run"): 15.3 MB in 6.8 s, most of it words that were new."""

SAMPLE_BYTES_PER_CPU_SECOND = 3.0e6
"""Chinese, the slower language ("the sample stage and the loader"): 109 MB in 18.0 s on 2 workers."""
SAMPLE_MEMORY_PER_TEXT_BYTE = 4.2
"""Of a task, per byte of its shard: 1.14 GB for 273 MB of Chinese ("the sample stage and the loader")."""
SLOTS_PER_TEXT_BYTE = 0.297
"""Of sample rows: 35,914 rows of 128 for 15.5 MB of English, vocabulary 8,192, pairs ("demo run")."""
ROW_BYTES_PER_ROW = 27
"""Borders, labels and the like of a row, beside its ids and word starts ("demo run")."""

EXPORT_BYTES_PER_SECOND = 27e6
"""Writing, loading again and comparing: 12 MB in 0.44 s ("demo run")."""
REPORT_SECONDS = 0.4
"""("demo run")"""

WORKER_BYTES = 1.35e9
"""Resident memory of a training worker beside model and activations: Python, PyTorch, DeepSpeed ("demo run")."""
CHECKPOINT_EXTRA_BYTES = 0.3e6
"""Tokenizer and settings in every checkpoint and export ("demo run")."""

FLOAT_BYTES = 4
KEPT_BYTES = {"none": 102.0, "selective": 35.9, "full": 4.0}
"""Kept by one layer per token and unit of width after forward, fp32 with dropout, feed-forward four times as wide ("the
encoder", recomputation): the slopes from 6 to 24 layers."""
KEPT_BESIDE_LAYERS = 2 * KEPT_BYTES["none"]
"""The same for embeddings and heads, and for the layer that backward is in: the table's peaks within a sixth."""
RECOMPUTE_SLOWDOWN = {"none": 1.0, "selective": 1.23, "full": 1.4}
"""("the encoder", recomputation)"""

_NARROW, _WIDE = (192, 41e9), (768, 65e9)
"""Width of the model, useful operations per second of one CPU in fp32 without recomputation: the demo's 5,850
tokens/s with its recomputation taken off, and base size at 233 tokens/s ("the encoder")."""


def cpu_flops_per_second(hidden_size: int) -> float:
    """Useful operations of one CPU in training, on a line through log(width) of the model, flat outside."""
    (low, slow), (high, fast) = _NARROW, _WIDE
    share = math.log(hidden_size / low) / math.log(high / low)
    return slow + (fast - slow) * min(1.0, max(0.0, share))
