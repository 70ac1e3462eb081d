"""Pairs of sentences -> a folder that writes paraphrases, and whose [CLS] vectors compare sentences."""

from __future__ import annotations

import math
from pathlib import Path

from kexue_train.downstream.evaluate.sentence_vectors.sentence_transformers_folder import write_modules
from kexue_train.downstream.finetune.dropout import dropout_settings
from kexue_train.downstream.finetune.loop import fit
from kexue_train.downstream.finetune.paraphrase.pairs import Pairs, in_words, read_pair_splits
from kexue_train.downstream.finetune.paraphrase.problem import ParaphraseProblem
from kexue_train.downstream.load_model import LoadedHead, refuse_other_contents
from kexue_train.downstream.paraphrase.writer import load_with_prefix_mask
from kexue_train.downstream.results.paraphrase import ParaphraseResults, ParaphraseScores
from kexue_train.downstream.sequences import Reader
from kexue_train.downstream.settings import ParaphraseSettings
from kexue_train.foundation.artifacts import let_umask_decide
from kexue_train.foundation.errors import EvaluationError, TrainingError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.model.hf_folder import write_hf_folder

_USAGE = """
## Paraphrases

```sh
kexue paraphrase {name} "a sentence" -n 20
```
"""


def train_writer(
    model_dir: Path,
    data: Path,
    out: Path,
    settings: ParaphraseSettings,
    *,
    dev: Path | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ParaphraseResults:
    """Train a RoFormerV2 with an MLM head to paraphrase and to compare, and save it.

    Args:
        model_dir: Exported model.
        data: JSON Lines (.gz too): ``text_a``, ``text_b``, which mean the same.
        out: Receives the model, for ``kexue paraphrase``, transformers and sentence-transformers.
        settings: How it is trained.
        dev: The same for the pairs that choose the epoch and are scored; by default a tenth of ``data``.
        seed: Fixes the order of the pairs and dropout.
        progress: Receives steps done.

    Raises:
        EvaluationError: If the model, a file or a pair cannot be used, or ``out`` holds something else.
        TrainingError: If the loss is not finite.
    """
    if out.resolve() == model_dir.resolve():
        raise EvaluationError(f"{out}: is the model to train itself; give another folder with --out")
    refuse_other_contents([out], option="--out")
    splits = read_pair_splits(data, dev, settings)
    loaded = load_with_prefix_mask(model_dir, **dropout_settings(model_dir, settings.fit.dropout))
    max_length = loaded.fitting(2 * settings.max_length) // 2
    train, scored = (Pairs.read(records, loaded.tokenizer, max_length) for records in (splits.train, splits.dev))
    if min(len(train.sides), len(scored.sides)) < 2:
        raise EvaluationError(
            f"{data}: {len(train.sides)} pairs to learn from, {len(scored.sides)} to score; a pair needs others to be "
            "told from, so give two or more of each"
        )
    left_out = train.left_out + scored.left_out
    if left_out:
        progress.note(f"pairs left out: {in_words(left_out)}")
    problem = ParaphraseProblem(
        loaded, train, scored, settings.scale, settings.fit.batch_size, Reader(loaded.tokenizer, 2 * max_length)
    )
    before, after = problem.score(), list[ParaphraseScores]()

    def score() -> float:
        after.append(problem.score())
        if not math.isfinite(after[-1].loss):
            raise TrainingError(
                f"the loss of the held-out pairs is {after[-1].loss} after epoch {len(after)}; lower the learning rate "
                f"{settings.fit.lr}"
            )
        return -after[-1].loss

    found = fit(
        loaded.model,
        len(train.sides),
        problem.loss,
        settings.fit,
        seed=seed,
        score=score,
        on_step=lambda done, total: progress.update(done, total, "steps"),
    )
    _save(loaded, out, max_length)
    return ParaphraseResults(
        parameters=loaded.parameters,
        records={"train": len(train.sides), "dev": len(scored.sides)},
        left_out=dict(left_out),
        is_dev_held_out=splits.is_dev_held_out,
        max_length=max_length,
        scale=settings.scale,
        seed=seed,
        fit=settings.fit,
        losses=found.losses,
        best_epoch=found.best_epoch,
        before=before,
        after_epochs=after,
    )


def _save(loaded: LoadedHead, folder: Path, max_length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_hf_folder(loaded.model, folder, loaded.folder)
    write_modules(folder, folder.name, loaded.model.config, pooling="cls", max_length=max_length)
    with (folder / "README.md").open("a", encoding="utf-8") as readme:
        readme.write(_USAGE.format(name=folder.name))
    let_umask_decide(folder)
