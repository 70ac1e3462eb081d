"""The stages as values: what each reads is made before it, and a new one is picked up wherever stages are shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kexue_train.foundation.artifacts import Recipe, build_manifest, open_partial, publish
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.stages import SAMPLES, STAGES
from kexue_train.report.run_data import load_run
from kexue_train.report.tables import artifact_tables, missing_stages
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


def test_the_folders_that_a_run_folder_names_are_those_of_the_stages() -> None:
    named = {path.name for name in vars(RunDir) if isinstance(path := getattr(RunDir(Path("run")), name, None), Path)}
    others = {"run", "config.yaml", "stages.jsonl", "generations", "published"}
    assert {stage.folder for stage in STAGES} == named - others


def test_a_new_stage_is_missed_and_shown_by_the_report_without_more_ado(tmp_path: Path) -> None:
    new = replace(SAMPLES, name="count", folder="counts", title="Counts", reads=("samples",))
    (tmp_path / "config.yaml").write_text("name: new\n")
    assert missing_stages(load_run(tmp_path, [SAMPLES, new])) == ["samples", "count"]
    recipe = Recipe(kind="counts", settings={})
    publish(open_partial(tmp_path / "counts", recipe), tmp_path / "counts", build_manifest(recipe, {}, rows=7))
    run = load_run(tmp_path, [SAMPLES, new])
    assert missing_stages(run) == ["samples"]
    assert [(table.caption, table.rows[0]) for table in artifact_tables(run)] == [("Counts", ["rows", "7"])]
