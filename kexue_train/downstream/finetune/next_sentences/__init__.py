"""A few records with answers, learnt by the head of next sentences in the form in which zero-shot tasks are asked.

problem.py says what is learnt and how it is answered, controls.py what must be at chance, tune_tasks.py runs all tasks.
"""
