"""Texts of CUDA 12 and 13, NCCL, Triton and gloo, and what follows from each.

Most stand as they were posted or as the sources print them; those of cuDNN 9, EFA, error 802, Xid and gloo's time
limits are made in the form that their libraries use.

Sources: pytorch/pytorch (c10/cuda/CUDAException.cpp, NCCLUtils.hpp, ProcessGroupNCCL.cpp), NVIDIA/nccl issues 1410 and
629, triton-lang/triton issue 1302, hiyouga/LlamaFactory issue 7396, sgl-project/sglang issue 3204, vllm issues 11054
and 19890, returnn issue 1626, NVIDIA's list of Xid errors.
"""

from __future__ import annotations

import pytest
import torch

from kexue_train.foundation.errors import ResourceError
from kexue_train.train import torchrun_launch
from kexue_train.train.device_errors import (
    BAD_ACCESS,
    BROKEN_DEVICE,
    HUNG_COLLECTIVE,
    LOST_RANK,
    OUT_OF_MEMORY,
    PINNED_MEMORY,
    SHARED_MEMORY,
    find_cause,
    find_fault,
)
from kexue_train.train.job import TrainDir
from kexue_train.train.micro_batch import is_out_of_memory
from kexue_train.train.restarts import WorkersLost, device_faults_explained, raise_reported_failure, report_failure

CUDA_12 = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)


def cuda_13(name: str) -> str:
    where = "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"
    return f"\nSearch for `{name}' in {where} for more information.{CUDA_12}"


NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled cuda error (run with NCCL_DEBUG=INFO "
    "for details), NCCL version 2.20.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
)
NCCL_SYSTEM = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.26.2\nncclSystemError: System call (e.g. socket, malloc) or external "
    "library call failed or device error.\nLast error:\n"
)
CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 7.45 GiB. GPU 0 has a total capacity of 14.56 GiB of which 3.24 GiB is "
    "free. Process 1 has 11.32 GiB memory in use. Of the allocated memory 8.40 GiB is allocated by PyTorch, and "
    "2.80 GiB is reserved by PyTorch but unallocated."
)
TIMEOUT = (
    "[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for 600060 "
    "milliseconds before timing out."
)
TEXTS = {
    CUDA_OOM: OUT_OF_MEMORY,
    "CUDA error: out of memory" + CUDA_12: OUT_OF_MEMORY,
    "CUDA error: out of memory" + cuda_13("cudaErrorMemoryAllocation"): OUT_OF_MEMORY,
    "CUDA driver error: out of memory": OUT_OF_MEMORY,
    "Triton Error [CUDA]: out of memory": OUT_OF_MEMORY,
    NCCL + "Cuda failure 2 'out of memory'": OUT_OF_MEMORY,
    "include/alloc.h:320 (ncclCuMemAlloc) NCCL WARN Cuda failure 2 'out of memory'": OUT_OF_MEMORY,
    "enqueue.cc:1085 NCCL WARN Cuda failure 'out of memory'": OUT_OF_MEMORY,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": OUT_OF_MEMORY,
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": OUT_OF_MEMORY,
    "CUDA error: CUDA_ERROR_OUT_OF_MEMORY": OUT_OF_MEMORY,
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "64000000000 bytes. Error code 12 (Cannot allocate memory)": OUT_OF_MEMORY,
    NCCL_SYSTEM + "Call to ibv_reg_mr failed with error Cannot allocate memory": PINNED_MEMORY,
    "misc/ibvwrap.cc:262 NCCL WARN Call to ibv_create_cq failed with error Cannot allocate memory": PINNED_MEMORY,
    NCCL_SYSTEM
    + "Error while creating shared memory segment /dev/shm/nccl-cjY8K5 (size 10617216), error: No space left on "
    "device (28)": SHARED_MEMORY,
    "misc/shmutils.cc:72 NCCL WARN Error: failed to extend /dev/shm/nccl-UbzKZ9 to 9637892 bytes": SHARED_MEMORY,
    "DataLoader worker (pid 1234) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit.": SHARED_MEMORY,
    "CUDA error: uncorrectable ECC error encountered" + CUDA_12: BROKEN_DEVICE,
    "CUDA error: uncorrectable NVLink error detected during the execution" + CUDA_12: BROKEN_DEVICE,
    "CUDA error: unspecified launch failure" + cuda_13("cudaErrorLaunchFailure"): BROKEN_DEVICE,
    "CUDA error: unknown error" + CUDA_12: BROKEN_DEVICE,
    NCCL + "Cuda failure 999 'unknown error'": BROKEN_DEVICE,
    "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized": BROKEN_DEVICE,
    "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.": BROKEN_DEVICE,
    "CUDA error: an illegal memory access was encountered" + cuda_13("cudaErrorIllegalAddress"): BAD_ACCESS,
    "Triton Error [CUDA]: an illegal memory access was encountered": BAD_ACCESS,
    "enqueue.cc:1556 NCCL WARN Cuda failure 700 'an illegal memory access was encountered'": BAD_ACCESS,
    "CUDA error: device-side assert triggered" + CUDA_12: BAD_ACCESS,
    "CUDA error: misaligned address" + CUDA_12: BAD_ACCESS,
    TIMEOUT: HUNG_COLLECTIVE,
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to "
    "complete": HUNG_COLLECTIVE,
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, remote process exited or there was a "
    "network error, NCCL version 2.26.2\nncclRemoteError: A call failed possibly due to a network error or a remote "
    "process exiting prematurely.\nLast error:\nsocketPollConnect: connect returned Connection refused": LOST_RANK,
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:45297": LOST_RANK,
    "out of resource: shared memory, Required: 212992, Hardware limit: 101376. Reducing block sizes or `num_stages` "
    "may help.": None,
    "mat1 and mat2 shapes cannot be multiplied (8x32 and 48x32)": None,
    "CUDA error: invalid device ordinal" + CUDA_12: None,
    "Triton Error [CUDA]: invalid argument": None,
}


@pytest.mark.parametrize(("text", "fault"), TEXTS.items(), ids=range(len(TEXTS)))
def test_the_kind_of_each_text_is_known(text, fault):
    assert find_fault(text) is fault
    assert is_out_of_memory(RuntimeError(text)) == (fault is OUT_OF_MEMORY)


@pytest.mark.parametrize(("text", "fault"), TEXTS.items(), ids=range(len(TEXTS)))
def test_an_error_says_what_to_do_where_this_rank_knows_it(text, fault):
    given = RuntimeError(text)
    with (
        pytest.raises((RuntimeError, ResourceError, WorkersLost)) as caught,
        device_faults_explained(torch.device("cuda", 3), lambda: 17),
    ):
        raise given
    if fault in (PINNED_MEMORY, SHARED_MEMORY, BROKEN_DEVICE, BAD_ACCESS):
        assert isinstance(caught.value, ResourceError if fault.comes_back else WorkersLost)
        assert "cuda:3 of" in str(caught.value)
        assert "after step 17" in str(caught.value)
        assert fault.remedy in str(caught.value)
        assert "CUDA_LAUNCH_BLOCKING=1\n" not in str(caught.value)
    else:
        assert caught.value is given


def test_workers_are_started_again_after_a_broken_device_and_not_after_a_limit_that_stays(tmp_path):
    """What a launcher, which sees exit codes, reads in the folder."""
    paths = TrainDir(tmp_path)
    paths.logs.mkdir(parents=True)
    report_failure(WorkersLost("the device has failed"), paths)
    with pytest.raises(WorkersLost, match="the device has failed"):
        raise_reported_failure(paths)
    report_failure(ResourceError("/dev/shm is full"), paths)
    with pytest.raises(ResourceError, match="/dev/shm is full"):
        raise_reported_failure(paths)


def test_a_launcher_names_the_cause_and_not_what_followed_in_other_ranks():
    endings = "\n".join(
        f"  rank      : {rank} (local_rank: {rank})\n  exitcode  : {code} (pid: 9)" for rank, code in ((0, -6), (1, 1))
    )
    followed = "[rank1]: RuntimeError: Connection closed by peer [127.0.0.1]:45297"
    assert find_cause(followed) is None
    said = torchrun_launch._cause(f"{followed}\n{TIMEOUT}\n{endings}", 1)
    assert said.startswith("rank 0 was killed by SIGABRT, rank 1 ended with code 1; one of them said: [rank0]:[E321")
    assert (
        torchrun_launch._cause(f"{followed}\n{endings}", 1) == "rank 0 was killed by SIGABRT, rank 1 ended with code 1"
    )
    broken = "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    assert find_cause(f"{followed}\n{TIMEOUT}\n{broken}{CUDA_12}") == broken
