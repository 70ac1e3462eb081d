"""Supervised tasks: what a pretrained encoder is worth once it is trained on labelled data.

task.py (YAML; nlu.yaml holds the known ones) -> splits.py (records) -> make_problem.py: a problem.py of its kind, all
with inputs.py (tokens): classification.py, tagging.py with entities.py, reading.py with answer_scores.py, choice.py.

../harness.py runs them: seeds, the pretrained encoder (encoders.py) beside a random one and baselines -> results.py ->
table.py
"""
