"""When two documents count as near-duplicates, and how such pairs are found."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from kexue_train.foundation.config import Config, OptionName

_MIN_FOUND = 0.5
_MAX_HASHES = 1024


class NearConfig(Config):
    """The section ``near``, used with ``dedup: near``. The defaults are those of FineWeb (arXiv 2406.17557)."""

    threshold: Annotated[float, OptionName("--near-threshold")] = Field(default=0.75, ge=0.3, le=1)
    """Two documents are near-duplicates if so large a share of all their n-grams is in both (Jaccard similarity)."""
    ngram: Annotated[int, OptionName("--near-ngram")] = Field(default=5, ge=1, le=32)
    """Length of an n-gram in words; in scripts without spaces, such as Chinese, a character counts as a word."""
    bands: Annotated[int, OptionName("--near-bands")] = Field(default=14, ge=1, le=256)
    """Documents are compared if one of so many bands of MinHashes is equal. More bands find more, and take disk."""
    rows: Annotated[int, OptionName("--near-rows")] = Field(default=8, ge=1, le=64)
    """MinHashes of a band. More of them let fewer dissimilar documents be compared."""

    @property
    def num_hashes(self) -> int:
        """MinHashes of a document."""
        return self.bands * self.rows

    def chance(self, similarity: float) -> float:
        """Return with which chance two documents of a Jaccard similarity in [0, 1] are compared."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)

    @model_validator(mode="after")
    def _finds_what_it_looks_for(self) -> Self:
        if self.num_hashes > _MAX_HASHES:
            raise ValueError(
                f"bands * rows is {self.num_hashes}, and a document has at most {_MAX_HASHES} hashes; lower one of them"
            )
        found = self.chance(self.threshold)
        if found < _MIN_FOUND:
            raise ValueError(
                f"threshold={self.threshold} asks for pairs of which {self.bands} bands of {self.rows} rows find only "
                f"{found:.1%}; raise it to {self._reach()} or more, or take more bands or fewer rows"
            )
        return self

    def _reach(self) -> float:
        """Return the lowest similarity, in hundredths, at which half of the pairs are found."""
        return next(step / 100 for step in range(30, 101) if self.chance(step / 100) >= _MIN_FOUND or step == 100)
