"""The ``train`` section: how long, in which batches, on what, and what is written on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from kexue_train.corpus.remote import is_uri
from kexue_train.foundation.config import Config, refuse_without_effect
from kexue_train.foundation.config_file import move_renamed_keys
from kexue_train.model.config import ModelConfig, problem_of_attention
from kexue_train.optim.config import OptimizerConfig
from kexue_train.train.weighting.config import LOSS_SCHEMES, WeightingConfig

LauncherName = Literal["ray", "torchrun", "local"]
"""What starts the workers; ``launch.py`` has the function of each."""
LossUnit = Literal["nat", "initial", "prior", "online"]
MicroBatchSize = Annotated[int, Field(gt=0)] | Literal["auto"]
Precision = Literal["fp32", "bf16"]


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


class ProfileConfig(Config):
    """Steps to be recorded with torch.profiler."""

    first_step: int = Field(default=50, gt=0)
    """The first one, counted from 1; late enough for caches, compiler and loader to have settled."""
    steps: int = Field(default=3, gt=0, le=100)
    """How many; a file of some MB per step."""


class PhaseConfig(Config):
    """Consecutive steps with one length of rows and one batch size; a key that is missing is that of ``train``."""

    steps: int = Field(gt=0)
    """Optimizer updates."""
    seq_len: int | None = Field(default=None, gt=0)
    """Length of the rows; either every phase names one or none does."""
    global_batch_size: int | None = Field(default=None, gt=0)
    """Rows of one step over all workers."""
    micro_batch_size: MicroBatchSize | None = None
    """Rows of one backward on one worker."""


class PhaseSettings(NamedTuple):
    """A phase with nothing left out."""

    steps: int
    seq_len: int | None
    """None: that of the samples, which then have one."""
    global_batch_size: int
    micro_batch_size: MicroBatchSize


def check_loss_unit(unit: LossUnit, weighting: WeightingConfig) -> None:
    """Refuse two settings that both divide the loss of a task.

    Raises:
        ValueError: Naming both.
    """
    if unit != "nat" and weighting.scheme in LOSS_SCHEMES:
        raise ValueError(
            f"loss_unit={unit} and weighting.scheme={weighting.scheme} both measure the loss of a task in a unit; take "
            "one of them"
        )


class ObjectiveConfig(Config):
    """What is minimised. Of the sections of ``train``, this one alone changes the trained weights."""

    masking: MaskingConfig = MaskingConfig()
    """Masked-word rates."""
    residual_ramp_steps: int = Field(default=0, ge=0)
    """Steps over which the branches grow from almost nothing to full strength, x = norm(x + alpha F(x)) with alpha =
    step / residual_ramp_steps; 0: at full strength from the start. The exported model is the plain one."""
    nsp_weight: float = Field(default=1.0, ge=0)
    """Weight of the NSP loss beside the MLM loss."""
    loss_unit: LossUnit = "nat"
    """What each loss is divided by before they are weighed: 1; its value for uniform guesses, log(vocabulary) and
    log 2; that for guesses by frequency alone, the entropy of the words and log 2; or its own value in the micro-batch,
    so that only the relative improvement counts (steps then depend on micro_batch_size)."""
    weighting: WeightingConfig = WeightingConfig()
    """How much each task counts where masked words and labelled tasks train together."""

    @model_validator(mode="after")
    def _losses_are_divided_once(self) -> Self:
        check_loss_unit(self.loss_unit, self.weighting)
        return self


class WorkersConfig(Config):
    """How the workers are started, and what each of them gets."""

    launcher: LauncherName = "ray"
    """Who starts the workers, and again when they are lost: Ray Train, here or on a cluster, or torchrun, on this
    machine and without Ray; or nobody: "local" trains one worker in this very process."""
    min_workers: int | None = Field(default=None, gt=0)
    """The fewest workers to continue with when machines of a Ray cluster are lost; by default num_workers, for which a
    restart waits. The global batch stays the same."""
    num_loader_workers: int = Field(default=0, ge=0)
    """Processes per worker that make its micro-batches; 0: one thread of the worker, which is fast enough for most."""
    threads_per_worker: int | None = Field(default=None, gt=0)
    """CPU threads of a worker; by default the CPUs divided by the workers."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """Who moves tensors between workers; "auto": NCCL between CUDA devices, gloo between CPUs."""


class ComputeConfig(Config):
    """How forward, backward and step are computed: memory and speed, with the same result."""

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
    cuda_graphs: bool = False
    """Replay compiled layers as CUDA graphs, which spares the host work where micro-batches are small and takes more
    memory; needs compile=true and GPUs. No GPU has tried it yet."""

    def problem_on(self, device_type: str) -> str | None:
        """What a device of the type cannot do, or not in a reasonable time, and what to set; None if nothing."""
        if device_type == "cuda" and self.recompute == "selective" and not self.compile:
            return (
                "compute.recompute=selective without compute.compile=true takes the host longer for every operation "
                "than a GPU takes to do it; set compute.compile=true, or compute.recompute=none or full"
            )
        if device_type == "cpu" and self.cuda_graphs:
            return "compute.cuda_graphs=true has no effect on a CPU; set it to false, or train on GPUs"
        return None

    @model_validator(mode="after")
    def _graphs_are_of_compiled_layers(self) -> Self:
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs=true replays compiled layers: set compile=true, or cuda_graphs=false")
        return self

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


class CheckpointsConfig(Config):
    """When checkpoints are saved, and which are kept."""

    every: int = Field(default=500, gt=0)
    """Steps between two checkpoints; the last step always gets one."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints kept, beside the one of lowest validation loss."""
    keep_every: int | None = Field(default=None, gt=0)
    """Steps between two checkpoints that are kept forever, a multiple of ``every``."""
    mirror: str | None = None
    """URI of a folder (s3://, gs://, hdfs://, file://, or of any installed fsspec package) where a copy of the
    checkpoints is kept; training resumes from it if the local ones are lost. Credentials are best left to the
    environment."""

    @field_validator("mirror")
    @classmethod
    def _mirror_is_a_uri(cls, value: str | None) -> str | None:
        if value is not None and not is_uri(value):
            raise ValueError("must be scheme://..., such as s3://bucket/run-1 or file:///mnt/backup/run-1")
        return value

    @model_validator(mode="after")
    def _kept_forever_are_saved(self) -> Self:
        if self.keep_every and self.keep_every % self.every:
            raise ValueError(
                f"keep_every={self.keep_every} is not a multiple of every={self.every}, so at "
                "those steps nothing would be saved; change one of them"
            )
        return self


class LoggingConfig(Config):
    """What is measured and written while training."""

    log_every: int = Field(default=10, gt=0)
    """Steps between two lines of metrics."""
    validate_every: int = Field(default=500, gt=0)
    """Steps between two validations on the held-out rows; the last step is always validated."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(default=("tensorboard",), strict=False)
    """Where curves go beside metrics.jsonl. MLflow and Weights & Biases (packages of their own) find their servers as
    usual, by environment variables such as MLFLOW_TRACKING_URI and WANDB_PROJECT."""
    profile: ProfileConfig | None = None
    """Steps to be recorded with torch.profiler, into logs/trace-rank-N-step-M.json.gz; null: none."""


class FaultsConfig(Config):
    """What happens when workers are lost, hang or are to stop, and when the loss jumps."""

    max_restarts: int = Field(default=3, ge=0)
    """How often the workers are started again from the last checkpoint when some are lost, without a new checkpoint
    between two starts."""
    hang_timeout: float = Field(default=600.0, gt=0)
    """Seconds without a finished micro-step (three times as many for the first) after which a worker writes down where
    its threads stand and ends, to be started again."""
    stop_timeout: float = Field(default=120.0, gt=0)
    """Seconds that workers have to save a checkpoint when the command that started them is to stop."""
    on_spike: Literal["ignore", "stop", "rollback"] = "rollback"
    """What follows when the loss of a step is NaN or infinite, or far above that of the steps before: nothing (a loss
    that is not finite stops training nevertheless, since no later step could mend it); an error; or a rollback to the
    last checkpoint, after which the rows read since are skipped."""
    max_rollbacks: int = Field(default=5, ge=0)
    """Rollbacks in all before a spike is an error."""

    @model_validator(mode="after")
    def _all_have_an_effect(self) -> Self:
        if self.on_spike != "rollback":
            refuse_without_effect(self, "max_rollbacks", because=f"with on_spike={self.on_spike}")
        return self


def _sum_of_steps(values: dict[str, Any]) -> int:
    return sum(phase.steps for phase in values.get("phases", ()))


class TrainConfig(Config):
    """One training run. *step* = optimizer update, *micro-step* = one backward; schedules count steps."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["steps"]}, {"required": ["phases"]}]})

    phases: tuple[PhaseConfig, ...] = Field(default=(), strict=False)
    """Stretches of steps with rows of another length or batches of another size, such as
    [{steps: 9000, seq_len: 128, global_batch_size: 1024}, {steps: 1000, seq_len: 512}]; without them all steps are
    alike."""
    steps: int = Field(default_factory=_sum_of_steps, gt=0)
    """Optimizer updates in all; must be given, or else follows from the phases."""
    init_from: Path | None = None
    """Model folder (exported, imported, or a checkpoint) whose weights training starts with, in place of random ones;
    the momentum is fresh, and the schedule warms up again."""
    global_batch_size: int = Field(default=512, gt=0)
    """Rows of one step over all workers: micro_batch_size · accumulation steps · num_workers."""
    micro_batch_size: MicroBatchSize = 32
    """Rows of one backward on one worker; the accumulation steps follow from it. "auto": the most that fit the device
    and still make it faster, tried when training starts and kept in micro_batch_sizes.json."""
    num_workers: int = Field(default=1, gt=0)
    """Worker processes (= data-parallel size), one per device."""
    precision: Precision | Literal["auto"] = "fp32"
    """"bf16" runs matrix products in bfloat16 under autocast; weights, norms and the optimizer stay fp32. "auto" takes
    bf16 where a layer of the model is faster with it, measured once when training starts and kept in the
    checkpoints."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes CUDA devices if there is one for each worker."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is minimised."""
    workers: WorkersConfig = WorkersConfig()
    """How the workers are started."""
    compute: ComputeConfig = ComputeConfig()
    """How forward, backward and step are computed."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """When checkpoints are saved, and which are kept."""
    logging: LoggingConfig = LoggingConfig()
    """What is measured and written."""
    faults: FaultsConfig = FaultsConfig()
    """What happens when something breaks."""

    @property
    def phase_settings(self) -> tuple[PhaseSettings, ...]:
        """The phases with nothing left out; a single one without ``phases``."""
        return tuple(
            PhaseSettings(
                phase.steps,
                phase.seq_len,
                phase.global_batch_size or self.global_batch_size,
                phase.micro_batch_size or self.micro_batch_size,
            )
            for phase in self.phases or (PhaseConfig(steps=self.steps),)
        )

    @property
    def seq_lens(self) -> tuple[int, ...]:
        """The lengths that the phases name, rising; none if the samples decide."""
        return tuple(sorted({phase.seq_len for phase in self.phases if phase.seq_len}))

    def residual_scale(self, step: int) -> float:
        """Alpha of a step, counted from 1; above 0, where the branches would get no gradient."""
        ramp = self.objective.residual_ramp_steps
        return min(1.0, step / ramp) if ramp else 1.0

    def settings_of_result(self) -> dict[str, object]:
        """Return the settings on which the trained weights depend, beside the weights they start with.

        The others change how a result is reached or watched, not the result (beyond floating-point order), so an edit
        of them resumes. Folders of every release record these keys without their sections.
        """
        settings = self.model_dump(mode="json", include={"steps", "global_batch_size", "precision"})
        settings |= self.objective.model_dump(mode="json")
        if self.objective.weighting == WeightingConfig():  # folders of earlier releases do not record it
            del settings["weighting"]
        if self.phases:
            del settings["global_batch_size"]
            settings["phases"] = [
                {"steps": phase.steps, "seq_len": phase.seq_len, "global_batch_size": phase.global_batch_size}
                for phase in self.phase_settings
            ]
        return settings

    @model_validator(mode="before")
    @classmethod
    def _accept_keys_without_section(cls, values: Any) -> Any:
        return move_renamed_keys(values, _SECTION_OF, where="train") if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _workers_fit_the_launcher(self) -> Self:
        launcher, fewest = self.workers.launcher, self.workers.min_workers
        if launcher == "local" and self.num_workers > 1:
            raise ValueError(f"launcher=local is one worker, num_workers={self.num_workers}; take ray or torchrun")
        if fewest and fewest > self.num_workers:
            raise ValueError(f"min_workers={fewest} must be at most num_workers={self.num_workers}")
        return self

    @model_validator(mode="after")
    def _device_can_compute_so(self) -> Self:
        if self.device != "auto" and (problem := self.compute.problem_on(self.device)):
            raise ValueError(f"device={self.device}: {problem}")
        return self

    @field_validator("device", mode="before")
    @classmethod
    def _mps_does_not_train(cls, value: Any) -> Any:
        if value == "mps":
            raise ValueError(
                "device=mps: training runs on CPUs and CUDA devices; on a Mac take cpu, as auto does (an exported "
                "model runs on mps with transformers)"
            )
        return value

    @field_validator("init_from")
    @classmethod
    def _found_from_anywhere(cls, value: Path | None) -> Path | None:
        return value and value.absolute()  # workers may run in another folder

    @model_validator(mode="after")
    def _phases_go_together(self) -> Self:
        if not self.steps:
            raise ValueError("neither steps nor phases are given; say how many steps to train")
        in_phases = sum(phase.steps for phase in self.phases)
        if self.phases and self.steps != in_phases:
            raise ValueError(f"steps={self.steps}, but the phases have {in_phases} in all; leave steps out")
        named = [phase.seq_len is not None for phase in self.phases]
        if any(named) and not all(named):
            raise ValueError(f"phase {named.index(False) + 1} names no seq_len and others do; give each phase one")
        if self.init_from and self.objective.residual_ramp_steps:
            raise ValueError(
                f"residual_ramp_steps={self.objective.residual_ramp_steps} lets the branches grow from nothing, which "
                "spoils the weights of init_from; drop one of them"
            )
        return self

    @model_validator(mode="after")
    def _batches_multiply_out(self) -> Self:
        for number, phase in enumerate(self.phase_settings, 1):
            micro = 1 if phase.micro_batch_size == "auto" else phase.micro_batch_size
            if phase.global_batch_size % (micro * self.num_workers):
                where = f"phase {number}: " if self.phases else ""
                raise ValueError(where + _explain_batches(phase.global_batch_size, micro, self.num_workers))
        return self


_OTHER_NAMES = {"every": "checkpoint_every", "keep": "keep_checkpoints"}
_SECTION_OF = {
    _OTHER_NAMES.get(key, key): f"{section}.{key}"
    for section, field in TrainConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config)
    for key in field.annotation.model_fields
}
RENAMED_KEYS = {f"train.{old}": f"train.{new}" for old, new in _SECTION_OF.items()}
"""Keys that had no section before version 0.2, accepted for one release, and what they are called now."""


def _explain_batches(global_batch_size: int, micro_batch_size: int, num_workers: int) -> str:
    rows = micro_batch_size * num_workers
    lower = global_batch_size // rows * rows
    near = " or ".join(str(size) for size in (lower, lower + rows) if size)
    per_worker, rest = divmod(global_batch_size, num_workers)
    smaller = [size for size in range(1, min(micro_batch_size, per_worker) + 1) if per_worker % size == 0]
    other = "another num_workers" if rest or not smaller else f"micro_batch_size={smaller[-1]}"
    return (
        f"global_batch_size={global_batch_size} is not a multiple of micro_batch_size={micro_batch_size} · "
        f"num_workers={num_workers} = {rows}; take global_batch_size={near}, or {other}"
    )


def check_model_fits(model: ModelConfig, train: TrainConfig) -> None:
    """What the sections ``model`` and ``train`` can only say together.

    Raises:
        ValueError: If the attention cannot be computed as ``train.compute`` says.
    """
    recompute = train.compute.recompute
    mode = "full" if isinstance(recompute, RecomputeEvery) else recompute
    if problem := problem_of_attention(model.attention, recompute=mode, is_compiled=train.compute.compile):
        raise ValueError(f"model and train.compute do not go together: {problem}")


def check_optimizer_fits(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    """What the two sections can only say together.

    Raises:
        ValueError: If the optimizer cannot be run as ``train`` says.
    """
    if optimizer.states == "bf16" and (train.precision != "bf16" or train.compute.zero_stage):
        raise ValueError(
            f"optimizer.states=bf16 needs train.precision=bf16 and train.compute.zero_stage=0, got "
            f"{train.precision} and {train.compute.zero_stage}; or take "
            "optimizer.states=fp32, which precision=bf16 goes with as well"
        )
    if optimizer.name in ("lamb", "lion") and train.compute.zero_stage:
        raise ValueError(
            f"optimizer.name={optimizer.name} is a library's and takes whole tensors, but train.compute.zero_stage="
            f"{train.compute.zero_stage} cuts them up; take zero_stage=0, or tiger, which is exact under every stage"
        )
    if train.compute.cuda_graphs and optimizer.accumulate == "gradient":  # pytorch/pytorch#169545
        raise ValueError(
            "train.compute.cuda_graphs=true goes with optimizer.accumulate=momentum only: gradients of replayed layers "
            "lie where the next micro-batch writes its own, so none may wait for the end of a step; set "
            "accumulate=momentum, or cuda_graphs=false"
        )
    if train.phases and train.compute.zero_stage and optimizer.accumulate == "gradient":
        raise ValueError(
            "train.phases with train.compute.zero_stage above 0 needs optimizer.accumulate=momentum, since DeepSpeed "
            "cannot accumulate another number of micro-batches in each phase"
        )
