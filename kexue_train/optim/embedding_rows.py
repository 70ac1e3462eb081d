"""Rows of embedding tables that drift under sign steps: how large they are, and which of them may move.

One occurrence of a token leaves a momentum whose sign takes full steps for thousands of steps, so rare rows drift to
±1/λ. A lazy row neither moves nor decays in a step without its token, on any rank; its momentum decays as always.

Source: https://kexue.fm/archives/9736, and https://kexue.fm/archives/6869 for what keeps decaying.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kexue_train.optim.ranks import max_over_ranks_
from kexue_train.samples.mlm import IGNORE_INDEX


class SeenRows:
    """Marks of the rows of one table whose token occurred in the current step.

        seen.mark(input_ids, labels)     # every micro-batch
        seen.reduce_over_ranks()         # at the end of the step
        seen.rows                        # which rows may move
        seen.reset()

    Nothing here waits for a GPU.

    Args:
        num_rows: Rows of the table.
        device: Where tokens come from and rows are asked for.
    """

    def __init__(self, num_rows: int, device: torch.device | str = "cpu") -> None:
        self._marks = torch.zeros(num_rows + 1, dtype=torch.bool, device=device)  # the last is no row: IGNORE_INDEX

    @property
    def rows(self) -> Tensor:
        """Bool [num_rows]: a token of this row was marked since the last reset; a view that may be written to."""
        return self._marks[:-1]

    def mark(self, *ids: Tensor) -> None:
        """Mark the rows of tokens, inputs and labels alike: both give their row a gradient.

        Args:
            *ids: Integers of any shape, from 0 to num_rows - 1, or -100 for no token.

        Raises:
            ValueError: If a number is out of range. A GPU is not waited for: there an assertion of its kernel fails.
        """
        for tokens in ids:
            flat = tokens.flatten().long()
            is_row, is_none = (flat >= 0) & (flat < len(self.rows)), flat == IGNORE_INDEX
            if flat.device.type == "cpu" and not bool((is_row | is_none).all()):
                low, high = int(flat[~is_none].min()), int(flat.max())
                raise ValueError(
                    f"tokens go from {low} to {high}; allowed are 0 to {len(self.rows) - 1}, the rows of the table, "
                    f"and {IGNORE_INDEX} for no token; use the table of these tokens' vocabulary"
                )
            # In a table of 5 rows token 3 marks place 3, no token marks place 5, which is no row, and token 7 place -1,
            # which a GPU refuses.
            places = flat.where(is_row, -1).masked_fill(is_none, len(self.rows))
            self._marks.scatter_(0, places, True)

    def reduce_over_ranks(self) -> None:
        """Let every rank know the rows that any rank has seen; one all-reduce of a byte per row, again is harmless."""
        max_over_ranks_(self._marks.view(torch.uint8))

    def reset(self) -> None:
        """Begin a step: no row is marked."""
        self._marks.zero_()


@torch.no_grad()
def embedding_sizes(
    table: Tensor, weight_decay: float, counts: npt.NDArray[np.integer] | None = None
) -> dict[str, float]:
    """Return the sizes of rows as metrics; reads the table twice, waits for its device once.

    Args:
        table: [V, E], floating point.
        weight_decay: λ; 1/λ is where steps of one sign drive an element. 0: nowhere.
        counts: [up to V], how often each token occurs in the training set; the rows beyond are of no token.

    Returns:
        * ``embedding_max``: max |θ|; NaN if an element is.
        * ``embedding_drifted_rows``: share of the rows with any |θ| > 0.5/λ.
        * ``embedding_rms_min``, ``..._median``, ``..._max``: root mean squares of rows; with ``counts`` of those alone
          whose token occurs.
        * ``embedding_rms_rare``, ``..._frequent``, with ``counts``: the median over the rarer and over the more
          frequent half of these rows; left out, as the three above, if no token occurs.

    Raises:
        ValueError: If a shape does not fit.
    """
    if table.ndim != 2 or (counts is not None and (counts.ndim != 1 or len(counts) > len(table))):
        given = None if counts is None else list(counts.shape)
        raise ValueError(f"table {list(table.shape)} and counts {given} do not fit; expected [V, E] and [up to V]")
    dtype = torch.promote_types(table.dtype, torch.float32)
    largest = torch.maximum(table.amax(1), -table.amin(1)).to(dtype)  # many times faster than the norm of order inf
    norms = torch.linalg.vector_norm(table, dim=1, dtype=dtype)
    highest, rms = torch.stack((largest, norms / table.shape[1] ** 0.5)).cpu().numpy()
    sizes = {
        "max": highest.max(),
        "drifted_rows": (highest > (0.5 / weight_decay if weight_decay else math.inf)).mean(),
    }
    if counts is not None:
        ascending = np.argsort(counts, kind="stable")
        rms = rms[ascending[np.count_nonzero(counts <= 0) :]]
    if len(rms):
        sizes |= {"rms_min": rms.min(), "rms_median": np.median(rms), "rms_max": rms.max()}
        if counts is not None:
            half = -(-len(rms) // 2)
            sizes |= {"rms_rare": np.median(rms[:half]), "rms_frequent": np.median(rms[-half:])}
    return {f"embedding_{name}": float(value) for name, value in sizes.items()}
