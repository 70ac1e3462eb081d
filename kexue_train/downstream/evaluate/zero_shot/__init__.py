"""What an encoder can do without training for it: NSP-BERT (arXiv 2109.03564), and PET for comparison.

task.py (YAML) and its records -> questions.py (texts and prompts) -> prompt_scores.py (either head) -> contrast.py
(labels). evaluate_tasks.py does this for all tasks; fewclue.yaml holds the nine tasks of FewCLUE.
"""
