"""Roles come from the type of a parameter's module, whatever its name says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.optim import build_param_groups


class Misnamed(nn.Module):
    """Names that would fool a rule made of words; the table is also the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(5, 4)
        self.embeddings_projection = nn.Linear(4, 3)
        self.weight = nn.LayerNorm(4)
        self.output = nn.Linear(4, 5, bias=False)
        self.output.weight = self.bias.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def roles(model: nn.Module) -> dict[str, str]:
    return {name: str(group["role"]) for group in build_param_groups(model) for name in group["names"]}


def test_roles_follow_module_types():
    assert roles(Misnamed()) == {
        "bias.weight": "embedding",
        "embeddings_projection.weight": "matrix",
        "embeddings_projection.bias": "vector",
        "weight.weight": "vector",
        "weight.bias": "vector",
    }


def test_names_and_parameters_go_together():
    model = Misnamed()
    named = dict(model.named_parameters())
    for group in build_param_groups(model):
        assert all(named[name] is p for name, p in zip(group["names"], group["params"], strict=True))


def test_every_trainable_parameter_is_in_one_group_once():
    model = RoFormerV2ForPreTraining(
        RoFormerV2Config(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )
    grouped = [id(p) for group in build_param_groups(model) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_roformer_has_two_tables_and_matrices_only():
    model = RoFormerV2ForPreTraining(
        RoFormerV2Config(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    )
    by_role = {str(group["role"]): group["names"] for group in build_param_groups(model)}
    assert by_role["embedding"] == [
        "roformer.embeddings.word_embeddings.weight",
        "roformer.embeddings.token_type_embeddings.weight",
    ]
    assert len(by_role["matrix"]) == 2 * 6 + 2
    assert "vector" not in by_role


@pytest.mark.parametrize("shape", [(3, 3, 4), (2, 3, 3, 3)])
def test_kernels_of_any_rank_are_matrices(shape):
    model = nn.Module()
    model.kernel = nn.Parameter(torch.zeros(shape))
    assert roles(model) == {"kernel": "matrix"}
