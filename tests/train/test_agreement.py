"""A rank that differs is named; so is one that cannot read its samples."""

from __future__ import annotations

from kexue_train.train.agreement import Facts, Member, _code_version, find_difference

_SAME = Facts(code="1.0 (aaa)", torch="2.13", config="c0ffee", samples="5a5a5a")


def _members(*facts: Facts) -> list[Member]:
    return [Member(f"host{rank}", fact) for rank, fact in enumerate(facts)]


def test_ranks_with_the_same_facts_agree():
    assert find_difference(_members(_SAME)) is None
    assert find_difference(_members(_SAME, _SAME, _SAME)) is None


def test_each_kind_of_difference_is_named_with_rank_host_both_values_and_what_to_do():
    for name in Facts._fields:
        said = find_difference(_members(_SAME, _SAME, _SAME._replace(**{name: "other"}), _SAME))
        assert said is not None
        assert f"differ in their {name}: rank 2 on host2 has other, the others have {getattr(_SAME, name)}; " in said


def test_it_is_the_minority_that_differs_even_with_rank_0_in_it():
    other = _SAME._replace(samples="old")
    assert "rank 0 on host0 has old, the others have 5a5a5a" in (find_difference(_members(other, _SAME, _SAME)) or "")


def test_of_many_a_few_are_named():
    others = [_SAME._replace(code=str(rank)) for rank in range(7)]
    assert "(and 3 more)" in (find_difference(_members(*[_SAME] * 9, *others)) or "")


def test_the_code_version_is_that_of_the_source_files():
    assert _code_version() == _code_version.__wrapped__()
