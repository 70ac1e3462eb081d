"""What is in the pictures of the documents; ``draw_documents.py`` draws them."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Box(NamedTuple):
    """A box: where on the grid, its name, and what is said below the name."""

    column: float
    row: float
    name: str
    text: str = ""
    colour: str = "plain"
    width: float = 1


class Arrow(NamedTuple):
    """From the box of one name to that of another."""

    start: str
    end: str


class Picture(NamedTuple):
    title: str
    boxes: list[Box]
    arrows: list[Arrow]


def chain(*names: str) -> list[Arrow]:
    """Return arrows from each box to the next."""
    return [Arrow(start, end) for start, end in pairwise(names)]


PICTURES = {
    "tutorials/own_chinese_encoder": Picture(
        "Each command leaves a folder that the next one reads",
        [
            Box(0, 0, "corpus/", "your texts", "data"),
            Box(1, 0, "my-encoder/", "kexue init", "data"),
            Box(2, 0, "runs/my-encoder/", "kexue pipeline", "train"),
            Box(3, 0, "hf/", "the encoder", "result"),
            Box(4, 0, "published/", "kexue publish", "result"),
            Box(2, 1, "its answers", "kexue ask"),
            Box(3, 1, "report/", "kexue report"),
        ],
        [
            *chain("corpus/", "my-encoder/", "runs/my-encoder/", "hf/", "published/"),
            Arrow("runs/my-encoder/", "its answers"),
            Arrow("runs/my-encoder/", "report/"),
        ],
    ),
    "tutorials/domain_corpus_on_a_cluster": Picture(
        "One configuration, rehearsed on one machine and run on many",
        [
            Box(0, 0.5, "domain.yaml", "one file", "data"),
            Box(1, 0, "kexue plan", "disk, memory, time"),
            Box(1, 1, "rehearsal", "sample, small model", "train"),
            Box(2, 1, "report", "what was left out"),
            Box(3, 0, "Slurm", "sbatch", "train"),
            Box(3, 1, "Kubernetes", "kubectl", "train"),
            Box(3, 2, "Ray cluster", "kexue pipeline --ray", "train"),
            Box(4, 1, "the same model", "of seed and inputs", "result"),
        ],
        [
            Arrow("domain.yaml", "kexue plan"),
            Arrow("domain.yaml", "rehearsal"),
            Arrow("rehearsal", "report"),
            Arrow("kexue plan", "Slurm"),
            *(Arrow("report", name) for name in ("Slurm", "Kubernetes", "Ray cluster")),
            *(Arrow(name, "the same model") for name in ("Slurm", "Kubernetes", "Ray cluster")),
        ],
    ),
    "tutorials/continue_from_published_weights": Picture(
        "Published weights, and what your texts make of them, scored on the same rows",
        [
            Box(0, 0, "published weights", "TensorFlow, PyTorch", "data"),
            Box(1, 0, "base/", "kexue import-weights", "data"),
            Box(2, 0, "before.json", "kexue evaluate mlm"),
            Box(0, 1, "corpus/", "your texts", "data"),
            Box(1, 1, "runs/continue/", "kexue pipeline", "train"),
            Box(2, 1, "hf/", "after training", "result"),
            Box(3, 1, "after.json", "kexue evaluate mlm"),
        ],
        [
            *chain("published weights", "base/", "before.json"),
            *chain("corpus/", "runs/continue/", "hf/", "after.json"),
            Arrow("base/", "runs/continue/"),
        ],
    ),
    "samples": Picture(
        "A row of samples: sequences side by side without gaps; attention stays within each",
        [
            Box(0, 0, "[CLS]", "position 0", "hidden", 0.75),
            Box(0.75, 0, "A", "a passage", "data", 1),
            Box(1.75, 0, "[SEP]", "segment 0", "hidden", 0.75),
            Box(2.5, 0, "B", "the next passage", "data", 1),
            Box(3.5, 0, "[SEP] ", "segment 1", "hidden", 0.75),
            Box(4.25, 0, "the next sequence", "from position 0", "plain", 1),
            Box(0, 1, "next sentence", "0: B follows, 1: random", "result", 1.25),
            Box(2.25, 1, "masked words", "all pieces of a word together", "train", 1.5),
        ],
        [Arrow("[CLS]", "next sentence"), Arrow("B", "masked words")],
    ),
    "model": Picture(
        "RoFormerV2: no biases, no gains; positions turn queries and keys in every layer",
        [
            Box(0, 0, "word table", "+ segments, norm", "data"),
            Box(1, 0, "q, k, v", "q and k are rotated", "train"),
            Box(2, 0, "attention", "within a sequence", "train"),
            Box(3, 0, "add, norm", "post-norm, RMS", "train"),
            Box(3, 1, "feed-forward", "d → 4d → d", "train"),
            Box(2, 1, "add, norm ", "N layers in all", "train"),
            Box(1, 1, "heads", "words, next sentence", "result"),
            Box(0, 1, "scores of words", "the word table again", "data"),
        ],
        [
            *chain("word table", "q, k, v", "attention", "add, norm", "feed-forward", "add, norm ", "heads"),
            Arrow("heads", "scores of words"),
        ],
    ),
    "tiger": Picture(
        "Each gradient is folded into the momentum and freed; the weights move once a step",
        [
            Box(0, 0, "micro-batch 1", "gradient g₁", "data"),
            Box(1, 0, "micro-batch 2", "gradient g₂", "data"),
            Box(2, 0, "micro-batch k", "gradient gₖ", "data"),
            Box(0, 1, "fold in g₁", "m ← β m + (1−β)/k · g₁", "train"),
            Box(1, 1, "fold in g₂", "m ← m + (1−β)/k · g₂", "train"),
            Box(2, 1, "fold in gₖ", "m ← m + (1−β)/k · gₖ", "train"),
            Box(3, 1, "step", "θ ← θ − α sign(m) …", "result"),
        ],
        [
            *(Arrow(f"micro-batch {n}", f"fold in {g}") for n, g in (("1", "g₁"), ("2", "g₂"), ("k", "gₖ"))),
            *chain("fold in g₁", "fold in g₂", "fold in gₖ", "step"),
        ],
    ),
    "training": Picture(
        "What a step reads is a function of seed and step, so a resumed training reads the same rows",
        [
            Box(0, 0, "sample shards", "rows of slots", "data"),
            Box(1, 0, "rows of step t", "a pure function", "data"),
            Box(2, 0, "masks", "of seed, epoch, row", "data"),
            Box(3, 0, "forward, backward", "k micro-batches", "train"),
            Box(4, 0, "optimizer step", "all ranks the same", "train"),
            Box(4, 1, "checkpoint", "weights, momentum, t", "result"),
            Box(3, 1, "metrics", "loss, speed, events", "result"),
            Box(1, 1, "resume at t", "other machines, too"),
        ],
        [
            *chain("sample shards", "rows of step t", "masks", "forward, backward", "optimizer step", "checkpoint"),
            Arrow("forward, backward", "metrics"),
            Arrow("resume at t", "rows of step t"),
        ],
    ),
    "supervised": Picture(
        "Labelled tasks and masked words train one encoder; each micro-batch belongs to one task",
        [
            Box(0, 0, "masked words", "of the pretraining", "data"),
            Box(0, 1, "labelled task 1", "its files", "data"),
            Box(0, 2, "labelled task 2", "its files", "data"),
            Box(1, 1, "mix", "exact shares", "plain"),
            Box(2, 1, "one encoder", "from pretraining", "train"),
            Box(3, 0, "word head", "", "train"),
            Box(3, 1, "head of task 1", "", "train"),
            Box(3, 2, "head of task 2", "", "train"),
            Box(4, 1, "loss", "weighted by task", "result"),
        ],
        [
            *(Arrow(name, "mix") for name in ("masked words", "labelled task 1", "labelled task 2")),
            Arrow("mix", "one encoder"),
            *(Arrow("one encoder", name) for name in ("word head", "head of task 1", "head of task 2")),
            *(Arrow(name, "loss") for name in ("word head", "head of task 1", "head of task 2")),
        ],
    ),
}
