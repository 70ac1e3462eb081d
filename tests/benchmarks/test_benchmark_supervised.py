"""The benchmark of the supervised stage compares like with like."""

from __future__ import annotations

from benchmarks.supervised import MIX, UNSEEN, Sizes, config_of
from kexue_train.supervised.needs import load_tasks


def test_the_encoders_differ_in_their_mix_alone_and_are_scored_on_tasks_outside_of_it(tmp_path):
    sizes = Sizes(steps=20, further_steps=5, layers=1, width=64)
    mixed, words = (config_of([tmp_path / "a.jsonl"], tmp_path, sizes, mix) for mix in (MIX, {"mlm": 1}))
    assert mixed.supervised is not None
    assert words.supervised is not None
    assert mixed.supervised.model_copy(update={"mix": words.supervised.mix}) == words.supervised
    assert mixed.model_copy(update={"supervised": words.supervised}) == words
    assert not set(load_tasks(mixed.supervised)) & set(UNSEEN)
