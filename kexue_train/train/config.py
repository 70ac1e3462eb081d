"""The ``train`` section: how long, in which batches, on what, and what is written on the way."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from kexue_train.config import Config
from kexue_train.optim.config import OptimizerConfig

# These change how a result is reached or watched, not the result (beyond floating-point order): an edit resumes.
_NOT_RESULT = frozenset(
    {"micro_batch_size", "num_workers", "num_loader_workers", "launcher", "engine", "zero_stage", "recompute",
     "compile", "device", "threads_per_worker", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints",
     "max_restarts"}
)  # fmt: skip


class MaskingConfig(Config):
    """Chances of a whole word, of one draw per word. Source: the released RoFormerV2 training script."""

    mask_probability: float = Field(default=0.12, ge=0, le=1)
    """Every piece becomes [MASK] and is predicted."""
    keep_probability: float = Field(default=0.015, ge=0, le=1)
    """Every piece stays and is predicted."""
    random_probability: float = Field(default=0.015, ge=0, le=1)
    """Every piece becomes a random one and is predicted."""

    @property
    def total(self) -> float:
        """Share of words predicted."""
        return self.mask_probability + self.keep_probability + self.random_probability

    @model_validator(mode="after")
    def _sum_is_a_probability(self) -> Self:
        if not 0 < self.total <= 1 + 1e-9:  # decimal fractions may miss 1 by their rounding
            raise ValueError(
                f"the three probabilities sum to {self.total:g}; they must sum to more than 0 and at most 1"
            )
        return self


class RecomputeEvery(Config):
    """Recompute some of the layers."""

    every: int = Field(gt=0)
    """Layers 0, n, 2n... are computed again; the others keep everything."""


class TrainConfig(Config):
    """One training run. *step* = optimizer update, *micro-step* = one backward; schedules count steps."""

    steps: int = Field(gt=0)
    """Optimizer updates in all."""
    global_batch_size: int = Field(default=512, gt=0)
    """Rows of one step over all workers: micro_batch_size · accumulation steps · num_workers."""
    micro_batch_size: int = Field(default=32, gt=0)
    """Rows of one backward on one worker; the accumulation steps follow from it."""
    num_workers: int = Field(default=1, gt=0)
    """Worker processes (= data-parallel size), one per device."""
    num_loader_workers: int = Field(default=0, ge=0)
    """Processes per worker that make its micro-batches; 0: one thread of the worker, which is fast enough for most."""
    launcher: Literal["ray", "torchrun"] = "ray"
    """Who starts the workers: Ray Train (restarts and resumes them), or torchrun (needs no Ray)."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """Who runs backward and step; "torch" needs no DeepSpeed installed and gives the same numbers."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed partitions among the workers: 1 the optimizer's state, 2 gradients too, 3 weights too. The steps
    are the same, but gradients are reduced once per micro-batch, where stage 0 averages the momentum once per step."""
    recompute: Literal["none", "selective", "full"] | RecomputeEvery = "none"
    """What is computed again in backward to save memory, without changing a bit: "full" keeps only each layer's input,
    for a third more work; "selective" also most matrix products and attention without dropout, for a tenth more work;
    {every: n} is "full" for every n-th layer."""
    compile: bool = False
    """Compile whole layers with torch.compile: faster on GPUs after a minute or two; needs a C++ compiler."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16" runs matrix products in bfloat16 under autocast; weights, norms and the optimizer stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes CUDA devices if there are any."""
    threads_per_worker: int | None = Field(default=None, gt=0)
    """CPU threads of a worker; by default the CPUs divided by the workers."""
    masking: MaskingConfig = MaskingConfig()
    """Masked-word rates."""
    residual_ramp_steps: int = Field(default=0, ge=0)
    """Steps over which the branches grow from almost nothing to full strength, x = norm(x + alpha F(x)) with alpha =
    step / residual_ramp_steps; 0: at full strength from the start. The exported model is the plain one."""
    nsp_weight: float = Field(default=1.0, ge=0)
    """Weight of the NSP loss beside the MLM loss."""
    loss_unit: Literal["nat", "initial", "prior", "online"] = "nat"
    """What each loss is divided by before they are weighed: 1; its value for uniform guesses, log(vocabulary) and
    log 2; that for guesses by frequency alone, the entropy of the words and log 2; or its own value in the micro-batch,
    so that only the relative improvement counts (steps then depend on micro_batch_size)."""
    log_every: int = Field(default=10, gt=0)
    """Steps between two lines of metrics."""
    validate_every: int = Field(default=500, gt=0)
    """Steps between two validations on the held-out rows; the last step is always validated."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between two checkpoints; the last step always gets one."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints kept."""
    max_restarts: int = Field(default=3, ge=0)
    """How often the workers are restarted from the last checkpoint when one of them dies."""

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per step and worker."""
        return self.global_batch_size // (self.micro_batch_size * self.num_workers)

    def residual_scale(self, step: int) -> float:
        """Alpha of a step, counted from 1; above 0, where the branches would get no gradient."""
        return min(1.0, step / self.residual_ramp_steps) if self.residual_ramp_steps else 1.0

    def settings_of_result(self) -> dict[str, object]:
        """The settings on which the trained weights depend."""
        return self.model_dump(mode="json", exclude=set(_NOT_RESULT))

    @model_validator(mode="after")
    def _zero_stage_is_possible(self) -> Self:
        if self.zero_stage and self.engine != "deepspeed":
            raise ValueError(f"zero_stage={self.zero_stage} is of DeepSpeed: set engine=deepspeed, or zero_stage=0")
        if self.zero_stage == 3 and (self.compile or self.recompute == "selective"):
            raise ValueError(
                "zero_stage=3 goes neither with compile=true nor with recompute=selective, since its weights come and "
                "go within a layer; take zero_stage=2, or compile=false and recompute=full"
            )
        return self

    @model_validator(mode="after")
    def _batches_multiply_out(self) -> Self:
        rows = self.micro_batch_size * self.num_workers
        if self.global_batch_size % rows:
            lower = self.global_batch_size // rows * rows
            near = " or ".join(str(size) for size in (lower, lower + rows) if size)
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of "
                f"micro_batch_size={self.micro_batch_size} · num_workers={self.num_workers} = {rows}; "
                f"take global_batch_size={near}, or another micro_batch_size"
            )
        return self


def check_optimizer_fits(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    """What the two sections can only say together.

    Raises:
        ValueError: If the optimizer cannot be run as ``train`` says.
    """
    if optimizer.states == "bf16" and (train.precision != "bf16" or train.zero_stage):
        raise ValueError(
            f"optimizer.states=bf16 needs train.precision=bf16 and train.zero_stage=0, got {train.precision} and "
            f"{train.zero_stage}; or take optimizer.states=fp32, which precision=bf16 goes with as well"
        )
    if optimizer.name in ("lamb", "lion") and train.zero_stage:
        raise ValueError(
            f"optimizer.name={optimizer.name} is a library's and takes whole tensors, but train.zero_stage="
            f"{train.zero_stage} cuts them up; take zero_stage=0, or tiger, which is exact under every stage"
        )
