"""SparseGPT and then GPTQ in one recipe: one sweep, and not one zero is lost."""

import pytest
import torch

from coldpress import Recipe, State
from coldpress.calibration.statistics import Gram
from coldpress.lifecycle import Run
from coldpress.recipe import read_recipe
from coldpress.registry import find
from coldpress.testing.models import batches, tiny_llama

SPARSE = "SparseGPTModifier: {mask_structure: '2:4', ignore: [lm_head]}"


def run(*modifiers, pipeline="sequential"):
    state = State(model=tiny_llama(), batches=batches())
    recipe: Recipe = read_recipe(f"modifiers: [{', '.join('{' + one + '}' for one in modifiers)}]")
    Run(recipe=recipe, state=state, pipeline=find("pipelines", pipeline)()).execute()
    return state


def linears(state):
    return {
        name: m.weight for name, m in state.model.named_modules() if type(m) is torch.nn.Linear and name != "lm_head"
    }


@pytest.mark.parametrize(
    "scheme", ["scheme: W4A16, group_size: 32", "scheme: W4A16_ASYM, group_size: 32", "scheme: W8A8"]
)
@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential"])
def test_the_mask_is_kept_exactly(scheme, pipeline):
    state = run(SPARSE, f"GPTQModifier: {{{scheme}, ignore: [lm_head]}}", pipeline=pipeline)
    pruned = linears(run(SPARSE, pipeline=pipeline))

    for name, weight in linears(state).items():
        fours = (weight == 0).unflatten(1, (-1, 4)).sum(-1)  # [O, I / 4]
        assert (fours >= 2).all(), name
    first = "model.layers.0.self_attn.q_proj"  # later layers see other inputs, as what is before them was rounded too
    assert not linears(state)[first][pruned[first] == 0].any()


def test_both_read_one_gram_matrix_from_one_sweep(monkeypatch):
    seen = []
    update = Gram.update
    monkeypatch.setattr(Gram, "update", lambda self, value, x: seen.append(len(x)) or update(self, value, x))
    run(SPARSE, "GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}")

    assert len(seen) == 2 * 4 * len(batches())  # two blocks; q/k/v, o, gate/up, down
