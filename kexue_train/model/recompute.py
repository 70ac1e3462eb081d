"""Less memory between forward and backward for more work: recomputation of layers, and compilation that fits it.

A recomputed layer keeps its input; what else backward needs is computed again, with the random numbers of the first
time, so every bit of loss and gradients stays. Source: https://kexue.fm/archives/7367.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from kexue_train.model.config import problem_of_attention
from kexue_train.model.modeling_roformer_v2 import RoFormerV2Layer, RoFormerV2Model

_aten = torch.ops.aten
# One width per token for products of 2 · (length of the sequence) widths each; position of ``dropout_p``.
_FUSED_ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default: 3,
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 3,
    _aten._scaled_dot_product_efficient_attention.default: 5,
    _aten._scaled_dot_product_cudnn_attention.default: 5,
    _aten._flash_attention_forward.default: 7,
}


def enable_recompute(encoder: RoFormerV2Model, mode: Literal["selective", "full"], *, every: int = 1) -> None:
    """Let training compute layers 0, ``every``, 2 · ``every``... of ``encoder`` again in backward.

    Args:
        encoder: The encoder of any model.
        mode: "full" keeps only a layer's input; "selective" also what is dear to recompute, see ``KeepWhatIsDear``.
        every: 1 for all layers.

    Raises:
        ValueError: For "selective" with latent attention, whose products it would take for others.

    A second forward under the same autocast wants ``cache_enabled=False`` there with "selective": a cast that the first
    one did is missing in it, but not when it is computed again.
    """
    if problem := problem_of_attention(encoder.config.attention, recompute=mode):
        raise ValueError(problem)
    selective: dict[str, Any] = {"context_fn": _selective_contexts} if mode == "selective" else {}
    recompute = partial(checkpoint, use_reentrant=False, **selective)
    for number, layer in enumerate(_layers(encoder)):
        layer.gradient_checkpointing = number % every == 0
        layer._gradient_checkpointing_func = recompute


def compile_layers(encoder: RoFormerV2Model, *, backend: str = "inductor", cuda_graphs: bool = False) -> None:
    """Compile the layers as wholes, one program for all of them; call it after ``enable_recompute``.

    Raises:
        ValueError: For linear attention, whose sequences are numbers of the program.

    What surrounds the layers is not compiled: it may look at values (where sequences begin), and is a small part.

    Args:
        encoder: The encoder of any model.
        backend: Of torch.compile.
        cuda_graphs: Replay what is compiled as CUDA graphs; ``torch.compiler.cudagraph_mark_step_begin`` is then to be
            called before every forward.
    """
    if problem := problem_of_attention(encoder.config.attention, is_compiled=True):
        raise ValueError(problem)
    # Training and validation, the last held-out batch, more sequences than usual: each is a shape of its own, and torch
    # ends the run at the ninth.
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
    if cuda_graphs:
        options["options"] = {"triton.cudagraphs": True}
    compiled: dict[Any, Any] = {}  # what recomputes, once for all layers
    for layer in _layers(encoder):
        layer.compile(**options)
        if layer.gradient_checkpointing:  # transformers before 5.23 recomputes around the compiled layer, not inside
            recompute = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = compiled.setdefault(recompute, torch.compile(recompute, **options))


def _layers(encoder: RoFormerV2Model) -> list[RoFormerV2Layer]:
    return list(encoder.encoder.layer)  # type: ignore[arg-type]  # torch has no type for what is in a list of modules


class KeepWhatIsDear:
    """Decides for one run of one layer which results are kept: many operations per byte, and no random numbers."""

    def __init__(self) -> None:
        self._products = {False: 0, True: 0}
        self._output_projection = 3

    def __call__(self, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        """Return the policy that ``create_selective_checkpoint_contexts`` asks for."""
        if operator is _aten.mm.default:
            number = self._products[context.is_recompute]
            self._products[context.is_recompute] = number + 1
            if number == 0:  # queries, keys and values are three products, or one that is three times as wide
                rows, columns = args[1].shape
                self._output_projection = 1 if columns == 3 * rows else 3
            # Linear layers are nine tenths of the work. One of them has to go for half of the memory; the output
            # projection is (with q, k and v) the one with the fewest operations per byte.
            return _keep(number != self._output_projection)
        if operator in _FUSED_ATTENTION:
            # Not with dropout: a skipped kernel draws no random numbers, and every later mask would be another.
            position = _FUSED_ATTENTION[operator]
            return _keep((args[position] if len(args) > position else kwargs.get("dropout_p", 0.0)) == 0)
        # Norms, rotations, dropout, relu: a few operations per byte. Products inside of written-out attention
        # (torch's way with dropout on CPUs): scores take more memory than the whole layer's input.
        return _keep(False)


def _keep(wanted: bool) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if wanted else CheckpointPolicy.PREFER_RECOMPUTE


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(KeepWhatIsDear())  # type: ignore[no-untyped-call]  # as torch has it
