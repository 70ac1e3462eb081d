"""Exported model -> what it knows without further training, compared with baselines that need no model.

masked_lm.py with baselines.py: held-out loss and accuracy. masked_words.py: words at [MASK], likelihood of sentences.
zero_shot/: tasks answered by prompts. sentence_vectors/: similarity of sentences. explain.py with
integrated_gradients.py: which words made an answer. evaluate_model.py runs the first four as a stage.

Only the exported folder is used, so a good score also tests the export.
"""
