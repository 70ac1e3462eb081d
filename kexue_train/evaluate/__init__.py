"""Exported model + sample shards -> what the model knows, beside baselines that need no model.

load_model.py -> masked_lm.py (held-out loss and accuracy; baselines.py) and masked_sentences.py -> evaluate_model.py

Only the exported folder is used, never training's own objects, so a good score also tests the export.
"""
