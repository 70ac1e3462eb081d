"""How large the rows of an embedding table are: tells whether a sign optimizer drives rare rows to ±1/λ.

Source: https://kexue.fm/archives/9736.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@torch.no_grad()
def embedding_sizes(
    table: Tensor, weight_decay: float, counts: npt.NDArray[np.integer] | None = None
) -> dict[str, float]:
    """Numbers for the metrics; reads the table twice, waits for its device once.

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
