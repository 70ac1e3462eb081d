"""The benchmark of the weightings: a row for each, and a task that is alone is learnt."""

from __future__ import annotations

from benchmarks import task_weights
from benchmarks.task_weights import CLASS_TASK, SCHEMES, train


def test_the_table_has_a_row_for_each_weighting_with_numbers_of_both_tasks(capsys):
    task_weights.main(["--steps", "3", "--seeds", "1"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(SCHEMES)
    for row in rows[2:]:
        *losses, first, second = map(float, row.split("|")[2:-1])
        assert min(losses) > 0
        assert max(abs(first), abs(second)) <= 1


def test_a_task_alone_is_learnt_and_served_by_its_own_gradient():
    found = train(SCHEMES[0], (CLASS_TASK,) * 2, steps=150, lr=0.02, seed=0)
    assert found.left[0] < 0.8 < found.left[1]
    assert found.served[0] > 0.999
