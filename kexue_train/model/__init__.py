"""RoFormerV2: bias-free, gain-free post-norm encoder with rotary positions (https://kexue.fm/archives/8998).

``modeling_roformer_v2.py`` and ``configuration_roformer_v2.py`` are the one implementation: training uses them, and
every checkpoint carries a copy, so that ``from_pretrained(..., trust_remote_code=True)`` needs no kexue_train.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kexue_train.model.configuration_roformer_v2 import RoFormerV2Config
    from kexue_train.model.modeling_roformer_v2 import (
        RoFormerV2ForMaskedLM,
        RoFormerV2ForMultipleChoice,
        RoFormerV2ForNextSentencePrediction,
        RoFormerV2ForPreTraining,
        RoFormerV2ForQuestionAnswering,
        RoFormerV2ForSequenceClassification,
        RoFormerV2ForTokenClassification,
        RoFormerV2Model,
    )

__all__ = [
    "RoFormerV2Config",
    "RoFormerV2ForMaskedLM",
    "RoFormerV2ForMultipleChoice",
    "RoFormerV2ForNextSentencePrediction",
    "RoFormerV2ForPreTraining",
    "RoFormerV2ForQuestionAnswering",
    "RoFormerV2ForSequenceClassification",
    "RoFormerV2ForTokenClassification",
    "RoFormerV2Model",
]


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when a model class is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from kexue_train.model import configuration_roformer_v2, modeling_roformer_v2  # noqa: PLC0415  # lazy public names

    return getattr(configuration_roformer_v2 if name.endswith("Config") else modeling_roformer_v2, name)
