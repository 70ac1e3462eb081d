"""What an exported model is worth, from the model folder alone.

evaluate (scores without training) -> finetune (classification, tagging, reading, choice, sentence vectors)
"""
