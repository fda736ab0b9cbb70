"""sequential, where a modifier compares: layers see what compressed ones put out, beside what the original's did."""

from typing import ClassVar

import pytest
import torch
from attrs import frozen
from loose import Loose, Watcher, straight, twice, untouched, vectors, watch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from coldpress import CalibrationError
from coldpress.plugin import Needs, State, Statistic, hookimpl
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.testing.models import batches, tiny_llama
from coldpress_pipelines import Basic, Independent, LayerSequential, Sequential


@frozen(kw_only=True)
class Beside(Statistic):
    """Every input, and what it is in the original model, one after the other."""

    needs_original_inputs: ClassVar[bool] = True

    def update_with_original(self, value, x, original):
        return (*(value or ()), (x.clone(), original.clone()))

    def merge(self, a, b):
        return (*a, *b)


@frozen(kw_only=True, eq=False)
class Comparer(Watcher):
    """Notes both, and halves the weights."""

    halves: bool = True

    def needs(self):
        return Needs(data=True, original_inputs=True)

    @hookimpl
    def initialize(self, state, stage):
        for layer in self.layers(stage):
            state.request(layer, Beside())

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            for index, pair in enumerate(state.statistic(layer, Beside()) or ()):
                state.log.append({"pair": (layer.name, index), "both": pair})
            layer.weight.copy_(layer.weight / 2)


def compare(model, data, pipeline=None):
    """What each layer saw in each batch, in the compressed model and in the original."""
    state = State(model=model, batches=data)
    Job(recipe=Recipe(Comparer()), state=state, pipeline=pipeline or Sequential()).run()
    found = {entry["pair"]: entry["both"] for entry in state.log if "pair" in entry}
    return {key: x for key, (x, _) in found.items()}, {key: original for key, (_, original) in found.items()}


def same(a: dict[object, Tensor], b: dict[object, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def small(kind):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 259, "n_embd": 32, "n_layer": 3, "n_head": 4}
    sizes |= {"pad_token_id": 0, "num_local_experts": 4}
    fields = AutoConfig.for_model(kind).to_dict()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{key: value for key, value in sizes.items() if key in fields})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("offload", [{}, {"offload_activations": "disk", "offload_limit": 0}], ids=["memory", "disk"])
@pytest.mark.parametrize("through", [True, False], ids=["led through", "as a whole"])
def test_every_layer_is_shown_what_the_original_brings_it_beside_what_compressed_ones_do(kind, through, offload):
    data = batches()
    plain, _ = watch(small(kind), data, Basic())
    compressed, _ = watch(small(kind), data, Sequential(true_sequential=through), halves=True)
    model = small(kind)

    seen, original = compare(model, data, Sequential(true_sequential=through, **offload))

    assert same(original, plain)
    assert same(seen, compressed)
    assert not same(seen, original)
    assert untouched(model)


@pytest.mark.parametrize("through", [True, False], ids=["led through", "as a whole"])
def test_a_block_runs_once_more_for_each_batch_and_for_nobody_else(through):
    counts = []
    for modifier in (Comparer(), Watcher(halves=True)):
        model = Loose(straight)
        Job(
            recipe=Recipe(modifier),
            state=State(model=model, batches=vectors()),
            pipeline=Sequential(true_sequential=through),
        ).run()
        counts.append([block.runs for block in model.blocks])

    assert counts[0] == [count + len(vectors()) for count in counts[1]]


def test_what_is_compared_is_collected_once_for_layers_that_share_an_input(monkeypatch):
    seen = []
    monkeypatch.setattr(Beside, "update_with_original", lambda self, value, x, original: seen.append(x) or ())
    compare(tiny_llama(), batches())

    assert len(seen) == (2 * 4 + 1) * len(batches())  # two blocks: q/k/v, o, gate/up, down; and the head


@pytest.mark.parametrize("pipeline", [Basic, LayerSequential, Independent])
def test_other_pipelines_are_refused(pipeline):
    with pytest.raises(CalibrationError, match=f"Comparer compares .* {pipeline.__name__} does not show; .*sequential"):
        compare(Loose(straight), vectors(), pipeline())


@pytest.mark.parametrize("through", [True, False], ids=["led through", "as a whole"])
def test_a_block_that_runs_twice_is_refused(through):
    with pytest.raises(CalibrationError, match=r"blocks\.0 runs twice"):
        compare(Loose(twice), vectors(), Sequential(true_sequential=through))


def test_a_way_that_depends_on_what_was_compressed_is_refused():
    def turning(blocks, x):
        first = blocks[0](x)
        return straight(blocks[1:] if torch.equal(first, before) else blocks[2:], first)

    model, (batch, *_) = Loose(turning), vectors()
    with torch.no_grad():
        before = model.blocks[0](batch["x"])

    with pytest.raises(CalibrationError, match="batch 0 does not take the way"):
        compare(model, [batch])
