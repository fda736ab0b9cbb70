"""Smoother: what modifiers share that move per-channel scales between layers."""

from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress import RecipeError, TargetError
from coldpress.plugin import QUANTIZES, Modifier, Needs, Smoother, Smoothing, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.testing import run
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.trial import inputs_of

Q, OUT, UP = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj"))
NORM = "model.layers.0.input_layernorm"
QKV = [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]


@frozen(kw_only=True, eq=False)
class RootOfAbsmax(Smoother):
    """Divides every channel by the root of its largest magnitude."""

    constant: float | None = None
    seen: dict = field(factory=dict)

    def statistics(self, smoothing: Smoothing) -> Iterable[Any]:
        return ("absmax", "gram")

    def scale(self, state: State, smoothing: Smoothing) -> Tensor | str:
        first = smoothing.layers[0]
        self.seen[smoothing.pair.producer] = tuple(layer.name for layer in smoothing.layers)
        found = smoothing.pair.gather(state.require(first, "absmax"), first.name).sqrt()
        return found if self.constant is None else torch.full_like(found, self.constant)


@frozen(kw_only=True, eq=False)
class Reader(Modifier):
    """Remembers the Gram matrices that it reads."""

    targets: list[str] = field(factory=lambda: ["re:.*layers"])
    grams: dict = field(factory=dict)

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state, stage):
        for layer in self.layers(stage):
            state.request(layer, "gram")

    @hookimpl
    def finalize(self, state, stage):
        self.grams.update({layer.name: state.require(layer, "gram").total for layer in self.layers(stage)})


@frozen(kw_only=True, eq=False)
class Rounder(Modifier):
    """Says that it quantizes."""

    traits: ClassVar[frozenset[str]] = frozenset({QUANTIZES})

    @hookimpl
    def finalize(self, state, stage):
        """Nothing."""


@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_the_function_is_kept_and_the_weights_are_not(make):
    model, data = make(dtype=torch.float64), batches(batch_size=4)
    before, said = {n: p.clone() for n, p in model.named_parameters()}, logits(model, data)

    run(RootOfAbsmax(), model=model)

    assert (logits(model, data) - said).norm() <= 1e-6 * said.norm()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) >= 10


def test_the_gram_matrix_after_folding_is_that_of_a_fresh_sweep():
    reader, model = Reader(), tiny_llama()

    run(RootOfAbsmax(), reader, model=model)

    fresh = inputs_of(model, batches(batch_size=4))
    for name, gram in reader.grams.items():
        x = fresh[name].double()
        torch.testing.assert_close(gram.double(), x.t() @ x, rtol=1e-3, atol=1e-4 * float((x.t() @ x).max()))


def test_every_reader_of_a_producer_is_handed_over_and_value_heads_feed_their_group():
    modifier = RootOfAbsmax()

    run(modifier)

    assert [name.rpartition(".")[2] for name in modifier.seen[NORM]] == ["q_proj", "k_proj", "v_proj"]
    assert modifier.seen["model.layers.0.self_attn.v_proj"] == (OUT,)


def test_only_layers_inside_of_blocks_are_claimed_so_that_a_tied_head_stays_tied():
    model = tiny_llama(tied=True)

    run(RootOfAbsmax(), model=model)

    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_norm_in_16_bits_is_divided_by_what_its_readers_are_multiplied_with():
    model = tiny_llama(dtype=torch.bfloat16)
    old = model.get_submodule(NORM).weight.double()
    before = model.get_submodule(Q).weight.double()

    run(RootOfAbsmax(), model=model)

    exact = before * (old / model.get_submodule(NORM).weight.double())
    assert torch.equal(model.get_submodule(Q).weight.double(), exact.float().bfloat16().double())


def test_mappings_in_both_forms_limit_what_is_smoothed():
    for mapping in (QKV, {"balance_layers": QKV[0], "smooth_layer": QKV[1]}):
        state = run(RootOfAbsmax(mappings=[mapping]))

        assert state.report[Q].notes["smoothed_in"] == NORM
        assert state.report[UP].status == "untouched"
        assert state.report[UP].reason == "not smoothed: no mapping names it"


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ([["re:.*nothing"], "re:.*input_layernorm"], "matches no module"),
        ([["re:.*q_proj"], "re:.*nothing"], "matches no module"),
        ([["re:.*q_proj"], "re:.*input_layernorm"], "also feeds self_attn.k_proj, self_attn.v_proj"),
        ([["re:.*down_proj"], "re:.*input_layernorm"], "does not read"),
        ([["re:.*down_proj"], "re:.*gate_proj"], "no input is scaled by its channels"),
    ],
)
def test_a_mapping_that_is_not_true_is_refused_and_nothing_is_changed(mapping, said):
    model = tiny_llama()
    before = {n: p.clone() for n, p in model.named_parameters()}

    with pytest.raises(TargetError, match=said):
        run(RootOfAbsmax(mappings=[mapping]), model=model)

    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("value", [5, [["a"]], [[["a"], ["b", "c"]]]])
def test_a_mapping_of_another_form_is_refused_at_once(value):
    with pytest.raises(TargetError, match="mapping"):
        RootOfAbsmax(mappings=value)


def test_a_reader_that_is_ignored_does_not_count_but_is_folded():
    modifier, model, data = RootOfAbsmax(ignore=[Q]), tiny_llama(dtype=torch.float64), batches(batch_size=4)
    said = logits(model, data)

    run(modifier, model=model)

    assert Q not in modifier.seen[NORM]
    assert (logits(model, data) - said).norm() <= 1e-6 * said.norm()


def test_a_producer_that_is_ignored_is_left_alone_and_its_readers_say_why():
    state = run(RootOfAbsmax(ignore=[NORM]))

    assert state.report[Q].reason == f"not smoothed: {NORM}, which makes its input, is ignored"


def test_a_scale_that_would_leave_the_range_of_the_dtype_is_not_folded():
    model, data = tiny_llama(dtype=torch.float16), batches(batch_size=4)
    said = logits(model, data)

    state = run(RootOfAbsmax(constant=1e6), model=model)

    assert "leave the range of torch.float16" in state.report[Q].reason
    assert torch.equal(logits(model, data), said)


@pytest.mark.parametrize("constant", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_not_folded(constant):
    state = run(RootOfAbsmax(constant=constant))

    assert "no finite scale" in state.report[Q].reason


def test_a_producer_that_feeds_the_residual_stream_too_is_left_alone():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = self.norm(x)
            return x + self.down(torch.relu(self.up(x)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model, x = Model().double(), torch.randn(4, 100, 8, dtype=torch.float64)  # no channel is always zero
    said = model(x)

    state = run(RootOfAbsmax(), model=model, data=[{"x": x}])

    assert "cannot take the scale back" in state.report["layers.0.up"].reason
    assert state.report["layers.0.down"].status == "changed"
    torch.testing.assert_close(model(x), said)


@frozen(kw_only=True, eq=False)
class Chooser(Modifier):
    """Chooses a range for every weight."""

    @hookimpl
    def finalize(self, state, stage):
        state.clip_ranges.update({layer.name: layer.weight.aminmax() for layer in self.layers(stage)})


def test_ranges_that_were_chosen_before_weights_were_scaled_are_forgotten():
    state = run(Chooser(), RootOfAbsmax())

    assert list(state.clip_ranges) == ["lm_head"]


def test_signals_cannot_be_moved_after_they_are_quantized():
    with pytest.raises(RecipeError, match=r"RootOfAbsmax.*Rounder.*before"):
        Recipe([Rounder(), RootOfAbsmax()])

    Recipe([RootOfAbsmax(), Rounder()])
