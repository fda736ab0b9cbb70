"""The real model in bfloat16: scales that move change it by no more than bfloat16 itself does."""

from copy import deepcopy

import pytest
import torch
from attrs import frozen

from coldpress import load_model, load_tokenizer, preset
from coldpress.calibration.short import load
from coldpress.plugin import Modifier, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.registry import find
from coldpress.run.job import Job

pytestmark = [pytest.mark.slow, pytest.mark.demo]

METHODS = {
    "SmoothQuantModifier": {"smoothing_strength": 0.8},
    "LogarithmicEqualizationModifier": {},
    "AWQModifier": {},
}


@frozen(kw_only=True, eq=False)
class Planned(Modifier):
    """Says how layers would be rounded, and rounds nothing."""

    def scheme_for(self, layer):
        return preset("W4A16", group_size=64)

    @hookimpl
    def finalize(self, state, stage):
        """Nothing."""


@pytest.fixture(scope="module")
def original():
    return load_model("smollm2", dtype="bfloat16", device="cpu")


@pytest.fixture(scope="module")
def tokens(original):
    read = load_tokenizer("smollm2", original)
    passages = [*load("calibration")[:2], *load("held_out")[:2]]
    ids = torch.stack([read(row["text"], return_tensors="pt").input_ids[0, :128] for row in passages])
    return ids[:2], ids[2:]  # to calibrate on, and to look at


def smoothed(model, name, data):
    state = State(model=model, batches=[{"input_ids": row[None], "use_cache": False} for row in data])
    modifiers = find("modifiers", name)(**METHODS[name], ignore=["lm_head"]), Planned(ignore=["lm_head"])
    Job(recipe=Recipe(modifiers), state=state, pipeline=find("pipelines", "sequential")()).run()
    assert sum("smoothed_in" in line.notes for line in state.report.values()) == 210  # 30 blocks, 7 layers each
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_moved_scales_cost_no_more_than_the_rounding_of_bfloat16(name, original, tokens):
    data, seen = tokens
    wide = deepcopy(original).float()
    exact = wide(seen).logits

    moved = smoothed(deepcopy(original), name, data)(seen).logits.float()
    moved_wide = smoothed(wide, name, data)(seen).logits

    assert (moved_wide - exact).norm() <= 1e-4 * exact.norm()
    plain = original(seen).logits.float()  # what bfloat16 does with scales where they were
    assert (moved - exact).norm() <= 1.5 * (plain - exact).norm()
    same, plainly = ((logits.argmax(-1) == exact.argmax(-1)).float().mean() for logits in (moved, plain))
    assert same >= plainly - 0.02
