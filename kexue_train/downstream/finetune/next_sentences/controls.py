"""Questions whose prompts stand in the wrong place: whoever still answers them does not read the prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.foundation.counter_rng import Purpose, generator


def permute_prompts(questions: Questions) -> Questions:
    """Return the same texts, each with the right prompts in random order; or, with one prompt each, with another's.

    Where there is a prompt per label, label k of a record is asked with the prompt of a random label; the labels of a
    record keep all their prompts. With one prompt per record, the prompts change places among the records. The order
    is always the same.
    """
    random, prompt_of = generator(0, Purpose.FEW_SHOT_CONTROL), questions.prompt_of.copy()
    if prompt_of.shape[1] == 1:
        return replace(questions, prompt_of=prompt_of[random.permutation(len(prompt_of))])
    for row in prompt_of:
        size = int(np.count_nonzero(row >= 0))
        row[:size] = row[:size][random.permutation(size)]
    return replace(questions, prompt_of=prompt_of)
