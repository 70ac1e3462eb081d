"""Folders with different code in one process: each model runs the code of its own folder and saves it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from kexue_train.export.export_hf import export_hf

MODELING, CONFIGURATION = "modeling_roformer_v2.py", "configuration_roformer_v2.py"


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "hf"
    export_hf(checkpoint, out)
    return out


@pytest.fixture
def marked(exported: Path, tmp_path: Path) -> Callable[..., Path]:
    """Folders of the same name whose code defines MARK."""

    def make(mark: str, file: str = MODELING) -> Path:
        folder = tmp_path / mark / "hf"
        shutil.copytree(exported, folder, dirs_exist_ok=True)
        with (folder / file).open("a") as code:
            code.write(f"\nMARK = {mark!r}\n")
        return folder

    return make


def mark_of(model: object, file: str = MODELING) -> str | None:
    name = type(model).__module__.rpartition(".")[0] + "." + Path(file).stem
    return getattr(sys.modules[name], "MARK", None)


@pytest.mark.parametrize("file", [MODELING, CONFIGURATION])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_every_folder_runs_its_own_code(exported, marked, auto, file):
    folders = {None: exported, "A": marked("A", file), "B": marked("B", file)}
    models = {mark: auto.from_pretrained(folder, trust_remote_code=True) for mark, folder in folders.items()}
    again = auto.from_pretrained(folders["A"], trust_remote_code=True)
    assert [mark_of(model, file) for model in [*models.values(), again]] == [None, "A", "B", "A"]


def test_a_folder_whose_code_is_edited_in_place_runs_the_new_code(marked):
    assert mark_of(AutoModel.from_pretrained(marked("A"), trust_remote_code=True)) == "A"
    code = marked("A") / MODELING
    code.write_text(code.read_text(encoding="utf-8") + "MARK = 'edited'\n", encoding="utf-8")
    assert mark_of(AutoModel.from_pretrained(code.parent, trust_remote_code=True)) == "edited"


def test_what_is_saved_again_keeps_its_code(exported, marked, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(exported, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(marked("B"), trust_remote_code=True)
    model.save_pretrained(tmp_path / "again")
    for name in (MODELING, CONFIGURATION):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "B" / "hf" / name).read_bytes()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert mark_of(again) == "B"


def test_other_code_is_not_run_unasked(exported, marked):
    first = AutoModel.from_pretrained(exported, trust_remote_code=True)
    with pytest.raises(ValueError, match=r"carries other modelling code than RoFormerV2Model .*trust_remote_code=True"):
        type(first).from_pretrained(marked("B"))
    config = AutoConfig.from_pretrained(marked("B"), trust_remote_code=True)
    with pytest.raises(ValueError, match="carries other modelling code than the folder that was opened before it"):
        AutoModel.from_config(config, trust_remote_code=True)


def test_a_class_of_kexue_train_opens_any_folder_with_its_own_code(marked):
    from kexue_train.model import RoFormerV2ForMaskedLM

    assert type(RoFormerV2ForMaskedLM.from_pretrained(marked("B"))) is RoFormerV2ForMaskedLM
