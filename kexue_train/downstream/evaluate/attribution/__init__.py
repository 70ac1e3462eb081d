"""Which words made a model answer as it did.

integrated_gradients.py (any function) -> explain.py (a model's answer to a text) -> drawing.py (coloured text)
"""
