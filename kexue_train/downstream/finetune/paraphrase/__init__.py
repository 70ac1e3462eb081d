"""RoFormer-Sim: one encoder that writes paraphrases and compares sentences.

pairs.py reads the pairs, losses.py has the two losses, problem.py computes and scores them, train_writer.py trains and
saves. ``downstream/paraphrase`` uses the result.
"""
