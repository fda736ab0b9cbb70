"""partition: prologue, blocks, epilogue; every module once."""

import pytest
from torch import nn

from coldpress.dataflow.partition import block_names, partition
from coldpress.testing.models import tiny_conv1d, tiny_llama


@pytest.mark.parametrize("model", [tiny_llama, tiny_conv1d])
def test_every_module_is_in_exactly_one_stage(model):
    model = model()
    stages = partition(model)
    names = [name for stage in stages for name in stage.modules]

    assert sorted(names) == sorted(name for name, _ in model.named_modules())
    assert [stage.index for stage in stages] == list(range(len(stages)))


def test_a_block_is_a_stage_and_what_surrounds_the_blocks_is_one_each():
    prologue, first, second, epilogue = partition(tiny_llama(layers=2))

    assert [stage.name for stage in (first, second)] == ["model.layers.0", "model.layers.1"]
    assert "model.embed_tokens" in prologue.modules
    assert {"model.norm", "lm_head"} <= set(epilogue.modules)


def test_the_order_of_stages_is_that_of_the_model():
    model = tiny_llama(layers=3)
    names = [name for stage in partition(model) for name in stage.modules]

    assert names == [name for name, _ in model.named_modules()]


def test_a_model_without_blocks_is_one_stage():
    (stage,) = partition(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))

    assert stage.name == "model"
    assert len(stage.layers(["Linear"])) == 2


class Halves(nn.Module):
    """Two lists of blocks in a list of their own, as in models that change width half-way."""

    _no_split_modules = ("Inner",)

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList(nn.ModuleList(Inner() for _ in range(2)) for _ in range(2))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


def test_what_lies_in_a_block_stands_for_the_block_unless_the_model_says_that_it_is_one():
    inner = ["halves.0.0", "halves.0.1", "halves.1.0", "halves.1.1"]

    assert block_names(tiny_llama(), ["LlamaMLP", "q_proj"]) == ["model.layers.0", "model.layers.1"]
    assert block_names(tiny_llama(), ["model"]) == ["model"]
    assert block_names(Halves(), ["Inner"]) == inner
    assert block_names(Halves(), ["re:.*up"]) == inner
