"""Sentences -> vectors, and how well their cosines rank pairs by similarity.

encode_sentences.py (states, poolings) -> score_set.py (with spearman.py and baselines) -> evaluate_sts.py (all sets of
sts_sets.py). whitening.py makes vectors comparable; fit_whitening.py keeps such a map as a model of its own
(sentence_transformers_folder.py).
"""
