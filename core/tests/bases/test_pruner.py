"""Pruner: which share of weights each layer loses."""

import pytest
import torch
from attrs import frozen
from torch import nn

from coldpress.bases.pruner import outlier_share, owl_sparsities
from coldpress.errors import BrokenPluginError, SchemeError
from coldpress.plugin import Pruner, hookimpl
from coldpress.stage import Layer
from coldpress.testing import draw, run


@frozen(kw_only=True, eq=False)
class Shares(Pruner):
    """Prunes by magnitude, to the sparsities that its base gives."""

    @hookimpl
    def finalize(self, state, stage):
        shares = self.sparsities(state, stage)
        for layer in self.layers(stage):
            edge = layer.weight.abs().flatten().kthvalue(max(1, int(shares[layer.name] * layer.weight.numel()))).values
            state.set_weight(layer, layer.weight * (layer.weight.abs() > edge))

    def input_norms(self, state, layer):
        return torch.ones(layer.weight.shape[1])


def sparsities(state):
    return {name: line.sparsity for name, line in state.report.items() if line.status == "changed"}


def prune(**settings):
    return sparsities(run(Shares(ignore=["lm_head"], **settings)))


def test_one_number_is_that_of_every_layer():
    found = prune(sparsity=0.25)

    assert len(found) == 14
    assert all(share == pytest.approx(0.25, abs=1e-3) for share in found.values())


def test_a_list_has_one_number_for_each_block():
    found = prune(sparsity=[0.2, 0.6])

    for name, share in found.items():
        assert share == pytest.approx(0.2 if "layers.0." in name else 0.6, abs=1e-3)


def test_a_list_may_have_one_number_for_each_module_that_targets_match():
    found = prune(targets=["re:.*layers.1.mlp.(up|gate|down)_proj"], sparsity=[0.1, 0.2, 0.3])

    assert [round(share, 2) for share in found.values()] == [0.1, 0.2, 0.3]


def test_a_list_that_fits_neither_says_what_would():
    with pytest.raises(SchemeError, match=r"sparsity has 3 numbers; 2 blocks of the model .* targets match 14 modules"):
        prune(sparsity=[0.1, 0.2, 0.3])
    with pytest.raises(SchemeError, match="lm_head is in none of the model's blocks"):
        run(Shares(sparsity=[0.1, 0.2]))


def test_n_of_m_has_its_own_sparsity_and_must_divide_the_columns():
    assert all(share == pytest.approx(0.75, abs=1e-3) for share in prune(mask_structure="1:4").values())
    with pytest.raises(SchemeError, match=r"q_proj"):
        prune(mask_structure="2:7")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "sparsity is missing"),
        ({"sparsity": 1.0}, "at least 0 and below 1"),
        ({"sparsity": [0.5, -0.1]}, "got -0.1"),
        ({"sparsity": 0.5, "owl_m": 5.0}, "belong to sparsity_profile: owl"),
        ({"sparsity": 0.5, "sparsity_profile": "owl"}, "needs owl_m and owl_lmbda"),
        ({"sparsity": 0.1, "sparsity_profile": "owl", "owl_m": 5.0, "owl_lmbda": 0.08}, "at least that far from 0"),
        (
            {"mask_structure": "2:4", "sparsity": 0.5, "sparsity_profile": "owl", "owl_m": 5.0, "owl_lmbda": 0.08},
            "has one sparsity",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(SchemeError, match=said):
        Shares(**settings)


def test_a_pruner_without_norms_says_what_it_must_implement():
    with pytest.raises(BrokenPluginError, match=r"must implement input_norms\(state, layer\)"):
        Pruner(sparsity=0.5).input_norms(None, None)


def test_owl_keeps_the_mean_and_the_distance_and_spares_outliers():
    shares, sizes = [0.01, 0.04, 0.02, 0.03], [10, 20, 30, 40]

    found = owl_sparsities(shares, sizes, sparsity=0.7, lmbda=0.08)

    assert sum(a * b for a, b in zip(found, sizes, strict=True)) / sum(sizes) == pytest.approx(0.7)
    assert max(found) - min(found) == pytest.approx(0.16)
    assert sorted(range(4), key=lambda i: -found[i]) == sorted(range(4), key=lambda i: shares[i])
    assert owl_sparsities([0.02, 0.02], [1, 5], sparsity=0.6, lmbda=0.1) == [0.6, 0.6]


def test_the_share_of_outliers_is_counted_over_the_whole_block():
    layers = [Layer(name, nn.Linear(8, 6, bias=False), ("Linear",)) for name in ("a", "b", "unseen")]
    norms = [draw(8, seed=1).abs(), draw(8, seed=2).abs() * 3, None]

    found = outlier_share(zip(layers, norms, strict=True), 2.0)

    scores = torch.cat([(one.weight.abs() * norm).flatten() for one, norm in zip(layers[:2], norms, strict=False)])
    assert found == pytest.approx(float((scores > 2 * scores.mean()).float().mean()))
    assert outlier_share([(layers[2], None)], 2.0) == 0.0
