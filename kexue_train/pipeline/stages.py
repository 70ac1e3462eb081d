"""All stages of a run, in data order. A new stage is one more entry, one more section and one more line of the flow."""

from __future__ import annotations

from kexue_train.corpus.installed_docs import CORPUS
from kexue_train.downstream.evaluate.evaluate_model import EVALUATE
from kexue_train.export.stage import EXPORT
from kexue_train.foundation.stage import Stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.report.build_report import report_on
from kexue_train.samples.build_samples import SAMPLES
from kexue_train.samples.tokenizer import TOKENIZER
from kexue_train.shuffle.shuffle_corpus import SHUFFLE
from kexue_train.supervised.stage import SUPERVISE
from kexue_train.train.stage import TRAIN

_REPORTED: tuple[Stage[RunConfig], ...] = (
    CORPUS,
    SHUFFLE,
    TOKENIZER,
    SAMPLES,
    TRAIN,
    SUPERVISE,
    EXPORT,
    EVALUATE,
)
REPORT: Stage[RunConfig] = report_on(_REPORTED)

STAGES: tuple[Stage[RunConfig], ...] = (*_REPORTED, REPORT)
"""The type says that a run configuration has every section that a stage reads."""


def stages_of(config: RunConfig) -> tuple[Stage[RunConfig], ...]:
    """Return the stages that a run with ``config`` has, in order."""
    return tuple(stage for stage in STAGES if stage.is_wanted(config))
