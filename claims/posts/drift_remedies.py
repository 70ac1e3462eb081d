"""What keeps the rows of rare tokens near their start under sign steps."""

from __future__ import annotations

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.two_tokens import NONE, REMEDIES, largest_of_rare_row
from claims.verdict import Verdict, all_of, below

_OF_THE_POST = ("lazy rows", "tied", "half-swapped", "AdamW rows")


def measure(seed: int, _: Setting) -> Figures:
    """The largest element that the rare row ever had, under each remedy and under none."""
    return {name: largest_of_rare_row(remedy, seed) for name, remedy in {"none": NONE, **REMEDIES}.items()}


def judge(found: Found) -> Verdict:
    """Every remedy of the post keeps the row within 50 times its start; 100 is the limit of the drift."""
    return all_of(*(below(found[name], confirms=1.0, refutes=10.0) for name in _OF_THE_POST))


CLAIM = Claim(
    name="drift-remedies",
    sentence="Rows of rare tokens stay near their start if only rows move whose token occurred, if the table is "
    "tied to the output (plain, or with its halves swapped), or if AdamW moves the table.",
    source=9736,
    measured="The largest element of the rare row in 2,000 steps, as in sign-drift, from a start of 0.02; beside "
    "the remedies of the post also momenta that count as zero below a bound (dead zone).",
    refuted_if="under one of the four remedies the row exceeds 10 (a tenth of the limit); confirmed below 1.",
    unit="",
    shown=("none", "lazy rows", "tied", "half-swapped", "AdamW rows", "dead zone 1e-8", "dead zone 1e-30"),
    picture=Bars(("none", *REMEDIES), "largest element of the rare row", log=True, mark=100.0),
    seconds=25,
    measure=measure,
    judge=judge,
    remark="The dead zone is no part of the claim. At 1e-8 it ends the drift early; at 1e-30 it is no remedy by "
    "itself, since the momentum needs some 1,700 full steps to get there. Tying does not help where a feature never "
    "changes its sign (docs/tiger.md).",
)
