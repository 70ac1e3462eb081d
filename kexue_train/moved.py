"""Modules that have moved: the names of before lead to the new ones for one release, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_FOUNDATION = (
    "errors", "config", "runtime", "progress", "counter_rng", "background", "artifacts", "run_dir", "write_behind",
    "arrow_shards",
)  # fmt: skip
_DOWNSTREAM = {
    "evaluate.json_text": "results.files",
    "evaluate.attribution.drawing": "results.explanation",
    "evaluate.zero_shot.results": "results.zero_shot",
    "evaluate.sentence_vectors.results": "results.similarity",
    "finetune.fit_settings": "settings",
    "finetune.tasks.results": "results.fine_tuning",
    "finetune.sentence_vectors.results": "results.trained_vectors",
    "evaluate.load_model": "load_model",
    "finetune.tasks.encoders": "load_model",
    "evaluate.zero_shot.records": "task_files",
    "evaluate.sequences": "sequences",
    "finetune.tasks.inputs": "sequences",
    "evaluate.masked_sentences": "evaluate.masked_words",
    "evaluate.attribution": "evaluate",
    "evaluate.zero_shot.layout": "evaluate.zero_shot.prompt_scores",
    "evaluate.zero_shot.next_sentence": "evaluate.zero_shot.prompt_scores",
    "evaluate.zero_shot.pet": "evaluate.zero_shot.prompt_scores",
    "evaluate.zero_shot.answer_task": "evaluate.zero_shot.evaluate_tasks",
    "evaluate.sentence_vectors.pooling": "evaluate.sentence_vectors.encode_sentences",
    "evaluate.sentence_vectors.moments": "evaluate.sentence_vectors.whitening",
    "evaluate.sentence_vectors.baselines": "evaluate.sentence_vectors.score_set",
    "evaluate.sentence_vectors.choices": "evaluate.sentence_vectors.score_set",
    "finetune.tasks.make_problem": "finetune.harness",
    "finetune.tasks.entities": "finetune.tasks.tagging",
    "finetune.tasks.answer_scores": "finetune.tasks.reading",
    "finetune.sentence_vectors.losses": "finetune.sentence_vectors.bi_encoder",
    "finetune.sentence_vectors.likeness": "finetune.sentence_vectors.similarity",
    "finetune.sentence_vectors.vector_settings": "settings",
    "finetune.sentence_vectors.train_on_set": "finetune.sentence_vectors.train_vectors",
}
MOVED = {f"kexue_train.{name}": f"kexue_train.foundation.{name}" for name in _FOUNDATION}
MOVED |= {f"kexue_train.{old}": f"kexue_train.downstream.{new}" for old, new in _DOWNSTREAM.items()}
MOVED |= {
    "kexue_train.cli_evaluate": "kexue_train.cli.evaluate",
    "kexue_train.cli_finetune": "kexue_train.cli.finetune",
    "kexue_train.terminal": "kexue_train.cli.terminal",
    "kexue_train.doctor": "kexue_train.cli.doctor",
    "kexue_train.stage_result": "kexue_train.pipeline.run",
    "kexue_train.completion": "kexue_train.pipeline.run",
    "kexue_train.pipeline.stage_result": "kexue_train.pipeline.run",
    "kexue_train.pipeline.completion": "kexue_train.pipeline.run",
    "kexue_train.refresh": "kexue_train.pipeline.refresh",
    "kexue_train.run_config": "kexue_train.pipeline.run_config",
    "kexue_train.plan": "kexue_train.pipeline.plan",
    "kexue_train.train.feed": "kexue_train.train.data",
    "kexue_train.train.tensors": "kexue_train.train.data",
    "kexue_train.train.faults.supervise": "kexue_train.train.restarts",
    "kexue_train.train.faults.agreement": "kexue_train.train.agreement",
    "kexue_train.train.local_launch": "kexue_train.train.launch",
    "kexue_train.train.slurm": "kexue_train.train.distributed",
    "kexue_train.report.score": "kexue_train.downstream.results.result",
    "kexue_train.evaluate": "kexue_train.downstream.evaluate",
    "kexue_train.finetune": "kexue_train.downstream.finetune",
    "kexue_train.batches.slots": "kexue_train.batches.collate",
    "kexue_train.corpus.fields": "kexue_train.corpus.builder",
    "kexue_train.corpus.options": "kexue_train.corpus.records",
    "kexue_train.samples.coverage": "kexue_train.samples.tokenizer",
    "kexue_train.samples.dictionary": "kexue_train.samples.segmentation",
    "kexue_train.samples.given_vocabulary": "kexue_train.samples.bert_tokenizer",
    "kexue_train.train.monitor.metrics": "kexue_train.metrics.file",
    "kexue_train.train.monitor.happenings": "kexue_train.train.monitor.events",
    "kexue_train.train.monitor.watch": "kexue_train.train.monitor.events",
    "kexue_train.optim.clipping": "kexue_train.optim.gradients",
    "kexue_train.optim.embedding_monitor": "kexue_train.optim.embedding_rows",
    "kexue_train.optim.gradient_dropout": "kexue_train.optim.gradients",
    "kexue_train.optim.layout": "kexue_train.optim.step_sizes",
    "kexue_train.optim.library_windows": "kexue_train.optim.library",
    "kexue_train.optim.rank_average": "kexue_train.optim.ranks",
    "kexue_train.optim.scalars": "kexue_train.optim.step_sizes",
    "kexue_train.optim.schedule_config": "kexue_train.optim.schedule",
    "kexue_train.optim.seen_rows": "kexue_train.optim.embedding_rows",
    "kexue_train.optim.segments": "kexue_train.optim.partitioned",
    "kexue_train.optim.stochastic_rounding": "kexue_train.optim.random_bits",
    "kexue_train.optim.tracked": "kexue_train.optim.param_groups",
    "kexue_train.optim.weissi": "kexue_train.optim.step_sizes",
    "kexue_train.optim.windows": "kexue_train.optim.build",
}
"""Old name of a module or package -> new name."""


class MovedModules:  # the classes of importlib.abc would cost every command 10 ms
    """Imports a module, or one below it, by the name it had before."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  # the protocol's
        target: ModuleType | None = None,  # noqa: ARG002  # the same
    ) -> ModuleSpec | None:
        """A spec if ``fullname`` is an old name, else None."""
        is_old = fullname.startswith("kexue_train.") and new_name(fullname)
        return ModuleSpec(fullname, self) if is_old else None  # type: ignore[arg-type]  # it has a loader's methods

    def create_module(self, spec: ModuleSpec) -> None:  # the protocol's
        """Let the import system make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of ``module``."""
        old, new = module.__name__, new_name(module.__name__)
        warnings.warn(f"{old} has moved to {new}; the old name goes with the next release", DeprecationWarning, 2)
        sys.modules[old] = importlib.import_module(str(new))


def new_name(name: str) -> str | None:
    """The new name of the module ``name``, None if it has not moved."""
    found = max((old for old in MOVED if name == old or name.startswith(f"{old}.")), key=len, default=None)
    return MOVED[found] + name.removeprefix(found) if found else None
