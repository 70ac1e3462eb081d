"""What a user may choose of evaluation and fine-tuning: the classes that ``kexue evaluate`` and ``finetune`` offer."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from kexue_train.foundation.config import Config, refuse_without_effect

Pooling = Literal["cls", "mean", "first-last"]
"""How token states become the vector of a sentence."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
VectorLoss = Literal["cosent", "sentence-bert", "am-softmax", "simcse"]
KeepRule = Literal["gradient", "increment", "fisher"]
HeadName = Literal["classification", "nsp", "mlm"]
PathStart = Literal["mask", "zero"]
SENTENCE_LENGTH = 128
"""Tokens of a sentence, the longest."""
PROMPT_LENGTH = 128
"""Tokens of a text with its prompt, the longest; as in the paper of NSP-BERT."""
TEMPERATURE = 0.05
AM_SCALE, AM_MARGIN = 30.0, 0.35


class ZeroShotSettings(Config):
    """How the model answers tasks that it was not trained for."""

    method: Literal["nsp", "pet", "both"] = "both"
    """Which heads answer: nsp (next sentence), pet (masked words), or both."""
    max_length: int = Field(default=PROMPT_LENGTH, ge=16)
    """Tokens of a text with its prompt."""

    @property
    def methods(self) -> tuple[Literal["nsp", "pet"], ...]:
        """``method`` as one or two."""
        return ("nsp", "pet") if self.method == "both" else (self.method,)


class SimilaritySettings(Config):
    """How sentence vectors are made that are compared with human scores."""

    pooling: tuple[Pooling, ...] = POOLINGS
    """How states become a vector; may be repeated."""
    whitening: str = "all"
    """Dimensions to keep of each set's own whitening (all, or a number), none, or a folder of 'finetune whitening'."""
    max_length: int = Field(default=SENTENCE_LENGTH, ge=8)
    """Tokens of a sentence."""


class WhiteningSettings(Config):
    """How sentence vectors are whitened."""

    pooling: Pooling = "first-last"
    """How states become a vector."""
    dimensions: int | None = Field(default=None, ge=1)
    """How many to keep; by default all that vary."""
    max_length: int = Field(default=SENTENCE_LENGTH, ge=8)
    """Tokens of a sentence."""


class ExplainSettings(Config):
    """What is explained of a model's answer."""

    pair: str | None = None
    """The other text of a pair."""
    head: HeadName | None = None
    """Which head answers; by default the one that fits the text and the model."""
    answer: str | None = None
    """Label or word to explain; by default the most probable."""
    baseline: PathStart = "mask"
    """What words are compared with: [MASK], or zero embeddings."""


class FitSettings(Config):
    """How long, how fast and with which extras a model is fine-tuned; the defaults are those of RoFormerV2."""

    lr: float = Field(default=5e-4, gt=0)
    """Largest step, as a share of each tensor's root mean square."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it falls linearly to zero afterwards."""
    epochs: int = Field(default=10, ge=1)
    """Times that every record is seen."""
    batch_size: int = Field(default=32, ge=1)
    """Records per step."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Pieces that a batch is computed in, for less memory."""
    gradient_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of the elements that ``keep_rule`` keeps; 1 keeps all."""
    keep_rule: KeepRule = "gradient"
    """What is kept: elements of each gradient or of each increment, drawn anew at every step, or the gradients of the
    elements with the largest Fisher information, the same at every step (Child-Tuning F, its increments, and D)."""
    flood_level: float = Field(default=0.0, ge=0)
    """The loss b of a batch below which training climbs instead: |loss - b| + b; 0 switches it off."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout while training, of states and of attention; by default the model's own."""

    @model_validator(mode="after")
    def _keeps_a_share(self) -> Self:
        if self.gradient_keep == 1:
            refuse_without_effect(self, "keep_rule", because="with gradient_keep=1, which keeps all")
        return self


class HarnessSettings(Config):
    """What applies to all tasks that a model is fine-tuned on."""

    seeds: int = Field(default=3, ge=1)
    """Trainings of each encoder, with the seeds 0, 1, ..."""
    max_train: int | None = Field(default=None, ge=1)
    """Learn from so many records at most."""
    max_eval: int | None = Field(default=None, ge=1)
    """Score so many records of each split at most."""
    max_length: int | None = Field(default=None, ge=16)
    """Tokens of a sequence; by default the task's own number."""
    random_encoder: bool = True
    """Also train an encoder with fresh weights."""
    one_segment: bool = False
    """All token types 0: for published RoFormerV2 weights, whose second segment was never trained."""
    lr: float = Field(default=5e-4, gt=0)
    """Largest step, as a share of each tensor's root mean square."""
    epochs: int | None = Field(default=None, ge=1)
    """Times that every record is seen; by default the task's own number."""
    batch_size: int | None = Field(default=None, ge=1)
    """Records per step; by default the task's own number."""
    gradient_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of the elements that ``keep_rule`` keeps; 1 keeps all."""
    keep_rule: KeepRule = "gradient"
    """What is kept: elements of each gradient or of each increment, drawn anew at every step, or the gradients of the
    elements with the largest Fisher information, the same at every step (Child-Tuning F, its increments, and D)."""
    flood_level: float = Field(default=0.0, ge=0)
    """The loss b of a batch below which training climbs instead: |loss - b| + b; 0 switches it off."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout while training, of states and of attention; by default the model's own."""
    rdrop: float = Field(default=0.0, ge=0)
    """Weight of R-Drop: two passes with different dropout have to agree; 0 switches it off, a usual value is 4."""

    @model_validator(mode="after")
    def _keeps_a_share(self) -> Self:
        if self.gradient_keep == 1:
            refuse_without_effect(self, "keep_rule", because="with gradient_keep=1, which keeps all")
        return self


class VectorSettings(Config):
    """What applies to all sets that sentence vectors are trained on."""

    loss: VectorLoss = "cosent"
    """cosent and sentence-bert: pairs with a score. am-softmax: sentences with a label. simcse: sentences alone."""
    temperature: float | None = Field(default=None, gt=0)
    """What cosines are divided by in the softmax of simcse; by default 0.05."""
    scale: float | None = Field(default=None, gt=0)
    """What cosines are multiplied by in the softmax of am-softmax; by default 30."""
    margin: float | None = Field(default=None, ge=0, lt=2)
    """By how much the cosine with the right class has to lead in am-softmax; by default 0.35."""
    margin_from_diameter: bool = False
    """Train am-softmax twice: without a margin, then with the diameter that the classes had as the margin."""
    pooling: Pooling = "mean"
    """How states become a vector."""
    seeds: int = Field(default=3, ge=1)
    """Trainings on each set, with the seeds 0, 1, ..."""
    max_train: int | None = Field(default=None, ge=2)
    """Learn from so many records at most."""
    max_eval: int | None = Field(default=None, ge=2)
    """Score so many records of each split at most."""
    max_length: int = Field(default=SENTENCE_LENGTH, ge=8)
    """Tokens of a sentence, never more than the model was made for."""
    fit: FitSettings = FitSettings(epochs=5, batch_size=64)
    """How long, how fast, with which extras."""

    @model_validator(mode="after")
    def _fits_the_loss(self) -> Self:
        given = {
            "temperature": (self.temperature is not None, "simcse"),
            "scale": (self.scale is not None, "am-softmax"),
            "margin": (self.margin is not None, "am-softmax"),
            "margin_from_diameter": (self.margin_from_diameter, "am-softmax"),
        }
        if useless := [(name, loss) for name, (is_given, loss) in given.items() if is_given and loss != self.loss]:
            name, loss = useless[0]
            raise ValueError(f"{name} is of the loss {loss} and would do nothing with {self.loss}; leave it out")
        if self.margin is not None and self.margin_from_diameter:
            raise ValueError("margin and margin_from_diameter both say what the margin is; give one of them")
        return self

    @property
    def temperature_or_default(self) -> float:
        """Return τ of SimCSE."""
        return TEMPERATURE if self.temperature is None else self.temperature

    @property
    def scale_or_default(self) -> float:
        """Return s of AM-softmax."""
        return AM_SCALE if self.scale is None else self.scale

    @property
    def margin_or_default(self) -> float:
        """Return m of AM-softmax, unless it is taken from the classes."""
        return AM_MARGIN if self.margin is None else self.margin


class FewShotSettings(Config):
    """What applies to all tasks whose few records the NSP head learns."""

    split: str | None = None
    """Which training split, for tasks that have several; by default few_all, all of them together."""
    seeds: int = Field(default=3, ge=1)
    """Trainings on each task, with the seeds 0, 1, ..."""
    max_eval: int | None = Field(default=None, ge=2)
    """Score so many test records at most."""
    max_length: int = Field(default=PROMPT_LENGTH, ge=16)
    """Tokens of a text with its prompt, never more than the model was made for."""
    fit: FitSettings = FitSettings(batch_size=8)
    """How long, how fast, with which extras."""


class ParaphraseSettings(Config):
    """How a model learns to paraphrase and to compare, in one training."""

    max_length: int = Field(default=64, ge=8)
    """Tokens of a sentence with [CLS] and [SEP]; pairs with a longer one are left out."""
    scale: float = Field(default=30.0, gt=0)
    """What cosines are multiplied by in the softmax over the batch."""
    max_train: int | None = Field(default=None, ge=2)
    """Learn from so many pairs at most."""
    max_eval: int | None = Field(default=None, ge=2)
    """Score so many held-out pairs at most."""
    fit: FitSettings = FitSettings(epochs=5, batch_size=64)
    """How long, how fast, with which extras."""

    @model_validator(mode="after")
    def _batch_is_whole(self) -> Self:
        if self.fit.accumulation_steps > 1:
            raise ValueError(
                f"accumulation_steps={self.fit.accumulation_steps}: the sentences of a batch are compared with each "
                "other, so it cannot be computed in pieces; lower batch_size instead"
            )
        if self.fit.batch_size < 2:
            raise ValueError(f"batch_size={self.fit.batch_size}: a pair needs others to be told from; give 2 or more")
        return self


class DecodingSettings(Config):
    """How paraphrases are written."""

    method: Literal["sample", "beam"] = "sample"
    """sample: draw texts at random; beam: search for the most probable ones."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """sample: choose among the fewest tokens that have this probability together [0.95 if ``top_k`` is not given]."""
    top_k: int | None = Field(default=None, ge=1)
    """sample: choose among so many tokens."""
    draws: int | None = Field(default=None, ge=1)
    """sample: texts to draw, of which the most similar are kept [5 for each one that is shown]."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """sample: every random choice derives from it [0]."""
    beams: int | None = Field(default=None, ge=1)
    """beam: texts that the search follows [as many as are shown]."""
    max_tokens: int = Field(default=64, ge=8)
    """Tokens of a paraphrase."""

    @model_validator(mode="after")
    def _only_what_acts(self) -> Self:
        others = ("top_p", "top_k", "draws", "seed") if self.method == "beam" else ("beams",)
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with method={self.method}; leave one of the two out")
        return self

    @property
    def nucleus(self) -> float | None:
        """``top_p``, or its default."""
        return 0.95 if self.top_p is None and self.top_k is None else self.top_p
