"""SparseGPT and then GPTQ in one recipe: one sweep, and not one zero is lost."""

from functools import partial

import pytest
import torch
from attrs import field, frozen

from coldpress import testing
from coldpress.calibration.statistics import Gram
from coldpress.plugin import Modifier, hookimpl
from coldpress.registry import find
from coldpress.testing.models import batches

FOURS = {"mask_structure": "2:4"}


@frozen(kw_only=True, eq=False)
class Zeros(Modifier):
    """Notes where the weights are zero when its turn comes."""

    found: dict[str, torch.Tensor] = field(factory=dict)

    @hookimpl
    def finalize(self, state, stage):
        self.found.update({layer.name: layer.weight == 0 for layer in self.layers(stage)})


def modifier(name, **settings):
    return find("modifiers", name)(ignore=["lm_head"], **settings)


run = partial(testing.run, data=batches(), pipeline="sequential")


@pytest.mark.parametrize(
    "scheme", [{"scheme": "W4A16", "group_size": 32}, {"scheme": "W4A16_ASYM", "group_size": 32}, {"scheme": "W8A8"}]
)
@pytest.mark.parametrize("pruned", [FOURS, {"sparsity": 0.5}], ids=["2:4", "half"])
@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential"])
def test_the_mask_is_kept_exactly(scheme, pruned, pipeline):
    zeros = Zeros(ignore=["lm_head"])
    state = run(modifier("SparseGPTModifier", **pruned), zeros, modifier("GPTQModifier", **scheme), pipeline=pipeline)

    assert len(zeros.found) == 14
    for name, mask in zeros.found.items():
        weight = state.model.get_submodule(name).weight
        assert not weight[mask].any(), name
        assert mask.sum() == mask.numel() // 2, name
        assert pruned != FOURS or (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all(), name


def test_both_read_one_gram_matrix_from_one_sweep(monkeypatch):
    seen = []
    update = Gram.update
    monkeypatch.setattr(Gram, "update", lambda self, value, x: seen.append(len(x)) or update(self, value, x))
    run(modifier("SparseGPTModifier", **FOURS), modifier("GPTQModifier", scheme="W4A16", group_size=32))

    assert len(seen) == 2 * 4 * len(batches())  # two blocks; q/k/v, o, gate/up, down
