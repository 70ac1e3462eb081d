"""READ FIRST. The whole run in data order, one line per stage: what it reads, and why it exists.

Run it: ``python -m flows.pretrain_pipeline configs/demo.yaml [--run-dir DIR] [--fresh] [section.key=value ...]``
Each name below is the Prefect task around a ``Stage``, which is defined next to the function that does the work. Each
line returns a folder. Sizes and times are those of configs/demo.yaml on 2 cores (benchmarks/RESULTS.md, "demo run").
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import flow

from flows.artifacts import show_summary
from flows.command import run_flow
from flows.context import found_complete, run_context, run_name
from flows.tasks import corpus, evaluate, export, report, samples, shuffle, supervise, tokenizer, train
from kexue_train.cli.ending import print_ending
from kexue_train.pipeline.stages import EVALUATE, STAGES, SUPERVISE, TRAIN


@flow(name="pretrain-pipeline", flow_run_name=run_name, persist_result=False)
def pretrain_pipeline(
    config_path: Path,
    run_dir: Path | None = None,
    overrides: list[str] | None = None,
    ray_address: str | None = None,
    fresh: bool = False,
) -> Any:
    """Raw text in, a pretrained encoder with its report out; safe to interrupt, run the same command to resume.

    Args:
        config_path: YAML file of the run, as a path on the machine where the flow runs.
        run_dir: Run folder; by default ``runs/NAME``.
        overrides: ``section.key=value`` pairs that replace values of the file.
        ray_address: HOST:PORT of a running Ray cluster; by default the value in the file.
        fresh: Empty the run folder and start over.
    """
    with run_context(STAGES, config_path, run_dir, overrides, ray_address, fresh) as run:
        # The text: files as given, or the documentation installed here. Demo: 4,899 documents, 16.0 MB, 28 CPU s.
        documents = corpus(run)
        # Uniform random order on disk: every order is equally likely. 4 shards, 15.5 MB, 5 s.
        shards = shuffle(run, documents)
        # The vocabulary, learned from the first rows of this text. 8,192 pieces of 4.4 bytes, 6 s.
        vocabulary = tokenizer(run, shards)
        # Rows of one length, full of sentence pairs; the first are held out. 35,804 rows of 128 tokens, 10.7 MB, 2 s.
        rows = samples(run, shards, vocabulary)
        # The encoder, saved in checkpoints. 2.9 million weights, 1,800 steps, 3.7 million tokens, minutes.
        weights = train(run, rows)
        # Labelled tasks and masked words together, in runs with a section "supervised"; the demo has none.
        further = supervise(run, shards, rows, weights) if SUPERVISE.is_wanted(run.run.config) else None
        # The last checkpoint as a Hugging Face folder with the same outputs. 12 MB, 0.3 s.
        model = export(run, weights, further)
        # The quality of the model on rows that training never read. Loss 4.7 nats; 6.2 without context; 4 s.
        scores = evaluate(run, model, rows)
        # One page about the whole run. 0.1 s.
        report(run, scores)
        show_summary(run.folder.root)
    return run.completed(TRAIN, EVALUATE)


def main(arguments: list[str] | None = None) -> int:
    """Run the flow from a shell; return the exit code."""
    return run_flow(pretrain_pipeline, arguments, find_complete=found_complete, ending=print_ending)


if __name__ == "__main__":
    sys.exit(main())
