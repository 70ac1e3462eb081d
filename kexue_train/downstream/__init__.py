"""What an exported model is worth, from the model folder alone.

settings (what a user may choose) -> results (their form) -> evaluate (scores without training)
    -> finetune (classification, tagging, reading, choice, sentence vectors)
"""
