"""An exported model, trained further on labelled data, and what that is worth: scores before and after, over seeds.

loop.py (batches, schedule, best epoch) with adafactor.py

sentence_vectors/: a bi-encoder, for similarity and retrieval; tasks/: classification, spans, tags, choices.
"""
