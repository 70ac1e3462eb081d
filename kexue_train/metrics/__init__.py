"""What a training writes down while it runs, and how that is read: this package knows no torch.

heads (the tasks that are trained) → fields (every kind of line, every value with its label and format) → file (the
writer, the reader and the tail of ``metrics.jsonl``); spikes (when a loss is one).
"""
