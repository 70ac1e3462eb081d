"""Connected components of pairs of document numbers: union-find over arrays, a part of the edges at a time.

What is held is an edge for each document that is connected, so the memory grows with the documents that have a
near-duplicate, not with the corpus, nor with the pairs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Edges = npt.NDArray[np.uint64]

BYTES_PER_DOCUMENT = 512
"""Memory for each edge at the peak of grouping and describing the clusters; measured 350 to 500."""


def spanning_edges(edges: Edges) -> Edges:
    """Return edges (document, first document of its component) that connect the same, by document; shape (v, 2)."""
    nodes, ends = np.unique(edges, return_inverse=True)
    roots = connect(ends.reshape(-1, 2), len(nodes))
    is_other = roots != np.arange(len(nodes))
    return np.stack([nodes[is_other], nodes[roots[is_other]]], axis=1)


def connect(edges: npt.NDArray[np.int64], num_nodes: int) -> npt.NDArray[np.int64]:
    """Return the smallest node of the component of each node, shape (n,); ``edges`` of shape (e, 2) are node numbers.

    Each round hangs the larger of two roots below the smaller one, then shortens all paths.
    """
    parents = np.arange(num_nodes)
    while len(edges):
        roots = parents[edges]
        low, high = roots.min(axis=1), roots.max(axis=1)
        np.minimum.at(parents, high, low)
        while not np.array_equal(shorter := parents[parents], parents):
            parents = shorter
        edges = edges[low != high]
        edges = edges[parents[edges[:, 0]] != parents[edges[:, 1]]]
    return parents
