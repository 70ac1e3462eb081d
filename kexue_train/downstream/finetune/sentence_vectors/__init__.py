"""A bi-encoder trained on labelled sentences: each sentence becomes a vector of its own, and cosines are compared.

losses.py + bi_encoder.py → likeness.py (pairs with scores: CoSENT, Sentence-BERT), retrieval.py (many classes:
AM-softmax) → train_vectors.py (seeds, before and after) → results.py → table.py
"""
