"""Which rows of an embedding table had their token in a window: lazy rows move only then.

One occurrence leaves a momentum whose sign takes full steps for thousands of windows, so rare rows drift to ±1/λ. A
lazy row neither moves nor decays in a window without its token, on any rank; its momentum decays as ever.

Source: https://kexue.fm/archives/9736, and https://kexue.fm/archives/6869 for what keeps decaying.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.samples.mlm import IGNORE_INDEX


class SeenRows:
    """Marks of the rows of one table in the current window.

        seen.mark(input_ids, labels)     # every micro-batch
        seen.reduce_over_ranks()         # at the end of the window
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
        """Bool [num_rows]: a token of this row was marked since the last reset; a view, also to go on in a window."""
        return self._marks[:-1]

    def mark(self, *ids: Tensor) -> None:
        """Mark the rows of tokens, inputs and labels alike: both give their row a gradient.

        Args:
            *ids: Integers of any shape, from 0 to num_rows - 1, or -100 for no token.

        Raises:
            ValueError: If a number is out of range. On a GPU, where that would be to wait for, its assertion fails.
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
            places = flat.where(is_row, -1).masked_fill(is_none, len(self.rows))
            self._marks.scatter_(0, places, True)

    def reduce_over_ranks(self) -> None:
        """Let every rank know the rows that any rank has seen; one all-reduce of a byte per row, again is harmless."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._marks.view(torch.uint8), dist.ReduceOp.MAX)

    def reset(self) -> None:
        """Begin a window: no row is marked."""
        self._marks.zero_()
