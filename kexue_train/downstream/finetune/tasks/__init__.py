"""Supervised tasks: from records to examples, losses and scores.

task.py (YAML; nlu.yaml holds the known ones) -> splits.py (records by use) -> a Problem (problem.py) of its kind, in
tokens: classification.py, tagging.py, reading.py, choice.py, similarity.py.
"""
