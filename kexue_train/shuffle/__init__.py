"""Puts a corpus on disk in an exactly uniform random order, once, in bounded memory.

    inputs ──scatter tasks (some ranges)──▶ spill files, by bucket ──gather tasks (a shard)──▶ text shards + proof

Every record gets an independent uniform 64-bit key from (seed, file, position in the file); the order *is* the sort by
key (equal keys by the row's hash), and shard s of S holds the keys that begin with s/S. So the result depends on the
inputs, the seed and the number of shards alone: not on memory, workers, machine, how the work was cut, or what was
killed and done again.

Read ``shuffle_corpus`` (the stage), ``passes`` (its tasks), ``scatter`` and ``gather`` (what a task does); below them
``rows``, ``frames`` and ``spill`` (what lies between the passes), ``bucket`` (the order).
"""
