"""A text -> its paraphrases, the most similar first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kexue_train.downstream.paraphrase.beam import beam_search
from kexue_train.downstream.paraphrase.ranking import Candidate, Ranked, rank
from kexue_train.downstream.paraphrase.sampling import sample
from kexue_train.downstream.paraphrase.stopping import Stopping
from kexue_train.downstream.paraphrase.writer import Writer, load_writer, spell
from kexue_train.downstream.paraphrase.written import Written
from kexue_train.downstream.settings import DecodingSettings
from kexue_train.foundation.errors import EvaluationError

DRAWS_PER_PARAPHRASE = 5


@dataclass(frozen=True)
class Paraphrases:
    """What was written for a text."""

    ranked: list[Ranked]
    """The best, at most as many as were asked for."""
    num_written: int
    num_distinct: int
    """Different texts among them, the original left out."""
    num_unfinished: int
    """Texts that found no end in their room; left out."""

    @property
    def summary(self) -> str:
        """How many texts were written, and how many of them are new."""
        unfinished = f", {self.num_unfinished} without an end" if self.num_unfinished else ""
        return f"{self.num_written} texts written{unfinished}, {self.num_distinct} different ones besides the original"


def write_paraphrases(model_dir: Path, text: str, number: int, settings: DecodingSettings) -> Paraphrases:
    """Write paraphrases of ``text`` with a folder of ``kexue finetune paraphrase`` and return the ``number`` best.

    Raises:
        ConfigError: If ``settings.max_tokens`` leaves no room to stop.
        EvaluationError: If the folder holds no such model, the text cannot be read, or nothing else was written.
    """
    is_beam = settings.method == "beam"
    texts = (settings.beams or number) if is_beam else (settings.draws or DRAWS_PER_PARAPHRASE * number)
    stopping = Stopping.of_beams(settings.max_tokens, texts) if is_beam else Stopping.of_samples(settings.max_tokens)
    writer = Writer.of(load_writer(model_dir), text, settings.max_tokens)
    next_tokens, limit, end = stopping.bound(writer.next_tokens, writer.end), stopping.limit, writer.end
    if is_beam:
        written = beam_search(next_tokens, texts, limit, end=end)
    else:
        top_k, top_p = settings.top_k, settings.nucleus
        written = sample(next_tokens, texts, limit, end=end, seed=settings.seed or 0, top_k=top_k, top_p=top_p)
    candidates = distinct_texts(writer, written)
    num_unfinished = sum(not entry.is_complete for entry in written)
    ranked = rank(writer.loaded, writer.source, candidates)[:number]
    found = Paraphrases(ranked, len(written), len(candidates), num_unfinished)
    if not ranked:
        raise EvaluationError(f"no paraphrase of {text!r}: {found.summary}; write more texts with --draws or --beams")
    return found


def distinct_texts(writer: Writer, written: Sequence[Written]) -> list[Candidate]:
    """Return the finished texts, each once with the probability of its likeliest tokens; without the original."""
    tokenizer = writer.loaded.tokenizer
    found: dict[str, float] = {}
    for entry in written:
        if entry.is_complete:
            text = spell(tokenizer, entry.ids)
            found[text] = max(entry.log_prob, found.get(text, -math.inf))
    original = spell(tokenizer, tuple(writer.source))
    return [Candidate(text, log_prob) for text, log_prob in found.items() if text not in ("", original)]
