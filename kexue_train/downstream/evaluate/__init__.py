"""Exported model + sample shards -> what the model knows, beside baselines that need no model.

load_model.py -> masked_lm.py (held-out loss and accuracy; baselines.py), masked_sentences.py, zero_shot/ (tasks)
    -> evaluate_model.py; masked_words.py: words at masks, for zero_shot/ and for the likelihood of sentences

Only the exported folder is used, never training's own objects, so a good score also tests the export.
"""
