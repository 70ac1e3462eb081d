"""Puts a corpus on disk in an exactly uniform random order, once, in bounded memory.

    inputs ──plan──▶ scatter tasks (file, byte range) ──spill files──▶ gather tasks (shard) ──▶ text shards + proof

Every record gets an independent uniform 128-bit key from (seed, file, position in the file); the order *is* the sort by
key, and shard s of S holds the keys that begin with s/S. So the result depends on inputs, seed and number of shards
alone: not on memory, workers, machine, how the work was cut, or what was killed and done again.
"""
