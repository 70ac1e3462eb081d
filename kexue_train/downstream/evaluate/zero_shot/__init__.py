"""What an encoder can do without training for it: NSP-BERT (arXiv 2109.03564), and PET for comparison.

task.py (YAML) + records.py → questions.py → next_sentence.py or pet.py, both with layout.py → contrast.py (labels)
                                           → results.py → table.py

answer_task.py does this for one task, evaluate_tasks.py for all; fewclue.yaml holds the nine tasks of FewCLUE.
"""
