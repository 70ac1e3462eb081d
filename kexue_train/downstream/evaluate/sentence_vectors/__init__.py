"""Sentences -> vectors, and how well their cosines order pairs by likeness.

encode_sentences.py (model, pooling.py) -> moments.py -> whitening.py -> sentence_transformers_folder.py (export)
    -> score_set.py (sts_sets.py, spearman.py, baselines.py) -> evaluate_sts.py -> results.py -> table.py
"""
