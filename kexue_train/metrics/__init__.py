"""What a training writes down while it runs: one declaration of every line and value, one writer, one reader.

heads (the tasks that are trained) → the values and lines of ``metrics.jsonl``; this package knows no torch.
"""
