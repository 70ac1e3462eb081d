"""The attention kernel that packed rows take, against the written-out one in fp32, with dropout and without."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.check import Bench, Check, Figures, require
from benchmarks.gpu.made_up import worst_error
from kexue_train.model import modeling_roformer_v2 as modeling
from kexue_train.model.modeling_roformer_v2 import Visibility, attention_kernel, attention_mask_of, sequence_starts

_TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
"""Of the norm of a result: bf16 rounds at 4e-3."""
_DROPOUT = 0.1


def check_attention(bench: Bench) -> Figures:
    """Lengths from 1 to a whole row, rows of padding, and 255 to 257 sequences: result and all gradients."""
    dtype = torch.float32 if bench.is_stand_in else torch.bfloat16
    figures: Figures = {"dtype": str(dtype)}
    for name, rows in _layouts(bench.sizes.seq_len).items():
        ids = _ids(rows, bench.sizes.seq_len, bench.device)
        expected = _run(bench, ids, Visibility(mask=attention_mask_of(ids, None)), "eager", torch.float32)
        found = _run(bench, ids, _seen(ids), "sdpa", dtype)
        figures[name] = {"sequences": len(_starts(ids)) - 1, "error": worst_error(found, expected)}
        require(
            figures[name]["error"] <= _TOLERANCE[dtype],
            f"{name}: attention is off by {figures[name]['error']:.2g} of its norm; allowed {_TOLERANCE[dtype]}",
            figures,
        )
    return figures


def check_attention_dropout(bench: Bench) -> Figures:
    """The same seed gives the same numbers, another seed others, and gradients are those of finite differences."""
    ids = _ids(_layouts(bench.sizes.seq_len)["lengths from 1 to a row"], bench.sizes.seq_len, bench.device)
    seen, dtype = _seen(ids), torch.float32 if bench.is_stand_in else torch.bfloat16
    first, again = (_run(bench, ids, seen, "sdpa", dtype, dropout=_DROPOUT, seed=3) for _ in range(2))
    other = _run(bench, ids, seen, "sdpa", dtype, dropout=_DROPOUT, seed=4)
    plain = _run(bench, ids, seen, "sdpa", dtype)
    figures: Figures = {
        "same_seed_is_same": all(map(torch.equal, first, again)),
        "other_seed_is_other": not torch.equal(first[0], other[0]),
        # Dropped and scaled values have the mean of the plain ones: over all outputs it moves by little.
        "mean_ratio": float((first[0].double() * plain[0].double()).sum() / plain[0].double().square().sum()),
        "derivative_ratios": _derivative_ratios(bench, ids, seen, dtype),
    }
    require(figures["same_seed_is_same"], "two runs from one seed differ under dropout", figures)
    require(figures["other_seed_is_other"], "another seed drops the same elements", figures)
    require(abs(figures["mean_ratio"] - 1) < 0.1, f"dropout scales by {figures['mean_ratio']:.2f}", figures)
    wrong = {name: ratio for name, ratio in figures["derivative_ratios"].items() if not abs(ratio - 1) < 0.1}
    require(not wrong, f"finite differences over gradients: {wrong}, should be 1", figures)
    return figures


def _layouts(seq_len: int) -> dict[str, list[list[int]]]:
    """Rows as the lengths of their sequences; what is left of a row is padding."""
    generator = np.random.default_rng(0)
    mixed: list[list[int]] = [[seq_len], [], [1] * 5, [1, seq_len - 1], [seq_len - 1]]
    for _ in range(4):
        row: list[int] = []
        while (free := seq_len - sum(row)) > 1:
            row.append(int(generator.integers(1, free + 1)))
        mixed.append(row)
    layouts = {"lengths from 1 to a row": mixed}
    for number in (255, 256, 257):  # around the size that numbers of sequences are rounded up to
        rows = -(-number // 16)
        counts = [number // rows + (row < number % rows) for row in range(rows)]
        layouts[f"{number} sequences"] = [[seq_len // count] * count for count in counts]
    return layouts


def _ids(rows: list[list[int]], seq_len: int, device: torch.device) -> Tensor:
    numbered = [[n for n, length in enumerate(row, 1) for _ in range(length)] for row in rows]
    return torch.tensor([row + [0] * (seq_len - len(row)) for row in numbered], device=device)


def _starts(ids: Tensor) -> Tensor:
    starts = sequence_starts(ids)
    require(starts is not None, "sequences are not found as runs")
    return starts  # type: ignore[return-value]  # as required


def _seen(ids: Tensor) -> Visibility:
    """What the model would give the kernel on this device."""
    if ids.device.type == "cpu":
        return Visibility(lengths=_starts(ids).diff().tolist())
    return Visibility(starts=modeling._in_few_sizes(_starts(ids)).int())


def _run(
    bench: Bench, ids: Tensor, seen: Visibility, implementation: str, dtype: torch.dtype, *, dropout: float = 0.0,
    seed: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Return the result and the gradients of q, k and v, at the tokens."""
    q, k, v, direction = _draw(bench, ids, dtype)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    torch.manual_seed(seed)
    result = attention_kernel(implementation, seen)(*inputs, seen, dropout)
    real = ids > 0
    gradients = torch.autograd.grad(result[real], inputs, direction[real])
    return [x.detach()[real] for x in (result, *gradients)]


def _draw(bench: Bench, ids: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and a direction of the result; the same values, rounded to ``dtype`` and back so that all start alike."""
    heads, size = (12, 64) if not bench.is_stand_in else (3, 8)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, *ids.shape, heads, size, generator=generator).to(torch.bfloat16)
    return [x.to(bench.device, dtype) for x in drawn]


def _derivative_ratios(bench: Bench, ids: Tensor, seen: Visibility, dtype: torch.dtype) -> dict[str, float]:
    """Central difference along each gradient, over the gradient's own length; 1 if the gradient is right."""
    kernel, inputs = attention_kernel("sdpa", seen), _draw(bench, ids, dtype)
    direction, ratios = inputs.pop(), {}
    direction[ids == 0] = 0

    def value(at: list[Tensor]) -> float:
        torch.manual_seed(3)
        return float((kernel(*at, seen, _DROPOUT).double() * direction.double()).sum())

    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(3)
    gradients = torch.autograd.grad(kernel(*leaves, seen, _DROPOUT), leaves, direction)
    for index, name in enumerate("qkv"):
        gradient = gradients[index].double()
        # A step of a tenth of the input: far above what bf16 rounds away, small beside the curvature.
        step = gradient * (0.1 * inputs[index].double().norm() / gradient.norm())
        moved = [[x if i != index else (x.double() + sign * step).to(dtype) for i, x in enumerate(inputs)]
                 for sign in (1, -1)]  # fmt: skip
        taken = moved[0][index].double() - moved[1][index].double()
        ratios[name] = (value(moved[0]) - value(moved[1])) / float((gradient * taken).sum())
    return ratios


CHECKS = (
    Check(name="attention", minutes=0.3, run=check_attention),
    Check(name="attention dropout", minutes=0.2, run=check_attention_dropout),
)
