"""The same questions for a masked language model: the words of which label are most probable at the blank (PET)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kexue_train.downstream.evaluate.load_model import LoadedHead
from kexue_train.downstream.evaluate.masked_words import Cloze, masked_word_scores
from kexue_train.downstream.evaluate.sequences import Ids, encode
from kexue_train.downstream.evaluate.zero_shot.layout import EncodedText, encode_texts
from kexue_train.downstream.evaluate.zero_shot.next_sentence import OnTokens, PromptScores, unknown_rate
from kexue_train.downstream.evaluate.zero_shot.questions import Questions
from kexue_train.foundation.errors import EvaluationError


def score_masked_words(
    loaded: LoadedHead,
    questions: Questions,
    *,
    max_length: int,
    on_tokens: OnTokens = lambda _done, _total: None,
) -> PromptScores:
    """Log-probabilities of the words of every label at the blank; one forward per text.

    Raises:
        EvaluationError: If the words of a text's labels differ in their number of tokens (then their probabilities
            cannot be compared), or a score is not finite.
    """
    texts = encode_texts(loaded.tokenizer, questions.texts, has_blank=True)
    words = encode(loaded.tokenizer, questions.prompts)
    sizes = np.array([len(ids) for ids in words])
    clozes, num_cut = [], 0
    for text, choices in zip(texts, questions.prompt_of, strict=True):
        own = choices[choices >= 0]
        _require_equal_sizes(sizes[own], [questions.prompts[i] for i in own])
        clozes.append(_cloze(loaded, text, [words[i] for i in own], max_length))
        num_cut += text.size + sizes[own[0]] + 2 > max_length
    scores = np.full(questions.prompt_of.shape, -np.inf)
    for row, found in zip(scores, masked_word_scores(loaded, clozes, on_tokens), strict=True):
        row[: len(found)] = found
    pieces = [*(piece for text in texts for piece in text[:3]), *words]
    return PromptScores(scores, int(num_cut), unknown_rate(loaded, pieces))


def _cloze(loaded: LoadedHead, text: EncodedText, words: Sequence[Ids], max_length: int) -> Cloze:
    tokenizer, size = loaded.tokenizer, len(words[0])
    if size + 2 > max_length:
        raise EvaluationError(f"the words of a label are {size} tokens, too many for {max_length}; give shorter ones")
    text = text.cut(max_length - 2 - size)
    masks = np.full(size, tokenizer.mask_token_id)
    ids = np.concatenate(([tokenizer.cls_token_id], text.before, masks, text.after, [tokenizer.sep_token_id]))
    return Cloze(ids, 1 + len(text.before) + np.arange(size), np.stack(words))


def _require_equal_sizes(sizes: Ids, words: Sequence[str]) -> None:
    if sizes.min() == 0:
        raise EvaluationError(f"the words {words[int(sizes.argmin())]!r} have no token; give words the model knows")
    if sizes.min() != sizes.max():
        shorter, longer = words[int(sizes.argmin())], words[int(sizes.argmax())]
        raise EvaluationError(
            f"the words {shorter!r} are {sizes.min()} tokens and {longer!r} {sizes.max()}, so their probabilities "
            "cannot be compared; give words of equally many tokens under pet.labels"
        )
