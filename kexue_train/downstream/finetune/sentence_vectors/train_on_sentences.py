"""Train sentence vectors on raw sentences (SimCSE), several seeds, and score them on pairs before and after.

No score of a pair is seen: training ends after a fixed number of epochs, and the sets are scored once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.evaluate.sentence_vectors.score_set import pair_cosines, word_cosines
from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman
from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import Pairs, StsSet, choose_sets, read_set
from kexue_train.downstream.finetune.dropout import dropout_settings, require_dropout
from kexue_train.downstream.finetune.loop import Indices, fit
from kexue_train.downstream.finetune.losses import simcse_loss
from kexue_train.downstream.finetune.sentence_vectors.bi_encoder import BiEncoder
from kexue_train.downstream.finetune.sentence_vectors.raw_sentences import RawSentences, read_sentences
from kexue_train.downstream.finetune.sentence_vectors.save_vectors import save_vector_encoder
from kexue_train.downstream.load_model import LoadedHead, load_encoder, refuse_other_contents
from kexue_train.downstream.results.result import TASK_ERRORS, reason_of
from kexue_train.downstream.results.trained_vectors import (
    SentenceFacts,
    VectorFailure,
    VectorResults,
    VectorSetResult,
)
from kexue_train.downstream.results.training import SeedRun, SplitScores, spreads
from kexue_train.downstream.settings import VectorSettings
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

_MOST_UNKNOWN = 0.5


def train_on_sentences(
    model_dir: Path,
    data: Path,
    settings: VectorSettings,
    *,
    sts: Path | None = None,
    names: Sequence[str] = (),
    save: Path | None = None,
    progress: Progress = SILENT,
) -> VectorResults:
    """Train on the sentences of ``data``.

    Args:
        model_dir: Any model that ``AutoModel`` opens, with its tokenizer.
        data: A file or a folder of text files, JSON Lines or tables; documents are cut into sentences.
        settings: How; its ``loss`` is ``simcse``.
        sts: Folder that holds sets of pairs with scores; None: nothing is scored.
        names: Of the sets; by default the known ones that are there.
        save: Receives a folder for sentence-transformers, the encoder after training with seed 0.
        progress: Receives steps done.

    Raises:
        EvaluationError: If the encoder has no dropout, cannot be loaded or cannot read the sentences, or there are
            fewer than two of them.
        CorpusError: If a file cannot be read.
        ConfigError: If a set is not known.
    """
    refuse_other_contents([save] if save else [])
    chosen = choose_sets(names, sts) if sts else {}
    loaded = load_encoder(model_dir, **dropout_settings(model_dir, settings.fit.dropout))
    require_dropout(loaded.model, "--loss simcse")
    max_length = loaded.fitting(settings.max_length)
    raw = read_sentences(data, settings.max_train)
    sentences = Sentences.read(loaded.tokenizer, raw.texts, max_length)
    if sentences.unknown_rate > _MOST_UNKNOWN:
        raise EvaluationError(
            f"{data}: {sentences.unknown_rate:.0%} of the tokens are not in the vocabulary of {model_dir}, so it "
            "cannot read these sentences; give sentences in the model's language"
        )
    sets = [_Set.read(name, entry, sts, loaded, max_length) for name, entry in chosen.items() if sts]
    run = _SentenceRun(data.name, loaded, sentences, settings, max_length, save, progress)
    return run.result(sets, raw)


@dataclass
class _Set:
    """Pairs that vectors are scored on; what went wrong is kept beside what did not."""

    name: str
    pairs: Pairs | None
    sentences: Sentences | None
    failures: list[VectorFailure]

    @classmethod
    def read(cls, name: str, entry: StsSet, sts: Path, loaded: LoadedHead, max_length: int) -> _Set:
        """Read the pairs and tokenize their sentences."""
        try:
            pairs = read_set(name, entry, sts)
            return cls(name, pairs, Sentences.read(loaded.tokenizer, pairs.sentences, max_length), [])
        except TASK_ERRORS as error:
            return cls(name, None, None, [VectorFailure(what="set", error=reason_of(error))])

    def score(self, what: str, make: Callable[[Pairs, Sentences], float]) -> SplitScores | None:
        """Return what ``make`` finds, or note that ``what`` has failed."""
        if self.pairs is None or self.sentences is None:
            return None
        try:
            return {"test": {"spearman": make(self.pairs, self.sentences)}}
        except TASK_ERRORS as error:
            self.failures.append(VectorFailure(what=what, error=reason_of(error)))
            return None

    def result(
        self,
        words: SplitScores | None,
        before: SplitScores | None,
        runs: list[SeedRun],
        failed: list[VectorFailure],
        *,
        learnt: int,
    ) -> VectorSetResult:
        """Put together what was found; ``failed`` are trainings."""
        return VectorSetResult(
            name=self.name,
            metric="spearman",
            records={"train": learnt} | ({"test": len(self.pairs.scores)} if self.pairs else {}),
            cut=self.sentences.num_cut if self.sentences else 0,
            unknown_rate=self.sentences.unknown_rate if self.sentences else 0.0,
            words=words,
            before=before,
            runs=runs,
            after=spreads(runs),
            failures=[*self.failures, *failed],
        )


@dataclass(frozen=True)
class _SentenceRun:
    """All trainings on the same sentences."""

    name: str
    loaded: LoadedHead
    """The encoder as given; never trained itself."""
    sentences: Sentences
    settings: VectorSettings
    max_length: int
    save: Path | None
    progress: Progress

    def result(self, sets: list[_Set], raw: RawSentences) -> VectorResults:
        """Score, train with every seed, score again."""
        words = [one.score("tf-idf", lambda pairs, _: _spearman_of_words(pairs)) for one in sets]
        before = [one.score("before", lambda pairs, read: self._spearman(self.loaded, pairs, read)) for one in sets]
        runs: list[list[SeedRun]] = [[] for _ in sets]
        alone: list[SeedRun] = []
        failed: list[VectorFailure] = []
        for seed in range(self.settings.seeds):
            try:
                loaded, run = self._train(seed)
            except TASK_ERRORS as error:
                failed.append(VectorFailure(what=f"seed {seed}", error=reason_of(error)))
                continue
            alone.append(run)
            for one, of_set in zip(sets, runs, strict=True):
                found = one.score(f"seed {seed}", lambda pairs, read, of=loaded: self._spearman(of, pairs, read))  # type: ignore[misc]
                of_set += [run.model_copy(update={"scores": found})] if found else []
        return VectorResults(
            model_type=self.loaded.model_type,
            parameters=self.loaded.parameters,
            loss=self.settings.loss,
            temperature=self.settings.temperature_or_default,
            pooling=self.settings.pooling,
            max_length=self.max_length,
            seeds=self.settings.seeds,
            fit=self.settings.fit,
            sentences=SentenceFacts(
                source=self.name,
                learnt=len(raw.texts),
                found=raw.found,
                repeated=raw.repeated,
                rejected=raw.rejected,
                cut=self.sentences.num_cut,
                unknown_rate=self.sentences.unknown_rate,
            ),
            sets=[
                one.result(words[number], before[number], runs[number], failed, learnt=len(raw.texts))
                for number, one in enumerate(sets)
            ]
            or [VectorSetResult(name=self.name, records={"train": len(raw.texts)}, runs=alone, failures=failed)],
        )

    def _train(self, seed: int) -> tuple[LoadedHead, SeedRun]:
        loaded = replace(self.loaded, model=copy.deepcopy(self.loaded.model))
        model = BiEncoder(loaded, self.settings.pooling, "none", 0, seed=seed)
        unit = f"steps on {self.name}, seed {seed}"

        def loss(indices: Indices) -> Tensor:
            rows = [self.sentences.ids[i] for i in indices]
            first, second = (model.vectors(rows) for _ in range(2))  # dropout differs
            return simcse_loss(first, second, self.settings.temperature_or_default)

        found = fit(
            model,
            len(self.sentences.ids),
            loss,
            self.settings.fit,
            seed=seed,
            on_step=lambda done, total: self.progress.update(done, total, unit),
        )
        if self.save is not None and seed == 0:
            save_vector_encoder(loaded, self.save, self.settings.pooling, self.max_length)
        run = SeedRun(seed=seed, best_epoch=found.best_epoch, losses=found.losses, dev_by_epoch=[], scores={})
        self.progress.note(f"{self.name}, seed {seed}: loss {' '.join(f'{value:.3f}' for value in found.losses)}")
        return loaded, run

    def _spearman(self, loaded: LoadedHead, pairs: Pairs, sentences: Sentences) -> float:
        vectors = encode_sentences(loaded, sentences, [self.settings.pooling])[self.settings.pooling]
        return spearman(pair_cosines(vectors, pairs.indices), pairs.scores)


def _spearman_of_words(pairs: Pairs) -> float:
    return spearman(word_cosines(pairs.sentences, pairs.indices), pairs.scores)
