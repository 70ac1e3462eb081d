"""Write paraphrases with a model of ``kexue finetune paraphrase``: SimBERT's use of one encoder for both abilities.

    text ─▶ writer.py: next-token probabilities ─▶ stopping.py: the end becomes certain ─▶ sampling.py or beam.py
         ─▶ ranking.py: order by the model's own sentence vectors

``write_paraphrases.py`` puts them together. Sampling and search know no model: they take any function that gives the
probabilities of the next token.
"""
