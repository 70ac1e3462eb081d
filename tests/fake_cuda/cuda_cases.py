"""What holds of training on CUDA, shown by fake tensors: they have shapes, types and a device, and no values.

Where code asks for a value, as a host that waits for its GPU does, a fake tensor raises; so what runs here never waits.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import traceback
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import triton
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.autograd.graph import _engine_run_backward
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.check import REAL
from benchmarks.gpu.made_up import make_samples
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model import modeling_roformer_v2 as modeling
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.optim import participation, storage, triton_tiger, waiting_gradients
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.build import build_optimizer
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.partitioned import FlatSteps, TensorSlice
from kexue_train.train import plan
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import to_device, to_tensors
from kexue_train.train.engine import TorchEngine
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import PretrainingObjective

DEVICE, ROWS = torch.device("cuda", 0), 8
BASE = ModelConfig()
LARGE = ModelConfig(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096)
NARROW = ModelConfig(num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "tiger": {},
    "bf16 states": {"states": "bf16"},
    "lazy rows": {"embeddings": "lazy"},
    "adamw for embeddings": {"embeddings": "adamw"},
    "dead zone": {"dead_zone": 1e-8},
    "clipping": {"clip": {"norm": 1.0}},
    "soft clipping of the sum": {"clip": {"norm": 1.0, "form": "soft"}, "accumulate": "gradient"},
    "gradient dropout": {"gradient_keep": 0.5},
    "weissi": {"weissi": 0.1, "weissi_sparsity": 0.05},
    "bad gradients are skipped": {"on_nonfinite": "skip"},
    "sgdm": {"name": "sgdm"},
    "adamw": {"name": "adamw"},
}
CAPABILITIES = (80, 86, 89, 90, 100, 120)
KERNELS = ("check_gradients", "fold_gradients", "sum_tile_squares", "add_tile_squares", "move_tiles")
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}


class Kernel:
    """Stands for a Triton kernel: notes how it is launched, in the terms that it is compiled by."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: set[tuple[Any, ...]] = set()
        self.count = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._launch

    def _launch(self, *args: Any, num_warps: int = 4, **named: Any) -> None:
        self.count += 1
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | named
        constants = {p.name: given[p.name] for p in self.kernel.params if p.is_constexpr}
        types = {name: _kind(value) for name, value in given.items() if name not in constants}
        # As Triton specializes: addresses of whole allocations and numbers that sixteen divides.
        fixed = {p.name for p in self.kernel.params if p.do_not_specialize}
        even = [
            n
            for n, v in given.items()
            if n in types and n not in fixed and (isinstance(v, Tensor) or (type(v) is int and v % 16 == 0))
        ]
        self.launches.add((tuple(types.items()), tuple(constants.items()), tuple(even), num_warps))

    def compile(self, launch: tuple[Any, ...], capability: int) -> dict[str, Any]:
        types, constants, even, num_warps = dict(launch[0]), dict(launch[1]), launch[2], launch[3]
        signature = {name: types.get(name, "constexpr") for name in self.kernel.arg_names}
        attributes = {(self.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in even}
        source = ASTSource(self.kernel, signature, constants, attributes)
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options={"num_warps": num_warps}).asm  # type: ignore[no-any-return]


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        assert value.device == DEVICE, f"a kernel is given a tensor on {value.device}"
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


class Watch(TorchDispatchMode):
    """Notes which operators make tensors on the host, and what lives on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: list[str] = []
        self.living: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(func, tensor)
        return result

    def _see(self, func: Any, tensor: Tensor) -> None:
        if tensor.device.type == "cpu":
            own = [frame for frame in traceback.extract_stack() if "kexue_train" in frame.filename]
            self.on_host.append(f"{func} at {own[-1].filename}:{own[-1].lineno}" if own else str(func))
            return
        memory = tensor.untyped_storage()
        if memory._cdata not in self.living:
            self.living[memory._cdata] = memory.nbytes()
            weakref.finalize(memory, self.living.pop, memory._cdata, None)

    @property
    def living_bytes(self) -> int:
        gc.collect()
        return sum(self.living.values())


@pytest.fixture(scope="module")
def host_batch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """A micro-batch as the loader makes it, of eight rows of 512."""
    samples = make_samples(tmp_path_factory.mktemp("made-up"), replace(REAL, num_documents=300, vocab_size=2000))
    return to_tensors(make_batch(SampleDataset(samples), np.arange(ROWS), 0, seed=0))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kernel]:
    """Stand-ins for the kernels, by name."""
    stand_ins = {name: Kernel(getattr(triton_tiger, name)) for name in KERNELS}
    for name, kernel in stand_ins.items():
        monkeypatch.setattr(triton_tiger, name, kernel)
    return stand_ins


def _run_backward(*args: Any, **named: Any) -> Any:
    """Let autograd find devices, as many as torch has in place of them; whoever else looks would start a driver."""
    driver = ctypes.CDLL(os.environ["NO_DRIVER"])
    driver.show_devices(127)
    try:
        return _engine_run_backward(*args, **named)
    finally:
        driver.show_devices(0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, kernels: dict[str, Kernel]) -> Iterator[FakeTensorMode]:
    """All tensors are fake, and there are CUDA devices like an H200."""
    properties = {
        "is_available": True,
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
        "get_device_name": "NVIDIA H200",
    }
    for name, value in properties.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True)  # though there seem to be devices
    # Fresh weights depend on their values; and nothing lies at an address.
    monkeypatch.setattr(modeling.RoFormerV2PreTrainedModel, "_init_weights", lambda *_: None)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda self: 256 * self.untyped_storage()._cdata)
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", _run_backward)
    storage._triton_works.cache_clear()
    with FakeTensorMode() as mode, torch.autograd.set_multithreading_enabled(False):
        yield mode


@pytest.fixture
def batch(host_batch: dict[str, Tensor], cuda: FakeTensorMode) -> dict[str, Tensor]:
    """The micro-batch on the device."""
    return to_device(tree_map(cuda.from_tensor, host_batch), DEVICE)


def make_objective(
    model: ModelConfig, recompute: str = "none", dtype: torch.dtype = torch.float32
) -> PretrainingObjective:
    """The model with its loss, as training builds it."""
    torch.set_default_dtype(dtype)
    try:
        with DEVICE:
            made = RoFormerV2ForPreTraining(build_hf_config(model, 12_032))
    finally:
        torch.set_default_dtype(torch.float32)
    if recompute != "none":
        enable_recompute(made.roformer, recompute)  # type: ignore[arg-type]  # one of the two
    objective = PretrainingObjective(made, pretraining_heads(ObjectiveConfig()), autocast=torch.bfloat16)
    return objective.train()


def make_engine(
    model: ModelConfig, *, recompute: str = "none", accumulation_steps: int = 2, **settings: Any
) -> tuple[TorchEngine, HiddenAccumulation, PretrainingObjective]:
    """An engine and what it works with."""
    config = OptimizerConfig.model_validate(settings)
    objective = make_objective(model, recompute, torch.bfloat16 if config.states == "bf16" else torch.float32)
    optimizer: Any = build_optimizer(config, objective.model, accumulation_steps=accumulation_steps, seed=0)
    return TorchEngine(objective, optimizer), optimizer, objective


def run_step(engine: TorchEngine, optimizer: HiddenAccumulation, batch: dict[str, Tensor]) -> Watch:
    """Two steps as the loop runs them: the host may ask for no value and, in the second, make no tensor."""
    for _ in range(2):
        with Watch() as watch:
            for _ in range(optimizer.accumulation_steps):
                optimizer.observe_tokens(batch["input_ids"], batch["prediction_labels"])
                scores = engine.micro_step(batch)
                assert scores.shape == (2, 3)
                assert scores.device == DEVICE
    assert watch.on_host == []
    return watch


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("model", [BASE, LARGE], ids=["base", "large"])
def test_a_step_stays_on_the_device_and_never_waits(model, recompute, batch):
    engine, optimizer, objective = make_engine(model, recompute=recompute, accumulation_steps=1)
    run_step(engine, optimizer, batch)
    assert optimizer.steps == 2
    assert type(optimizer.storage).__name__ == "FusedTensors"
    tensors = [
        *objective.parameters(),
        *objective.buffers(),
        *optimizer.named_moments().values(),
        optimizer.guard.flags,
    ]
    assert {tensor.device for tensor in tensors} == {DEVICE}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_the_optimizer_stays_on_the_device(name, batch):
    engine, optimizer, _ = make_engine(NARROW, **OPTIMIZERS[name])
    run_step(engine, optimizer, batch)
    assert optimizer.steps == 2


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Torch's fake group of two, whose collectives do nothing; what the hosts say to each other is noted."""
    said: list[bool] = []
    monkeypatch.setattr(participation, "any_over_ranks", lambda flags, _: said.extend(flags) or list(flags))
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield said
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["tiger", "bf16 states", "soft clipping of the sum", "lazy rows"])
def test_ranks_wait_for_no_device(name, two_ranks, batch):
    engine, optimizer, _ = make_engine(NARROW, **OPTIMIZERS[name])
    run_step(engine, optimizer, batch)
    assert optimizer.steps == 2
    assert two_ranks


def kept_by_a_layer(recompute: str, batch: dict[str, Tensor]) -> float:
    """Bytes per token and unit of width that a layer of base keeps for backward, from four layers and from eight."""
    kept = []
    for layers in (4, 8):
        objective = make_objective(BASE.model_copy(update={"num_hidden_layers": layers}), recompute)
        with Watch() as watch:
            loss, _ = objective(batch)
            kept.append(watch.living_bytes)
        del loss
    return (kept[1] - kept[0]) / (4 * batch["input_ids"].numel() * BASE.hidden_size)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_the_plan_tells_the_bytes_that_a_layer_keeps(recompute, batch):
    assert kept_by_a_layer(recompute, batch) == pytest.approx(plan._KEPT_BYTES_BF16[recompute], rel=0.1)


@pytest.mark.parametrize("name", ["tiger", "lazy rows", "adamw", "clipping"])
def test_slices_of_zero_stay_on_the_device_and_the_whole_moments_go(name, batch):
    objective = make_objective(NARROW)
    config = OptimizerConfig.model_validate({"accumulate": "gradient", **OPTIMIZERS[name]})
    optimizer: Any = build_optimizer(config, objective.model, accumulation_steps=1, seed=0, partitioned=True)
    steps = FlatSteps(optimizer)
    moments = [weakref.ref(tensor.moments[0]) for tensor in optimizer.tensors]
    params = [tensor.param for tensor in optimizer.tensors]
    sizes = [param.numel() for param in params]
    offsets = np.cumsum([0, *sizes])
    flat = torch.cat([param.detach().view(-1) for param in params])
    steps.attach([flat], [TensorSlice(i, 0, size, 0, int(offsets[i])) for i, size in enumerate(sizes)])
    gc.collect()
    assert [moment() for moment in moments if moment() is not None] == []
    steps.param_groups[0]["params"] = [flat]  # as DeepSpeed does
    for _ in range(2):  # the first makes tables
        with Watch() as watch:
            optimizer.observe_tokens(batch["input_ids"], batch["prediction_labels"])
            objective(batch)[0].backward()
            steps.fold([param.grad.view(-1) for param in params])
            steps.decide()
            steps.step()
            optimizer.step()
    assert watch.on_host == []


def folding(model: ModelConfig, batch: dict[str, Tensor], kernels: dict[str, Kernel]) -> tuple[float, int, int]:
    """Launches by which a micro-batch is folded, tensors, and most bytes of gradients that wait at a time."""
    engine, optimizer, _ = make_engine(model, accumulation_steps=8)
    engine.micro_step(batch)
    waiting, most, before = optimizer.storage._waiting, 0, kernels["fold_gradients"].count  # type: ignore[attr-defined]
    add = waiting.add

    def weigh(index: int, grad: Tensor, settings: Any) -> None:
        nonlocal most
        add(index, grad, settings)
        most = max(most, sum(other.nbytes for other in waiting._gradients.values()))

    waiting.add = weigh
    engine.micro_step(batch)
    assert waiting._gradients == {}
    return kernels["fold_gradients"].count - before, len(optimizer.tensors), most


@pytest.mark.parametrize(("model", "launches"), [(BASE, 12), (LARGE, 40)], ids=["base", "large"])
def test_gradients_of_several_tensors_are_folded_at_once(model, launches, batch, kernels):
    count, tensors, most = folding(model, batch, kernels)
    assert count <= launches < tensors
    assert most < waiting_gradients.MOST_BYTES


@pytest.fixture
def compiler(cuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What torch.compile counts; it finds no device whose streams and random numbers it would ask a driver for."""

    def is_available() -> bool:
        asks = sys._getframe(1).f_code.co_filename
        return not any(part in asks for part in ("/torch/_dynamo/", "/torch/utils/_triton", "/torch/accelerator/"))

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._functorch.config.patch(graphsafe_rng_functionalization=False):
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # the compiler looks at every tensor's gradient, and warns of it
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_all_layers_are_one_graph_forward_and_backward(recompute, batch, compiler):
    objective = make_objective(NARROW, recompute)
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compile_layers(objective.model.roformer, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    objective(batch)[0].backward()
    assert compiler["stats"]["unique_graphs"] == compiler["aot_autograd"]["ok"] == 1
    assert not compiler["graph_break"]
    forward, backward = graphs
    assert "aten._flash_attention_forward" in str(forward.code)
    assert "aten._flash_attention_backward" in str(backward.code)
    for graph in graphs:  # a CUDA graph can hold no work of the host, and no sizes that are told later
        made = [value for node in graph.graph.nodes for value in tree_leaves(node.meta.get("val"))]
        if recompute == "none":  # else torch keeps the state of random numbers, which is a CPU's here
            assert {value.device for value in made if isinstance(value, Tensor)} == {DEVICE}
        assert not any(isinstance(value, torch.SymInt) for value in made)
    assert {param.grad.device for param in objective.parameters()} == {DEVICE}


@pytest.fixture
def launched(batch, kernels) -> dict[str, Kernel]:
    """The kernels with every way in which a step launches them: fp32 and bf16 states."""
    for settings in ({}, {"states": "bf16"}):
        engine, optimizer, _ = make_engine(NARROW, **settings)
        run_step(engine, optimizer, batch)
    return kernels


def test_every_kernel_is_launched_and_compiled_to_machine_code(launched):
    assert {name: len(kernel.launches) > 0 for name, kernel in launched.items()} == dict.fromkeys(KERNELS, True)
    with torch._C._DisableTorchDispatch():
        for kernel in launched.values():
            for launch in kernel.launches:
                for capability in CAPABILITIES:
                    assert kernel.compile(launch, capability)["cubin"], (kernel.kernel, launch, capability)


# --- planted faults, by which what is shown above would not hold ------------------------------------------------------


def test_a_value_that_is_asked_for_is_found(batch, monkeypatch):
    norm = modeling.RMSNorm.forward
    monkeypatch.setattr(modeling.RMSNorm, "forward", lambda self, x: norm(self, x) * bool(x.isfinite().all()))
    engine, optimizer, _ = make_engine(NARROW)
    with pytest.raises(DataDependentOutputException):
        run_step(engine, optimizer, batch)


def test_a_tensor_made_on_the_host_is_found(batch, monkeypatch):
    norm = modeling.RMSNorm.forward
    monkeypatch.setattr(modeling.RMSNorm, "forward", lambda self, x: norm(self, x) * torch.tensor(1.0))
    engine, optimizer, _ = make_engine(NARROW)
    with pytest.raises(AssertionError, match="modeling_roformer_v2"):
        run_step(engine, optimizer, batch)


def test_tokens_of_the_host_are_found(batch, host_batch, cuda):
    _, optimizer, _ = make_engine(NARROW, embeddings="lazy")
    with pytest.raises(DataDependentOutputException):  # it looks at numbers that the host has
        optimizer.observe_tokens(cuda.from_tensor(host_batch["input_ids"]))


def test_layers_that_keep_too_much_are_found(batch, monkeypatch):
    monkeypatch.setitem(plan._KEPT_BYTES_BF16, "none", 102.0)
    assert kept_by_a_layer("none", batch) != pytest.approx(plan._KEPT_BYTES_BF16["none"], rel=0.1)


def test_a_kernel_given_another_device_is_found(batch, kernels):
    with pytest.raises(AssertionError, match="tensor on cpu"):
        kernels["add_tile_squares"][(1,)](torch.zeros(3, dtype=torch.int64), torch.zeros(1), block=16)


@pytest.mark.filterwarnings("ignore")
def test_a_graph_that_breaks_is_found(batch, compiler, monkeypatch):
    forward = modeling.RMSNorm.forward
    monkeypatch.setattr(modeling.RMSNorm, "forward", lambda self, x: (torch._dynamo.graph_break(), forward(self, x))[1])
    objective = make_objective(NARROW)
    compile_layers(objective.model.roformer, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        objective(batch)
