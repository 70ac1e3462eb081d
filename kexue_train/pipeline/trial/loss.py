"""Where the loss of a run may end: a wide forecast, since two minutes of training do not tell.

What is forecast is the loss on hidden tokens of held-out text, which the report gives, as a share of their entropy H,
which is the best that is possible without context and known from the sample. Of finished runs it follows

    loss / H = floor + (1 - floor) · (1 + tokens / start)^-exponent + unlearnt / (1 + tokens / 100,000)

The last term is what frequencies alone take to learn. The constants lie between two extremes. They were chosen so that
the finished runs in benchmarks/RESULTS.md lie inside: encoders of 2.9 to 4.5 M weights that read 3.3 to 10.2 M tokens
of English and Chinese. Two more, of which they do not know, lie inside too. Beyond some 100 M tokens nothing was
compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

COMPARED_TOKENS = 100_000_000
"""Up to ten times as many as the longest run that was compared."""


class _Law(NamedTuple):
    floor: float
    """Share of the entropy that no context explains."""
    start: float
    """Tokens after which the context begins to help."""
    exponent: float
    unlearnt: float
    """Share of the entropy by which the loss of the first steps lies above it."""

    def share(self, tokens: float) -> float:
        """Return loss / entropy of a run that has read so many tokens."""
        helped: float = (1 + tokens / self.start) ** -self.exponent
        return self.floor + (1 - self.floor) * helped + self.unlearnt / (1 + tokens / _TOKENS_OF_FREQUENCIES)


_TOKENS_OF_FREQUENCIES = 1e5
_LEAST, _LIKELY, _MOST = _Law(0.15, 0.3e6, 0.22, 0.0), _Law(0.24, 0.4e6, 0.15, 0.25), _Law(0.3, 1e6, 0.08, 0.5)


@dataclass(frozen=True, slots=True)
class LossForecast:
    """Nats, of hidden tokens of held-out text."""

    least: float
    likely: float
    most: float
    entropy: float
    """What is reached without context."""
    is_compared: bool
    """Whether finished runs of about so many tokens were compared."""


def forecast_loss(entropy: float | None, tokens: int, tried: float | None = None) -> LossForecast | None:
    """Return the loss of a run that reads ``tokens``; None if the entropy is not known.

    Args:
        entropy: In nats, of the hidden tokens.
        tokens: That training reads.
        tried: The loss that the trial ended with; a run ends no higher, unless it diverges.
    """
    if entropy is None:
        return None
    least, likely, most = (entropy * law.share(tokens) for law in (_LEAST, _LIKELY, _MOST))
    if tried is not None and tried < most:
        most = max(tried, least)
        likely = min(likely, most)
    return LossForecast(least, likely, most, entropy, tokens <= COMPARED_TOKENS)
