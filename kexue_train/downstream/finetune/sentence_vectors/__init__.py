"""Sentence vectors trained on labels: bi_encoder.py learns similarity.py (pairs) or retrieval.py (classes).

train_vectors.py runs all sets with several seeds. Without labels: raw_sentences.py -> train_on_sentences.py (SimCSE).
"""
