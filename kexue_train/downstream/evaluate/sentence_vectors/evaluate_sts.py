"""Score a model's sentence vectors on sets of pairs; a set that fails is reported next to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.evaluate.sentence_vectors.score_set import WhiteningChoice, score_baselines, score_vectors
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import StsSet, read_set
from kexue_train.downstream.load_model import LoadedHead, load_encoder
from kexue_train.downstream.results.result import TASK_ERRORS, mean_columns, reason_of
from kexue_train.downstream.results.similarity import StsFailure, StsResults, StsSetResult
from kexue_train.downstream.settings import POOLINGS, SENTENCE_LENGTH, Pooling
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

_UNREADABLE = 0.5  # a larger share of unknown tokens, and the vectors tell little of the words


def evaluate_sts(
    model_dir: Path,
    data: Path,
    sets: Mapping[str, StsSet],
    *,
    poolings: Sequence[Pooling] = POOLINGS,
    whitening: WhiteningChoice | None = None,
    max_length: int = SENTENCE_LENGTH,
    progress: Progress = SILENT,
) -> StsResults:
    """Compare the order of cosines with that of the scores, for every set and pooling, plain and whitened.

    Args:
        model_dir: Any model that ``AutoModel`` opens, with its tokenizer.
        data: Folder that holds the sets.
        sets: Name -> set.
        poolings: How states become a vector.
        whitening: Of which kind; by default fitted on the sentences of each set.
        max_length: Tokens of a sentence, never more than the model was made for.
        progress: Receives tokens done.

    Raises:
        EvaluationError: If the model cannot be loaded.
    """
    loaded = load_encoder(model_dir)
    max_length = loaded.fitting(max_length)
    evaluation = _Evaluation(loaded, data, poolings, whitening or WhiteningChoice(), max_length, progress)
    results = []
    for name, entry in sets.items():
        results.append(evaluation.of(name, entry))
        progress.note(_in_words(results[-1]))
    return StsResults(
        model_type=loaded.model_type,
        parameters=loaded.parameters,
        max_length=max_length,
        sets=results,
        means=means_of(results),
    )


def means_of(results: Sequence[StsSetResult]) -> dict[str, dict[str, float]]:
    """Return the means of every column that has a value for all sets: by language, and ``all`` if there are several."""
    languages = dict.fromkeys(result.language for result in results)
    groups = {name: [result for result in results if result.language == name] for name in languages if name}
    if len(languages) > 1 or not groups:
        groups["all"] = list(results)
    return {name: mean_columns([result.columns for result in group]) for name, group in groups.items()}


@dataclass(frozen=True)
class _Evaluation:
    """What is the same for all sets."""

    loaded: LoadedHead
    data: Path
    poolings: Sequence[Pooling]
    whitening: WhiteningChoice
    max_length: int
    progress: Progress

    def of(self, name: str, entry: StsSet) -> StsSetResult:
        """Evaluate one set; what was found before a failure is kept."""
        published = {title: value / 100 for title, value in entry.published.items()}
        found: dict[str, Any] = {"name": name, "language": entry.language, "published": published, "failures": []}
        try:
            self._score(name, entry, found)
        except TASK_ERRORS as error:
            found["failures"].append(StsFailure(column=None, error=reason_of(error)))
        return StsSetResult(**found)

    def _score(self, name: str, entry: StsSet, found: dict[str, Any]) -> None:
        pairs = read_set(name, entry, self.data)
        found |= {"pairs": len(pairs.indices), "sentences": len(pairs.sentences)}
        found["baselines"], failures = score_baselines(pairs)
        found["failures"] += failures
        sentences = Sentences.read(self.loaded.tokenizer, pairs.sentences, self.max_length)
        found |= {"cut": sentences.num_cut, "unknown_rate": sentences.unknown_rate}
        if sentences.unknown_rate > _UNREADABLE:
            raise EvaluationError(
                f"{sentences.unknown_rate:.0%} of the tokens are unknown to the model, so it cannot read this language"
            )
        vectors = encode_sentences(
            self.loaded,
            sentences,
            self.poolings,
            on_tokens=lambda done, total: self.progress.update(done, total, f"tokens of {name}"),
        )
        found["scores"], failures = score_vectors(pairs, vectors, self.whitening)
        found["failures"] += failures


def _in_words(result: StsSetResult) -> str:
    found = [f"{name} {value:.3f}" for name, value in result.own_columns.items()]
    failed = [f"{failure.column or 'set'} failed: {failure.error}" for failure in result.failures]
    return f"{result.name}: " + "; ".join(found + failed)
