"""The reverse sweep against autograd of the whole model, in memory and streamed."""

import pytest
import torch
from attrs import field, frozen
from loose import Loose, straight, twice, untouched, vectors
from torch import nn

from coldpress import CalibrationError, NumericsError
from coldpress.experts import linearize_experts
from coldpress.plugin import Gamma, Gram, Modifier, Needs, State, TokenWeight, hookimpl
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress_pipelines import Basic, Independent, LayerSequential, Sequential

SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@frozen(kw_only=True, eq=False)
class Reader(Modifier):
    """Notes statistics of gradients, and the Gram matrix that they weight."""

    labels: str = "data"
    weights: TokenWeight = field(init=False)

    @weights.default
    def _weights(self):
        return TokenWeight(labels=self.labels, quantile=1.0)

    def needs(self):
        return Needs(data=True, loss_gradients=(Gamma(labels=self.labels), self.weights))

    @hookimpl
    def initialize(self, state, stage):
        for layer in self.layers(stage):
            state.request(layer, Gram(weights=self.weights))

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            gamma = state.statistic(layer, Gamma(labels=self.labels))
            squares = state.statistic(layer, self.weights)
            gram = state.statistic(layer, Gram(weights=self.weights))
            state.log.append({"layer": layer.name, "gamma": gamma, "squares": squares, "gram": gram})


def found_by(model, data, pipeline, **settings):
    state = State(model=model, batches=data)
    Job(recipe=Recipe(Reader(**settings)), state=state, pipeline=pipeline).run()
    return {entry["layer"]: entry for entry in state.log if "layer" in entry}


def by_autograd(model, data):
    """Gradients by outputs, and inputs, of all linear layers, of the summed cross-entropy of the next tokens."""
    seen, hooks = {}, []

    def hook(name):
        def record(module, args, output):
            output.retain_grad()
            seen.setdefault(name, []).append((args[0], output))

        return record

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            hooks.append(module.register_forward_hook(hook(name)))
    for batch in data:
        model.eval()
        logits = model(**batch).logits
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        labels = batch["input_ids"].masked_fill(~mask, -100)[:, 1:]
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="sum").backward()
    for one in hooks:
        one.remove()
    whole = {}
    for name, calls in seen.items():
        masks = [b.get("attention_mask", torch.ones_like(b["input_ids"])).bool() for b in data]
        x = torch.cat([x.detach()[m] for (x, _), m in zip(calls, masks, strict=True)])
        g = torch.cat([y.grad[m] for (_, y), m in zip(calls, masks, strict=True)])
        whole[name] = (x, g)
    return whole


def padded():
    data = batches(rows=4, length=12, batch_size=2)
    for batch in data:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, 7:] = 0
    return data


@pytest.mark.parametrize("pipeline", [Sequential(), Basic(), Sequential(offload_activations="disk", offload_limit=0)])
@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_gradients_are_those_of_the_whole_model(make, pipeline):
    model, data = make(), padded()

    found, expected = found_by(model, data, pipeline), by_autograd(make(), data)

    assert found.keys() == expected.keys()
    for name, (_, g) in expected.items():
        torch.testing.assert_close(found[name]["gamma"].mean, g.square().mean(0), rtol=1e-5, atol=0)
    assert untouched(model)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_tokens_of_a_gram_matrix_are_weighted_by_the_layers_that_share_it():
    data = padded()

    found, expected = found_by(tiny_llama(), data, Sequential()), by_autograd(tiny_llama(), data)

    for name, (x, _) in expected.items():
        parent, _, own = name.rpartition(".")
        together = next((names for names in SHARED if own in names), (own,))
        squares = torch.cat([expected[f"{parent}.{n}" if parent else n][1] for n in together], 1).square().mean(1)
        weight = squares / squares.mean()
        gram = found[name]["gram"]
        torch.testing.assert_close(gram.total, x.T @ (x * weight[:, None]), rtol=1e-4, atol=1e-4)
        assert gram.count == len(x)


def both_ways(blocks, x):
    return straight(blocks[::-1], 2 * x) + straight(blocks, x)


@pytest.mark.parametrize("path", [straight, twice, both_ways])
def test_any_way_through_the_blocks_is_run_backwards(path):
    torch.manual_seed(0)
    model, data = Loose(path), vectors(2)

    found = found_by(model, data, Sequential(), labels="sampled")
    whole = found_by(model, data, Basic(), labels="sampled")

    assert found.keys() == whole.keys()
    for name, entry in found.items():
        torch.testing.assert_close(entry["gamma"].mean, whole[name]["gamma"].mean, rtol=1e-5, atol=0)
        assert entry["gamma"].count == whole[name]["gamma"].count


def test_sampled_labels_make_mean_squares_the_fisher_information():
    """Of the head: E[(p - onehot)^2] = p (1 - p), to what many samples allow."""
    model, data = tiny_llama(), batches(rows=64, length=32, batch_size=8)

    gamma = found_by(model, data, Basic(), labels="sampled", targets=["lm_head"])["lm_head"]["gamma"].mean

    with torch.no_grad():
        p = torch.cat([model(**batch).logits.flatten(0, 1) for batch in data]).softmax(-1)
    expected = (p * (1 - p)).mean(0)
    assert (gamma / expected).mean() == pytest.approx(1, abs=0.05)


def test_batching_does_not_change_what_is_drawn():
    small, large = (batches(rows=4, length=12, batch_size=size) for size in (1, 4))

    one, other = (found_by(tiny_llama(), data, Sequential(), labels="sampled") for data in (small, large))

    for name, entry in one.items():
        torch.testing.assert_close(entry["gamma"].mean, other[name]["gamma"].mean, rtol=1e-4, atol=0)


def test_a_gradient_that_is_not_finite_names_layer_and_batch():
    model = tiny_llama()
    model.lm_head.weight.data *= 1e30
    model.model.layers[1].mlp.down_proj.weight.data *= 1e30

    with pytest.raises(NumericsError, match="batch 0"):
        found_by(model, batches(rows=2), Basic())


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(CalibrationError, match="inference_mode"):
        found_by(tiny_llama(), batches(rows=2), Sequential())


def test_a_pipeline_that_runs_forwards_only_is_refused():
    with pytest.raises(CalibrationError, match="Reader .* LayerSequential .* sequential"):
        found_by(tiny_llama(), batches(rows=2), LayerSequential())


def test_independent_runs_backwards_once():
    model, data = tiny_llama(), batches(rows=2)

    found, expected = found_by(model, data, Independent()), found_by(tiny_llama(), data, Sequential())

    for name, entry in found.items():
        assert torch.equal(entry["gamma"].mean, expected[name]["gamma"].mean)


class Writing(nn.Module):
    """A block that hands its first activation to a later block by way of a table."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, table):
        table["kept"] = self.first(x)
        return x + self.second(table["kept"])


class Tabled(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Writing() for _ in range(2))

    def forward(self, x):
        table = {}
        for block in self.blocks:
            x = block(x, table)
        return x


def test_a_block_that_writes_into_an_argument_is_refused_and_not_differentiated_wrongly():
    with pytest.raises(CalibrationError, match="writes into an argument"):
        found_by(Tabled(), vectors(2), Sequential(), labels="sampled")


def test_experts_have_the_gradients_of_the_tokens_that_their_router_sends_them():
    data = padded()

    def mixture():
        model = tiny_mixture("qwen3_moe")
        linearize_experts(model)
        return model

    found, whole = (found_by(mixture(), data, pipeline) for pipeline in (Sequential(), Basic()))

    seen = [name for name, entry in found.items() if entry["gamma"] is not None and ".experts." in name]
    assert len(seen) > 2
    for name in seen:
        torch.testing.assert_close(found[name]["gamma"].mean, whole[name]["gamma"].mean, rtol=1e-5, atol=0)
        assert found[name]["gamma"].count == whole[name]["gamma"].count < 4 * 12
