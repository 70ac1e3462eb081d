"""A model that was trained to paraphrase (``paraphrase.json``): both of its abilities before and after."""

from __future__ import annotations

from typing import Literal

from kexue_train import __version__
from kexue_train.downstream.results.result import Headline, ResultFailure, ResultPart, ResultTable, Score
from kexue_train.downstream.settings import FitSettings

_GROUP = "held-out paraphrases"


class ParaphraseScores(ResultPart):
    """How a model does on the held-out pairs."""

    writing_loss: float
    """Nats per token of the second sentence, given the first and what stands before."""
    next_token_accuracy: float
    similarity_loss: float
    """Nats, of finding the partner in a batch."""
    retrieval_accuracy: float
    """Share of sentences whose nearest, of all held-out ones, is their partner."""

    @property
    def loss(self) -> float:
        """The sum that is trained; the epoch with the lowest is kept."""
        return self.writing_loss + self.similarity_loss


class ParaphraseResults(ResultPart):
    """The contents of the file."""

    kind: Literal["paraphrase"] = "paraphrase"
    schema_version: int = 1
    tool_version: str = __version__
    parameters: int
    records: dict[str, int]
    """Split -> pairs that are used."""
    left_out: dict[str, int]
    """Reason -> pairs that are not, of both splits."""
    is_dev_held_out: bool
    """Whether the scored pairs are a tenth of the file, for lack of another one."""
    max_length: int
    """Tokens of a sentence."""
    scale: float
    """What cosines are multiplied by in the loss."""
    seed: int
    fit: FitSettings
    losses: list[float]
    """Mean loss of every epoch."""
    best_epoch: int
    """Counted from 1."""
    before: ParaphraseScores
    after_epochs: list[ParaphraseScores]

    @property
    def after(self) -> ParaphraseScores:
        """The scores of the weights that are kept."""
        return self.after_epochs[self.best_epoch - 1]

    @property
    def failures(self) -> list[ResultFailure]:
        """Nothing: a training that fails has no file."""
        return []

    def tables(self) -> list[ResultTable]:
        """Return a row before and one after training."""
        header = ["", "writing (nats)", "next token", "similarity (nats)", "partner nearest"]
        rows = [[name, *_row(scores)] for name, scores in (("before", self.before), ("after", self.after))]
        return [ResultTable(f"{self.records['dev']:,} held-out pairs", header, rows)]

    def notes(self) -> list[str]:
        """Return what was trained, and what was left out."""
        epochs = f"epoch {self.best_epoch} of {len(self.losses)}, the one with the lowest sum of both losses, is kept"
        dev = "a tenth of the pairs was held out" if self.is_dev_held_out else "the file of --dev is scored"
        found = [f"Trained on {self.records['train']:,} pairs in both directions; {dev}; {epochs}."]
        if self.left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
            found.append(f"Pairs left out: {reasons}.")
        return found

    def scores(self) -> list[Score]:
        """Return both abilities after training."""
        after = self.after
        return [
            Score(_GROUP, "text-generation", "loss", "loss of writing (nats per token)", after.writing_loss),
            Score(_GROUP, "sentence-similarity", "accuracy", "partner is the nearest", after.retrieval_accuracy),
        ]

    def headlines(self) -> list[Headline]:
        """Return both abilities after training."""
        after = self.after
        return [
            Headline("Writing", f"{after.writing_loss:.2f}", "nats per token of a paraphrase"),
            Headline("Partner nearest", f"{after.retrieval_accuracy:.1%}", f"of {2 * self.records['dev']:,} sentences"),
        ]


def _row(scores: ParaphraseScores) -> list[str]:
    return [
        f"{scores.writing_loss:.3f}",
        f"{scores.next_token_accuracy:.1%}",
        f"{scores.similarity_loss:.3f}",
        f"{scores.retrieval_accuracy:.1%}",
    ]
