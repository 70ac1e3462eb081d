"""One linear map makes sentence vectors of a pretrained encoder compare better."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.training.pretrained import pretrained
from claims.training.text import SEQ_LEN, documents
from claims.verdict import Verdict, above
from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import Sentences, encode_sentences
from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman
from kexue_train.downstream.evaluate.sentence_vectors.whitening import Moments, Whitening

_PAIRS, _CHARS, _KEPT = 400, 200, 64


def measure(seed: int, setting: Setting) -> Figures:
    """Spearman correlations of cosines with whether two passages are of one document."""
    loaded, _ = pretrained(setting, seed)
    long = [document for document in documents(setting) if len(document) > 4 * _CHARS][:_PAIRS]
    passages = [document[:_CHARS] for document in long] + [document[-_CHARS:] for document in long]
    vectors = encode_sentences(loaded, Sentences.read(loaded.tokenizer, passages, SEQ_LEN), ["first-last"])[
        "first-last"
    ]
    moments = Moments.of(vectors)
    forms = {
        "as they are": vectors.astype(np.float64),
        "whitened": Whitening.fit(moments).apply(vectors),
        f"whitened to {_KEPT}": Whitening.fit(moments, _KEPT).apply(vectors),
    }
    return {name: 100 * _correlation(form) for name, form in forms.items()}


def _correlation(vectors: npt.NDArray[np.float64]) -> float:
    """Compare beginnings [n] with ends of the same documents, then with those of the next ones."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    begins, ends = np.split(unit, 2)
    cosines = np.concatenate(((begins * ends).sum(1), (begins * np.roll(ends, 1, axis=0)).sum(1)))
    return spearman(cosines, np.repeat([1, 0], len(begins)))


def judge(found: Found) -> Verdict:
    """Points of correlation that whitening gains."""
    gain = [after - before for before, after in zip(found["as they are"], found["whitened"], strict=True)]
    return above(gain, confirms=1.0, refutes=0.0)


CLAIM = Claim(
    name="whitening",
    sentence="A linear map to mean 0 and covariance I, fitted without labels, makes the cosines of a pretrained "
    "encoder's sentence vectors agree better with how alike the sentences are.",
    source=8069,
    measured="The encoder of nsp-zero-shot, mean of its first and last layer: Spearman correlation in percent of "
    "the cosine of two passages with whether they are of one document, 400 pairs of each kind; as they are, "
    "whitened, and whitened to 64 of 128 dimensions. 86.6 would be a perfect order.",
    refuted_if="the correlation falls; confirmed if it rises by more than one point.",
    unit="%",
    shown=("as they are", "whitened", "whitened to 64"),
    picture=Bars(("as they are", "whitened", "whitened to 64"), "correlation, %"),
    seconds=150,
    measure=measure,
    judge=judge,
    trains=True,
    remark="Two passages of one document stand for two like sentences, since no rated pairs come with this "
    "repository. Rated pairs: docs/evaluation.md.",
)
