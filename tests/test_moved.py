"""Old names of modules lead to the modules themselves, with a warning."""

from __future__ import annotations

import importlib
import sys

import pytest

from kexue_train.moved import MOVED, new_name


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_leads_to_the_very_module_with_a_warning(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match="has moved"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(MOVED[old])
    assert found.__name__ == MOVED[old]


def test_a_module_below_an_old_package_is_not_loaded_twice() -> None:
    old = "kexue_train.evaluate.masked_lm"
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match="has moved"):
        found = importlib.import_module(old)
    assert found is importlib.import_module("kexue_train.downstream.evaluate.masked_lm")


def test_other_names_are_left_alone() -> None:
    assert new_name("kexue_train.evaluateX") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("kexue_train.no_such_module")
