"""Commands from samples to an exported model."""

from pathlib import Path
from typing import Annotated

import typer

from kexue_train.cli.commands import (
    AsJson,
    ConfigFile,
    Out,
    Overrides,
    Ray,
    command,
    making,
    print_manifest,
    ray_override,
    show_progress,
)

training_app = typer.Typer()


@command(
    training_app,
    "train",
    example="kexue train --config configs/demo.yaml --samples samples --out pretrain train.steps=200",
)
def train_command(
    config: ConfigFile,
    samples: Annotated[
        Path,
        typer.Option(
            help="Folder of sample shards, folder of such for several lengths, or YAML: 'folder: weight' lines."
        ),
    ],
    out: Out,
    overrides: Overrides = None,
    launcher: Annotated[
        str | None, typer.Option(help="ray, torchrun (needs no Ray) or local (one worker, in this process).")
    ] = None,
    ray: Ray = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="torchrun's port (default: any free one).")] = None,
    as_json: AsJson = False,
) -> None:
    """Pretrain on sample shards; resumes from the last checkpoint."""
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.train.launch import launcher_of  # noqa: PLC0415
    from kexue_train.train.pretrain import pretrain  # noqa: PLC0415
    from kexue_train.train.stage import job_of  # noqa: PLC0415

    chosen = [*(overrides or []), *([f"train.workers.launcher={launcher}"] if launcher else [])]
    run_config = RunConfig.load(config, [*chosen, *ray_override(ray)])
    job, folder = job_of(run_config), RunDir(out)
    with folder.lock("--out"), show_progress("train") as progress:
        start = launcher_of(job, samples, out, run_config.execution, port)

        def launch() -> None:
            if not folder.write_config(run_config.to_yaml()):
                progress.note(f"{folder.config} is not of this training and is left alone")
            start()

        manifest = pretrain(job, samples, out, launch=launch, given=config, progress=progress)
    print_manifest(out, manifest, as_json)


@command(
    training_app,
    "supervise",
    example="kexue supervise pretrain --config configs/chinese.yaml --samples samples --out supervised",
)
def supervise_command(
    start: Annotated[
        Path, typer.Argument(help="Folder of a finished training, a step-XXXXXXXX folder, or an exported model.")
    ],
    config: ConfigFile,
    samples: Annotated[Path, typer.Option(help="Folder of sample shards: masked words, and the tokenizer.")],
    out: Out,
    shards: Annotated[
        Path | None, typer.Option(help="Text shards of the corpus, with which the tasks' texts are compared.")
    ] = None,
    overrides: Overrides = None,
    launcher: Annotated[
        str | None, typer.Option(help="ray, torchrun (needs no Ray) or local (one worker, in this process).")
    ] = None,
    ray: Ray = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="torchrun's port (default: any free one).")] = None,
    as_json: AsJson = False,
) -> None:
    """Train further on labelled tasks, as the section "supervised" says; resumes from the last checkpoint."""
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.supervised.stage import supervise  # noqa: PLC0415  # loads torch
    from kexue_train.train.stage import last_checkpoint  # noqa: PLC0415

    chosen = [*(overrides or []), *([f"train.workers.launcher={launcher}"] if launcher else [])]
    run_config = RunConfig.load(config, [*chosen, *ray_override(ray)])
    weights = last_checkpoint(start) if (start / "checkpoints").is_dir() else start
    with RunDir(out).lock("--out"), show_progress("supervise") as progress:
        manifest = supervise(run_config, weights, samples, out, shards=shards, port=port, progress=progress)
    print_manifest(out, manifest, as_json)


@command(training_app, "export", example="kexue export pretrain --out hf")
def export_command(
    checkpoint: Annotated[Path, typer.Argument(help="A step-XXXXXXXX folder, or the folder of a finished training.")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder and check that it computes the same."""
    from kexue_train.export.export_hf import export_hf  # noqa: PLC0415  # loads torch and transformers
    from kexue_train.foundation.traces import untouched_if_refused  # noqa: PLC0415
    from kexue_train.train.stage import last_checkpoint  # noqa: PLC0415

    is_training = (checkpoint / "checkpoints").is_dir()
    with untouched_if_refused(out):
        manifest = export_hf(last_checkpoint(checkpoint) if is_training else checkpoint, out)
    print_manifest(out, manifest, as_json)


@command(training_app, "import-weights", example="kexue import-weights chinese_roformer-v2-char_L-6_H-384_A-6 --out hf")
def import_command(
    folder: Annotated[
        Path,
        typer.Argument(help="JunnYu/transformers folder (config.json, weights) or bert4keras TensorFlow checkpoint."),
    ],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write published RoFormerV2 weights as a Hugging Face folder; every tensor must fit."""
    from kexue_train.export.import_weights import import_weights  # noqa: PLC0415  # loads torch and transformers

    with making("import-weights", out) as progress:
        manifest = import_weights(folder, out, progress=progress)
    print_manifest(out, manifest, as_json)
