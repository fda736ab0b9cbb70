"""Shapes of methods that an author brings, each whole in at most 60 lines: streamed, interrupted, resumed, loaded."""

import importlib
import sys

import pytest
import torch

from coldpress import load_model, oneshot
from coldpress.plugin import first_tensor
from coldpress.registry import find
from coldpress.testing import run
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.package import write_package
from coldpress.testing.trial import inputs_of

LAYER_CORRECTION = '''"""Bias correction, layer by layer: what rounding takes from the mean of a layer's outputs."""

from attrs import frozen
from coldpress.plugin import Modifier, Needs, Stage, State, hookimpl


@frozen(kw_only=True, eq=False)
class LayerCorrection(Modifier):
    """Adds to the bias of each layer what its mean output has lost."""

    def needs(self) -> Needs:
        return Needs(data=True, original_weights=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.request(layer, "mean")

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            if layer.module.bias is None:
                state.skip(layer, "it has no bias")
                continue
            lost = state.original_weight(layer) - layer.weight  # [O, I]
            layer.module.bias.add_(lost @ state.require(layer, "mean").mean)
'''

BLOCK_CORRECTION = '''"""Bias correction of blocks: what compressing a block takes from the mean of its outputs."""

import torch
from attrs import field, frozen
from coldpress.plugin import Modifier, Needs, Stage, State, hookimpl


@frozen(kw_only=True, eq=False)
class BlockCorrection(Modifier):
    """Adds to the last biases of each block what its mean output has lost.

    Attributes:
        targets: layers whose outputs are added to the output of their block.
    """

    targets: list[str] = field(factory=lambda: ["re:.*mlp.c_proj"], converter=list)

    def needs(self) -> Needs:
        return Needs(data=True, calls=True, original_weights=True)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            with state.original():
                wanted = self.mean_output(state, stage)
            layer.module.bias.add_(wanted - self.mean_output(state, stage))

    def mean_output(self, state: State, stage: Stage) -> torch.Tensor:
        return torch.cat([call.output().flatten(0, -2) for call in state.calls(stage)]).mean(0)  # [D]
'''

GLOBAL_THRESHOLD = '''"""Magnitude pruning with one threshold for the whole model."""

import torch
from attrs import frozen
from coldpress.plugin import PRUNES, Decision, Modifier, Needs, Stage, State, hookimpl

BINS = 4096


@frozen(kw_only=True, eq=False)
class GlobalThreshold(Modifier):
    """Zeroes the smallest weights of all layers.

    Attributes:
        sparsity: share of all claimed weights to drop.
    """

    traits = frozenset({PRUNES})
    sparsity: float = 0.5

    def needs(self) -> Needs:
        return Needs(measuring_pass=True)

    def measure(self, state: State, stage: Stage) -> list[float]:
        sizes = [layer.weight.float().abs().flatten() for layer in self.layers(stage)]
        return torch.histc(torch.cat([torch.empty(0), *sizes]), BINS, min=0, max=1).tolist()

    def decide(self, state: State, measured: list[list[float]]) -> Decision:
        counts = torch.tensor(measured, dtype=torch.float64).sum(0).cumsum(0)
        return Decision(value=int((counts <= self.sparsity * counts[-1]).sum()) / BINS)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.set_weight(layer, layer.weight * (layer.weight.abs() >= state.decision(self)))
'''

SHAPES = {"LayerCorrection": LAYER_CORRECTION, "BlockCorrection": BLOCK_CORRECTION, "GlobalThreshold": GLOBAL_THRESHOLD}
ROUNDING = {"scheme": "W4A16", "group_size": 32, "targets": ["Conv1D"]}


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The classes, installed as pip leaves them."""
    names = {name: f"acme_{name.lower()}" for name in SHAPES}
    for name, module in names.items():
        write_package(tmp_path / "site", module, SHAPES[name], {"coldpress.modifiers": {name: f"{module}:{name}"}})
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield {name: getattr(importlib.import_module(module), name) for name, module in names.items()}
    for module in names.values():
        sys.modules.pop(module, None)


def modifier(name, **settings):
    return find("modifiers", name)(**settings)


def corrected(*last):
    """A GPT-2 that was smoothed and rounded, and corrected."""
    model = tiny_conv1d()
    run(modifier("SmoothQuantModifier"), modifier("QuantizationModifier", **ROUNDING), *last, model=model)
    return model


def error(model):
    data = batches(rows=8)
    return (logits(model, data) - logits(tiny_conv1d(), data)).square().mean().item()


@pytest.mark.parametrize("name", SHAPES)
def test_each_has_at_most_60_lines_with_its_line_of_metadata(name):
    assert len(SHAPES[name].splitlines()) + 1 <= 60


def test_biases_are_corrected_after_a_smoother_and_a_quantizer(shapes):
    name, data = "transformer.h.0.attn.c_attn", batches(rows=8)
    rounded, mended = corrected(), corrected(shapes["LayerCorrection"](targets=["Conv1D"]))

    wanted, lost, found = (mean_output(model, name, data) for model in (tiny_conv1d(), rounded, mended))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert (lost - wanted).norm() > 20 * (found - wanted).norm()
    assert error(mended) < error(rounded)


def mean_output(model, name, data):
    layer = model.get_submodule(name)
    return mean(layer(inputs_of(model, data)[name]))[:128]  # queries and keys: values are scaled by the smoother


def test_the_mean_output_of_each_block_is_that_of_the_original_block(shapes):
    model, data = tiny_conv1d(), batches(batch_size=4)
    run(
        *(modifier("QuantizationModifier", **ROUNDING), shapes["BlockCorrection"]()),
        model=model,
        data=data,
        pipeline="sequential",
    )

    for index in range(2):
        inputs = states(model, data)[index]  # of the compressed model, which both blocks are handed
        wanted, found = (first_tensor(one.transformer.h[index](inputs)) for one in (tiny_conv1d(), model))
        torch.testing.assert_close(mean(found), mean(wanted), rtol=1e-3, atol=1e-4)


def states(model, data):
    with torch.no_grad():
        found = [model(**batch, output_hidden_states=True).hidden_states for batch in data]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def mean(x):
    return x.flatten(0, -2).mean(0).detach()


def test_one_threshold_parts_the_weights_of_all_layers(shapes):
    before, after = tiny_llama(), tiny_llama()
    run(shapes["GlobalThreshold"](sparsity=0.3), model=after, pipeline="sequential")

    names = [name for name, parameter in before.named_parameters() if name.endswith(("_proj.weight", "head.weight"))]
    old, new = (
        torch.cat([model.get_parameter(name).flatten() for name in names]).detach() for model in (before, after)
    )
    assert (new == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert old[new == 0].abs().max() <= new[new != 0].abs().min()
    shares = {name: (after.get_parameter(name) == 0).float().mean().item() for name in names}
    assert max(shares.values()) - min(shares.values()) > 0.05  # layers differ, as one threshold makes them


RECIPES = {
    "BlockCorrection": f"modifiers: [QuantizationModifier: {ROUNDING}, BlockCorrection: {{}}]".replace("'", '"'),
    "LayerCorrection": f"modifiers: [QuantizationModifier: {ROUNDING}, LayerCorrection: {{targets: [Conv1D]}}]".replace(
        "'", '"'
    ),
    "GlobalThreshold": "modifiers: [GlobalThreshold: {targets: [Conv1D]}]",
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_is_streamed_and_resumed_to_the_tensors_of_a_model_in_memory(shapes, tmp_path, name):
    tiny_conv1d().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def compress(folder, **settings):
        more = {} if name == "GlobalThreshold" else {"dataset": batches(rows=4)}
        oneshot(str(tmp_path / "model"), RECIPES[name], output_dir=tmp_path / folder, quiet=True, **more, **settings)
        return load_model(tmp_path / folder, device="cpu").state_dict()

    whole = compress("whole", stream_weights=False)
    with interrupted(2):
        compress("out", stream_weights=True)
    resumed = compress("out", stream_weights=True)

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
