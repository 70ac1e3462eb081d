"""An exported model, trained further on labelled data, and what that is worth: scores over several seeds.

loop.py trains (batches, schedule, best epoch) with adafactor.py; losses.py has the formulas besides cross-entropy, and
rdrop.py and dropout.py are for two passes with different dropout. harness.py runs the supervised tasks of tasks/,
compared with a random encoder, guessing and bag_of_words.py. sentence_vectors/ trains for similarity and retrieval,
next_sentences/ on a few records of the tasks of prompts, paraphrase/ to write and to compare at once.
"""
