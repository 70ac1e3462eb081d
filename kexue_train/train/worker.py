"""One training process: joins the group, builds the training, trains past spikes. Knows neither Ray nor Prefect.

torchrun --nproc-per-node 8 -m kexue_train.train.worker --config configs/base.yaml --samples DIR --out DIR
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from kexue_train.batches.mixed import TrainingData
from kexue_train.foundation.artifacts import MANIFEST_NAME, build_manifest, describe_files, write_atomic
from kexue_train.foundation.errors import ConfigError, KexueError
from kexue_train.foundation.json_logs import logs_as_asked
from kexue_train.foundation.operating_system import end_with_parent
from kexue_train.foundation.runtime import available_cpus, configure_logging, keep_freed_memory, rank
from kexue_train.foundation.shown import keep_streams_printable, take_arguments
from kexue_train.metrics.fields import Kind, Symptom
from kexue_train.train.agreement import open_together
from kexue_train.train.build_training import build_training, open_checkpoints
from kexue_train.train.checkpoint import CheckpointWriter, TrainerState, checkpoint_name
from kexue_train.train.config import TrainConfig
from kexue_train.train.distributed import (
    be_alone,
    choose_backend,
    choose_device,
    has_launcher,
    join_process_group,
    local_world_size,
    on_first_rank,
    slurm_environment,
)
from kexue_train.train.faults.flight_recorder import record_collectives
from kexue_train.train.faults.spikes import EndedBySpikeError, SkippedRows, Spike, skipped_between
from kexue_train.train.faults.stop import Ending, StopRequest, no_machine_is_draining
from kexue_train.train.faults.watchdog import Watchdog, unfinished_work
from kexue_train.train.job import (
    MIRROR_VARIABLE,
    JobConfig,
    TrainDir,
    hold_alone,
    prepare,
    read_samples,
    samples_digest,
    values_to_show,
    with_mirror,
)
from kexue_train.train.loop import LoopState, Outputs, Setup, Training, report_saved, train_loop
from kexue_train.train.micro_batch import out_of_memory_explained
from kexue_train.train.monitor.lines import start_values
from kexue_train.train.monitor.loggers import MetricLogger, require_loggers
from kexue_train.train.phases import Phase, phase_after
from kexue_train.train.restarts import device_faults_explained, failure_reported, report_failure, say_started

logger = logging.getLogger(__name__)

STOPPED = 3
"""Exit code of a worker that saved a checkpoint and ended because it was asked to."""


def run_worker(
    config: JobConfig,
    samples: Path,
    out_dir: Path,
    *,
    alone: bool = False,
    listen: bool = False,
    given: Path | None = None,
    is_draining: Callable[[], bool] = no_machine_is_draining,
) -> Ending:
    """Train on this process's device as one rank of the group that the environment describes.

    Args:
        config: The job; ``num_workers`` is taken from the group.
        samples: Folder of sample shards.
        out_dir: Folder for checkpoints, metrics and logs.
        alone: Be a group of one, whatever the environment says.
        listen: Take SIGTERM and SIGINT for requests to stop; only in a main thread.
        given: The user's configuration file, which may lie in ``out_dir``.
        is_draining: Whether this machine is about to be taken away.
    """
    paths = TrainDir(out_dir)
    is_group_of_one = alone or not has_launcher()
    if is_group_of_one:
        be_alone()
    paths.logs.mkdir(parents=True, exist_ok=True)
    configure_logging(logging.INFO, paths.logs / f"rank-{rank()}.log")
    train, stop = config.train, StopRequest(paths.stop, is_draining)
    device = choose_device(train.device)
    if problem := train.compute.problem_on(device.type):
        raise ConfigError(f"train.{problem} (train.device={train.device} has chosen {device})")
    if device.type == "cpu":
        keep_freed_memory()  # activations come and go by the hundred megabytes
    with ExitStack() as stack:
        if listen:
            stack.enter_context(stop.listen())
        record_collectives()
        join_process_group(
            choose_backend(train.workers.backend, device.type),
            hang_timeout=train.faults.hang_timeout,
            device=device,
            alone=is_group_of_one,
        )
        if alone:
            stack.callback(dist.destroy_process_group)
        config = _with_world_size(config)
        torch.set_num_threads(train.workers.threads_per_worker or max(1, available_cpus() // local_world_size()))
        datasets = open_together(lambda: read_samples(samples, config), samples_digest, config)
        on_first_rank(lambda: _claim(config, samples, paths, given, stack))
        say_started(paths)
        stack.enter_context(failure_reported(paths))
        checkpoints = None
        if dist.get_rank() == 0:  # entered first, so the last to end: nobody waits for its last upload
            checkpoints = stack.enter_context(open_checkpoints(config, datasets, paths))
        watchdog = Watchdog(
            paths.logs,
            dist.get_rank(),
            dist.get_world_size(),
            train.faults.hang_timeout,
            unfinished_work=partial(unfinished_work, device),
        )
        stack.enter_context(watchdog)
        ending = _train_past_spikes(config, datasets, paths, device, stop, watchdog, checkpoints)
        dist.barrier()
    if not alone:
        dist.destroy_process_group()
    return ending


def _claim(config: JobConfig, samples: Path, paths: TrainDir, given: Path | None, stack: ExitStack) -> None:
    stack.enter_context(hold_alone(paths.logs / ".lock"))
    require_loggers(config.train.logging.loggers)
    prepare(config, samples, paths, given=given)


def _train_past_spikes(
    config: JobConfig,
    datasets: Sequence[TrainingData],
    paths: TrainDir,
    device: torch.device,
    stop: StopRequest,
    watchdog: Watchdog,
    checkpoints: CheckpointWriter | None,
) -> Ending:
    """Train to the end, starting again from the last checkpoint after every spike, as a new process would."""
    spike: Spike | None = None
    skipped: tuple[SkippedRows, ...] = ()
    while True:
        training, notes = build_training(config, datasets, paths, device, stop, watchdog)
        setup, state = training.setup, training.state
        if spike is not None:
            skipped += skipped_between(setup.phases, state.step, spike.step)
            state.saved = replace(state.saved, left_out=skipped)
        where = partial(_phase_and_step, setup, state)
        try:
            with (
                device_faults_explained(device, partial(_steps_done, state)),
                out_of_memory_explained(config.train, device, where),
                setup.profiler,
            ):
                ending = _train(training, checkpoints, notes, spike)
        except Spike as found:
            if checkpoints:
                checkpoints.finish()
            # The frames of the traceback hold model and optimizer, which have to go before the next ones come.
            spike, skipped = found.with_traceback(None), state.saved.left_out
            _require_rollback(config.train, spike, len(skipped))
        else:
            if dist.get_rank() == 0:
                if ending is Ending.FINISHED:
                    _finish(setup, state.saved)
                paths.stop.unlink(missing_ok=True)  # the wish is granted, or too late
            return ending
        finally:
            training.guards.reports.close()
        logger.warning("%s: training goes back to the last checkpoint and skips the rows read since", spike)
        del training, setup, state, where
        gc.collect()


def _steps_done(state: LoopState) -> int:
    return state.step


def _phase_and_step(setup: Setup, state: LoopState) -> tuple[Phase, int]:
    return phase_after(setup.phases, state.step), state.step


def _require_rollback(train: TrainConfig, spike: Spike, rollbacks: int) -> None:
    if train.faults.on_spike == "rollback" and rollbacks < train.faults.max_rollbacks:
        return
    reason = (
        f"after {rollbacks} rollbacks, as many as train.faults.max_rollbacks allows"
        if train.faults.on_spike == "rollback"
        else f"and train.faults.on_spike={train.faults.on_spike}"
    )
    raise EndedBySpikeError(
        f"{spike}, {reason}. The checkpoints are from before it: lower optimizer.lr (another training), or run the "
        "same command again with train.faults.on_spike=rollback or a larger train.faults.max_rollbacks",
        spike.step,
        spike.loss,
    )


def _train(
    training: Training, checkpoints: CheckpointWriter | None, notes: Sequence[str], spike: Spike | None
) -> Ending:
    """Run the loop; on rank 0 with what it writes, its beginning and its end."""
    if checkpoints is None:
        return train_loop(training)
    setup, state, train = training.setup, training.state, training.setup.config.train
    settings = values_to_show(setup.config)
    with MetricLogger(
        setup.paths, resumed_step=state.step, loggers=train.logging.loggers, settings=settings
    ) as metrics:
        state.seconds = metrics.resumed_seconds
        phase = phase_after(setup.phases, state.step)
        metrics.write(
            Kind.RESUME if state.step else Kind.START,
            state.step,
            **start_values(train, phase, setup.precision, world_size=dist.get_world_size(), device=setup.device.type),
            parameters=setup.num_parameters,
            rows_per_epoch=setup.datasets[phase.number - 1].num_training_rows,
            peak_flops_per_second=setup.speed.peak.measured,
        )
        for message in notes:
            metrics.warn(state.step, Symptom.CHECKPOINT, message)
        if spike is not None:
            metrics.write(Kind.ROLLBACK, state.step, **spike.facts, left_out=list(state.saved.left_out))
        training = replace(training, outputs=Outputs(metrics=metrics, checkpoints=checkpoints))
        ending = train_loop(training)
        checkpoints.finish()
        report_saved(training)
        metrics.write(Kind.END if ending is Ending.FINISHED else Kind.STOP, state.step)
        return ending


def _finish(setup: Setup, state: TrainerState) -> None:
    """Write the manifest that says training is complete; its files are those of the last checkpoint."""
    root = setup.paths.root
    name = f"{setup.paths.checkpoints.name}/{checkpoint_name(state.step)}"
    files = {f"{name}/{file}": entry for file, entry in describe_files(root / name).items()}
    statistics = {
        "checkpoint": name,
        "steps": state.step,
        "tokens": state.tokens,
        "parameters": setup.num_parameters,
    }
    manifest = build_manifest(setup.recipe, files, seed=setup.config.seed, statistics=statistics)
    write_atomic(root / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def _with_world_size(config: JobConfig) -> JobConfig:
    """The configuration with the number of workers that the launcher really started, checked again.

    Raises:
        ConfigError: If the batch sizes do not multiply out for that number.
    """
    values = config.model_dump(mode="json")
    values["train"]["num_workers"] = dist.get_world_size()
    values["train"]["workers"] |= {"min_workers": None, "launcher": "torchrun"}  # whoever it was
    return JobConfig.parse(values, where=f"{dist.get_world_size()} training workers")


def main(arguments: list[str] | None = None) -> int:
    """Entry point for torchrun, ``deepspeed`` and ``srun``; exit code 0 done, 2 user's mistake, 3 stopped."""
    parser = argparse.ArgumentParser(prog="kexue_train.train.worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML with the sections model, optimizer and train")
    parser.add_argument(
        "--samples", type=Path, required=True, help="folder of sample shards, of such folders, or YAML 'folder: weight'"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, metrics, logs; resumed if it has some"
    )
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)  # "kexue train" has started it
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # deepspeed's; LOCAL_RANK says it, too
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    paths = TrainDir(options.out)
    os.environ.update(slurm_environment(os.environ))
    end_with_parent()  # torchrun puts workers into sessions of their own: killed, it would leave them writing
    try:
        config = JobConfig.load(options.config, options.overrides)
        if options.supervised:
            config = with_mirror(config, os.environ.get(MIRROR_VARIABLE))
        if not options.supervised and rank() == 0 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            paths.stop.unlink(missing_ok=True)  # meant for the training before
        ending = run_worker(config, options.samples, options.out, listen=True, given=options.config)
    except KexueError as error:
        if options.supervised:
            report_failure(error, paths)
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    # torchrun would start again what ends with another code than 0.
    return 0 if ending is Ending.FINISHED or "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


if __name__ == "__main__":
    keep_streams_printable()
    with logs_as_asked():
        sys.exit(main(take_arguments()))
