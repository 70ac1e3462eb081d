"""The stages as values: what each reads is made before it, and a new one is picked up wherever stages are shown."""

from __future__ import annotations

from pathlib import Path

from kexue_train.pipeline.stages import STAGES
from kexue_train.samples.build_samples import folders_by_length


def test_every_stage_reads_stages_before_it() -> None:
    names = [stage.name for stage in STAGES]
    late = [
        (stage.name, read) for stage in STAGES for read in stage.reads if read not in names[: names.index(stage.name)]
    ]
    assert late == []


def test_stages_have_names_and_folders_of_their_own() -> None:
    assert len({stage.name for stage in STAGES}) == len({stage.folder for stage in STAGES}) == len(STAGES)


def test_samples_of_other_lengths_lie_beside_those_of_the_one_that_is_scored() -> None:
    folder = Path("run/samples")
    assert folders_by_length(folder, [512]) == {512: folder}
    assert folders_by_length(folder, [512, 128]) == {512: folder, 128: Path("run/samples-128")}
