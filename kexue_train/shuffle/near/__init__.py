"""Near duplicates: documents that share most of their n-grams, found by MinHash and banded LSH, kept once.

scatter (band keys, samples of n-grams) -> match (compares documents of a band key) -> group (clusters) -> gather
"""
