"""Calls of a stage: what the model calls it with, run again through the original and through what is compressed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import field, frozen

from coldpress import CalibrationError, testing
from coldpress.errors import BrokenPluginError
from coldpress.plugin import KVCache, Modifier, Needs, Stage, State, first_tensor, hookimpl
from coldpress.registry import find
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress.testing.trace import differences, trace_of

BLOCKS = ["model.layers.0", "model.layers.1"]
EVERYWHERE = pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "basic", "independent"])


@frozen(kw_only=True, eq=False)
class OutputBias(Modifier):
    """Correct the last biases of each block, so that its mean output is that of the original block.

    The original of a stage that holds several blocks is run block by block.
    """

    targets: list[str] = field(factory=lambda: ["re:.*c_proj"])

    def needs(self):
        return Needs(data=True, calls=True, original_weights=True, original_inputs=False)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for name in [name for name in stage.modules if name.endswith("mlp")]:
            with state.original():
                wanted = self._mean(state, stage, name)
            self_bias = stage.modules[f"{name}.c_proj"].bias
            self_bias.data += wanted - self._mean(state, stage, name)

    def _mean(self, state: State, stage: Stage, name: str) -> torch.Tensor:
        return torch.stack([call.output().mean((0, 1)) for call in state.calls(stage, name)]).mean(0)  # [D]


def look(do: Callable[[State, Stage], Any], **needs: bool) -> Any:
    """A modifier that hands each stage that has calls to a function, in `finalize`, and keeps what it returns."""
    wants = Needs(**{"data": True, "calls": True, "original_weights": True, **needs})

    @frozen(kw_only=True, eq=False)
    class Look(Modifier):
        found: list[Any] = field(factory=list)

        def needs(self):
            return wants

        @hookimpl
        def finalize(self, state: State, stage: Stage) -> None:
            if stage.name not in ("prologue", "epilogue"):
                self.found.append(do(state, stage))

    return Look()


def run(*modifiers, model=None, data=None, pipeline="sequential", **settings):
    data = data or batches(rows=4, batch_size=2)
    return testing.run(*modifiers, model=model, data=data, pipeline=find("pipelines", pipeline)(**settings))


def rounding(**settings):
    given = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"], **settings}
    return find("modifiers", "QuantizationModifier")(**given)


def block_outputs(model, data, *, grad=False):
    """What each block outputs in a plain forward, batch by batch."""
    seen = {name: [] for name in BLOCKS}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: seen[name].append(out))
        for name in BLOCKS
    ]
    with torch.set_grad_enabled(grad):
        for batch in data:
            model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: [first_tensor(out) for out in outputs] for name, outputs in seen.items()}


def outputs(state, stage, **which):
    return {name: [call.output().clone() for call in state.calls(stage, name, **which)] for name in held(stage)}


def held(stage):
    return [name for name in BLOCKS if name in stage.modules]


def same(found, expected):
    torch.testing.assert_close(found, {name: expected[name] for name in found})


@EVERYWHERE
def test_a_stage_that_is_not_compressed_outputs_what_a_plain_forward_does(pipeline):
    model, data = tiny_llama(), batches(rows=4, batch_size=2)
    expected = block_outputs(model, data)
    seen = look(outputs)

    run(seen, model=model, data=data, pipeline=pipeline)

    for found in seen.found:
        same(found, expected)
    assert {name for found in seen.found for name in found} == set(BLOCKS)


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "basic"])
def test_the_original_weights_give_the_original_outputs_and_leave_the_compressed_ones(pipeline):
    model, data = tiny_llama(), batches(rows=4, batch_size=2)
    expected = block_outputs(model, data)

    def both(state, stage):
        now = {name: p.clone() for module in stage.modules.values() for name, p in module.named_parameters()}
        with state.original():
            original = outputs(state, stage)
        after = {name: p.clone() for module in stage.modules.values() for name, p in module.named_parameters()}
        assert all(torch.equal(p, after[name]) for name, p in now.items())
        return original, outputs(state, stage)

    seen = look(both)
    state = run(rounding(), seen, model=model, data=data, pipeline=pipeline)

    first, compressed = seen.found[0]
    same({BLOCKS[0]: first[BLOCKS[0]]}, expected)
    same({BLOCKS[0]: compressed[BLOCKS[0]]}, block_outputs(state.model, data))
    assert not torch.allclose(first[BLOCKS[0]][0], compressed[BLOCKS[0]][0])


def test_the_calls_of_the_original_model_are_those_of_a_plain_forward():
    model, data = tiny_llama(), batches(rows=4, batch_size=2)
    expected = block_outputs(model, data)

    def original(state, stage):
        with state.original():
            return outputs(state, stage, original=True)

    seen = look(original, original_inputs=True)
    run(rounding(), seen, model=model, data=data)

    for found in seen.found:
        same(found, expected)


def test_some_batches_may_be_asked_for_and_arguments_are_all_there():
    seen = look(lambda state, stage: [(call.index, call.kwargs) for call in state.calls(stage, batches=[1])])

    run(seen)

    assert [[index for index, _ in found] for found in seen.found] == [[1], [1]]
    assert all("position_embeddings" in kwargs for found in seen.found for _, kwargs in found)


def test_gradients_are_those_of_autograd_through_the_block():
    def gradient(state, stage):
        weight = stage.modules[f"{stage.name}.mlp.up_proj"].weight
        total = torch.zeros_like(weight)
        for call in state.calls(stage):
            with torch.enable_grad():
                loss = call.output().square().sum()
            total += torch.autograd.grad(loss, weight)[0]
        return stage.name, total

    seen = look(gradient, gradients=True)
    model, data = tiny_llama(), batches(rows=4, batch_size=2)
    run(seen, model=model, data=data)

    for name, found in seen.found:
        weight = model.get_submodule(f"{name}.mlp.up_proj").weight
        total = sum(out.square().sum() for out in block_outputs(model, data, grad=True)[name])
        torch.testing.assert_close(found, torch.autograd.grad(total, weight)[0])


def test_without_the_need_for_gradients_no_graph_is_recorded():
    def output(state, stage):
        with torch.enable_grad():
            return [call.output().requires_grad for call in state.calls(stage)]

    seen = look(output)
    run(seen)

    assert not any(one for found in seen.found for one in found)


def test_a_smoother_transforms_the_original_weights_too():
    model, data = tiny_llama(), batches(rows=4, batch_size=2)
    expected = block_outputs(model, data)
    before = model.model.layers[0].mlp.up_proj.weight.clone()

    def original(state, stage):
        (layer,) = stage.layers(["re:.*up_proj"])
        with state.original():
            return state.original_weight(layer).clone(), outputs(state, stage)

    seen = look(original)
    run(find("modifiers", "SmoothQuantModifier")(), rounding(), seen, model=model, data=data)

    weight, found = seen.found[0]
    torch.testing.assert_close({BLOCKS[0]: found[BLOCKS[0]]}, {BLOCKS[0]: expected[BLOCKS[0]]}, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(weight, before)


@pytest.mark.parametrize("pipeline", ["sequential", "basic"])
def test_a_correction_of_outputs_makes_their_mean_that_of_the_original(pipeline):
    model = tiny_conv1d()
    means = []

    def mean(state, stage):
        for name in [name for name in stage.modules if name.endswith("mlp")]:
            now = torch.stack([call.output().mean((0, 1)) for call in state.calls(stage, name)]).mean(0)
            with state.original():
                wanted = torch.stack([call.output().mean((0, 1)) for call in state.calls(stage, name)]).mean(0)
            means.append((now, wanted))

    run(rounding(group_size=-1), OutputBias(), look(mean), model=model, pipeline=pipeline)

    first, *_ = means
    torch.testing.assert_close(*first, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_on_the_model():
    model = tiny_llama()
    before = trace_of(model)

    run(look(outputs), model=model)
    with pytest.raises(BrokenPluginError, match="Look.finalize at .*: ZeroDivisionError"):
        run(look(lambda state, stage: [1 / 0 for _ in state.calls(stage, f"{stage.name}.mlp")]), model=model)

    assert differences(before, trace_of(model)) == []


def test_what_is_not_needed_is_not_there():
    with pytest.raises(BrokenPluginError, match=r"Look.finalize at .* must say original_weights=True"):
        run(look(lambda state, stage: state.original().__enter__(), original_weights=False))
    with pytest.raises(BrokenPluginError, match="Look: original_inputs, calls and loss_gradients need data"):
        run(look(outputs, data=False))
    with pytest.raises(CalibrationError, match="the pipeline DataFree runs none"):
        run(look(outputs), pipeline="data_free")
    with pytest.raises(CalibrationError, match=r"which the pipeline LayerSequential does not show; .*sequential"):
        run(look(outputs, original_inputs=True), pipeline="layer_sequential")


def test_the_prologue_has_no_calls():
    @frozen(kw_only=True, eq=False)
    class Early(Modifier):
        def needs(self):
            return Needs(data=True, calls=True)

        @hookimpl
        def finalize(self, state, stage):
            list(state.calls(stage))

    with pytest.raises(CalibrationError, match="the pipeline Sequential holds no calls of prologue"):
        run(Early())


@frozen(kw_only=True, eq=False)
class RoundKeys(Modifier):
    """Keys and values in steps of a quarter."""

    def attachments(self, stage: Stage):
        inside = [name for name in stage.modules if name.endswith("self_attn")]
        return [(name, KVCache(args={"num_bits": 4, "strategy": "tensor"})) for name in inside]

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for name, cache in self.attachments(stage):
            state.attach(name, cache, {buffer: torch.tensor([0.25]) for buffer in cache.buffers()})


@pytest.mark.parametrize("pipeline", ["sequential", "basic"])
def test_the_original_has_no_attachments_of_later(pipeline):
    model, data = tiny_llama(), batches(rows=4, batch_size=2)
    expected = block_outputs(model, data)

    def both(state, stage):
        with state.original():
            original = outputs(state, stage)
        return original, outputs(state, stage)

    seen = look(both)
    run(RoundKeys(), seen, model=model, data=data, pipeline=pipeline)

    original, rounded = (torch.cat(found[BLOCKS[0]]) for found in seen.found[0])
    torch.testing.assert_close(original, torch.cat(expected[BLOCKS[0]]))
    assert not torch.allclose(rounded, original, atol=1e-3)
