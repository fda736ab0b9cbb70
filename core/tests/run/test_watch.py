"""What a hook may do to weights: the doors of State, changes in place, and that codes and weights agree."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen
from torch import nn

from coldpress.errors import BrokenPluginError, NumericsError, TargetError
from coldpress.modifier import PRUNES, RUNS_LAST, TRANSFORMS, Modifier, Needs
from coldpress.plugin import hookimpl
from coldpress.testing import run
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.rounding import Rounding

UP = "model.layers.1.mlp.up_proj"


@frozen(kw_only=True, eq=False)
class Acts(Modifier):
    """Does something to each of its layers, in a hook of choice."""

    targets: list[str] = field(factory=lambda: [UP])
    hook: ClassVar[str] = "finalize"
    needed: ClassVar[Needs] = Needs()

    def act(self, state, layer):
        raise NotImplementedError

    def needs(self):
        return evolve(self.needed, data=self.needed.data or self.hook == "calibrate_batch")

    def _act(self, hook, state, stage):
        if hook == self.hook:
            for layer in self.layers(stage):
                self.act(state, layer)

    @hookimpl
    def initialize(self, state, stage):
        self._act("initialize", state, stage)

    @hookimpl
    def calibrate_batch(self, state, stage, batch):
        self._act("calibrate_batch", state, stage)

    @hookimpl
    def finalize(self, state, stage):
        self._act("finalize", state, stage)


def acts(act, *, name="Acts", traits=(), **more):
    """A modifier that does `act(state, layer)`."""
    return type(name, (Acts,), {"act": staticmethod(act), "traits": frozenset(traits), **more})()


def rounding(**settings):
    return Rounding(**{"scheme": "W8A16", "group_size": -1, "targets": [UP], **settings})


def halved(state, layer):
    """Every other column is zero."""
    state.set_weight(layer, layer.weight * (torch.arange(layer.weight.shape[1]) % 2))


def layer_of(state):
    return state.model.get_submodule(UP)


# --- the doors


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda state, layer: state.set_weight(layer, layer.weight[:1]), r"the shape \(1, 128\), not \(256, 128\)"),
        (lambda state, layer: state.set_weight(layer, layer.weight.t()), r"the shape \(128, 256\)"),
        (lambda state, layer: state.set_weight(layer, layer.weight.int()), "torch.int32, not floating-point"),
    ],
)
def test_a_weight_that_is_none_is_refused_with_hook_stage_and_layer(act, said):
    with pytest.raises(BrokenPluginError, match=rf"^Acts.finalize at model.layers.1: {UP}: .*{said}"):
        run(acts(act))


def test_a_weight_that_overflows_in_the_dtype_of_the_layer_is_refused():
    with pytest.raises(NumericsError, match=rf"{UP}.* Inf .*made by Acts.finalize at model.layers.1"):
        run(acts(lambda state, layer: state.set_weight(layer, layer.weight.float() * 1e9)), model=tiny_half())


def tiny_half():
    return tiny_llama(dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q: {"codes": q.codes.long()}, "the codes are torch.int64"),
        (lambda q: {"codes": q.codes[:1]}, "the shape of the codes"),
        (lambda q: {"scale": q.scale[:1]}, "the shape of the scale"),
        (lambda q: {"scale": -q.scale}, "not positive"),
        (lambda q: {"zero_point": q.zero_point + 1}, "symmetric"),
        (lambda q: {"global_scale": torch.ones(1)}, "one level"),
        (lambda q: {"codes": None}, "there are no codes"),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_refused_with_hook_stage_and_layer(change, said):
    class Wrong(Rounding):
        @hookimpl
        def finalize(self, state, stage):
            for layer in self.layers(stage):
                quantized = self.rounded(state, layer)
                state.set_quantized(layer, evolve(quantized, **change(quantized)))

    with pytest.raises(BrokenPluginError, match=rf"^Wrong.finalize at model.layers.1: {UP}: .*{said}"):
        run(Wrong(scheme="W8A16", group_size=-1, targets=[UP]))


def test_another_scheme_than_the_planned_one_is_refused():
    class Wrong(Rounding):
        @hookimpl
        def finalize(self, state, stage):
            for layer in self.layers(stage):
                quantized = self.rounded(state, layer)
                scheme = evolve(quantized.scheme, weights=evolve(quantized.scheme.weights, num_bits=7))
                state.set_quantized(layer, evolve(quantized, scheme=scheme, codes=quantized.codes // 2))

    with pytest.raises(BrokenPluginError, match="the planned one is"):
        run(Wrong(scheme="W8A16", group_size=-1, targets=[UP]))


@pytest.mark.parametrize("hook", ["initialize", "calibrate_batch"])
@pytest.mark.parametrize("act", [halved, lambda state, layer: layer.weight.mul_(0.5)], ids=["set_weight", "in place"])
def test_weights_are_changed_in_finalize_only(hook, act):
    with pytest.raises(BrokenPluginError, match=rf"Acts.{hook} at model.layers.1.*{UP}.*weights are changed in final"):
        run(acts(act, hook=hook))


def test_layers_of_other_stages_are_not_written():
    def other(state, layer):
        (head,) = Modifier(targets=["lm_head"]).layers(whole(state))
        state.set_weight(head, head.weight * 2)

    with pytest.raises(BrokenPluginError, match=r"at model.layers.1: lm_head: it is no layer of model.layers.1"):
        run(acts(other))


def whole(state):
    from coldpress.stage import Stage

    return Stage.whole(state.model)


def test_nothing_is_written_where_the_original_weights_are_shown():
    def inside(state, layer):
        with state.original():
            halved(state, layer)

    with pytest.raises(BrokenPluginError, match="inside of state.original"):
        run(acts(inside, needed=Needs(original_weights=True)))


def test_a_statistic_that_is_requested_too_late_is_told_so():
    with pytest.raises(
        BrokenPluginError, match=rf"Acts.finalize at model.layers.1: {UP}: 'mean' is requested too late"
    ):
        run(acts(lambda state, layer: state.request(layer, "mean"), needed=Needs(data=True)))


# --- in place


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_number_that_is_none_is_the_mistake_of_the_hook_and_not_of_the_checkpoint(part):
    model = tiny_llama()
    model.get_submodule(UP).bias = nn.Parameter(torch.zeros(256))

    with pytest.raises(NumericsError, match=rf"{UP}.{part}' holds .* NaN .* made by Acts.finalize at model.layers.1"):
        run(acts(lambda state, layer: getattr(layer.module, part)[:1].fill_(torch.nan)), model=model)


def test_what_is_changed_by_way_of_data_is_seen_before_it_is_written():
    def spoil(state, layer):
        layer.module.weight.data[0, 0] = torch.nan

    with pytest.raises(NumericsError, match=rf"{UP}.weight' holds 1 NaN .* made by a modifier"):
        run(acts(spoil))


def test_what_is_changed_by_way_of_data_while_batches_run_is_seen_after_the_sweep():
    def spoil(state, layer):
        layer.module.weight.data.mul_(0.5)

    with pytest.raises(BrokenPluginError, match=rf"Acts.calibrate_batch at model.layers.1 changed {UP}.weight"):
        run(acts(spoil, hook="calibrate_batch"))


def test_a_new_parameter_is_refused_by_name_because_nothing_would_load_it():
    def act(state, layer):
        layer.module.bias = nn.Parameter(torch.zeros(256))

    with pytest.raises(BrokenPluginError, match=rf"Acts.finalize at model.layers.1 adds the parameter {UP}.bias"):
        run(acts(act))


def test_a_parameter_that_is_lost_or_has_another_dtype_is_refused():
    with pytest.raises(BrokenPluginError, match=rf"makes {UP}.weight \(256, 128\), torch.float64; it was .*float32"):
        run(acts(lambda state, layer: layer.module.double()))
    with pytest.raises(BrokenPluginError, match=rf"removes the parameter {UP}.weight"):
        run(acts(lambda state, layer: delattr(layer.module, "weight")))


def test_a_modifier_that_leaves_out_a_layer_is_seen_also_if_another_one_changes_it():
    with pytest.raises(TargetError, match=f"Prunes: {UP}\nclaimed and left as it was"):
        run(acts(lambda state, layer: None, name="Prunes", traits=[PRUNES]), rounding())


# --- after a quantizer


@pytest.mark.parametrize("act", [halved, lambda state, layer: layer.weight[:, ::2].zero_()], ids=["set", "in place"])
@pytest.mark.parametrize("scheme", ["W8A16", "W4A16_ASYM", "NVFP4A16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_follow_a_later_change_that_they_can_stand_for(act, scheme, dtype):
    group_size = None if scheme == "NVFP4A16" else 32
    state = run(rounding(scheme=scheme, group_size=group_size), acts(act), model=tiny_llama(dtype=dtype))

    kept = state.quantized[UP]
    assert (layer_of(state).weight[:, ::2] == 0).all()
    assert torch.equal(kept.weight(dtype), layer_of(state).weight)
    line = state.report[UP]
    assert (line.status, line.sparsity > 0.49) == ("quantized", True)


@pytest.mark.parametrize(
    "act",
    [
        lambda state, layer: state.set_weight(layer, layer.weight + 0.01),
        lambda state, layer: layer.weight.add_(0.01),
        lambda state, layer: layer.module.weight.data.add_(0.01),
    ],
    ids=["set", "in place", "by data"],
)
def test_a_later_change_that_codes_cannot_stand_for_is_refused(act):
    with pytest.raises(BrokenPluginError, match=rf"^Acts.finalize at .*: {UP}: its codes, which Rounding made, cannot"):
        run(rounding(), acts(act))


def test_pruning_after_a_quantizer_is_refused_before_the_run_unless_it_runs_last():
    with pytest.raises(TargetError, match=f"{UP}: Rounding quantizes its weight.*put Prunes before Rounding"):
        run(rounding(), acts(halved, name="Prunes", traits=[PRUNES]))

    state = run(rounding(), acts(halved, name="PrunesLast", traits=[PRUNES, RUNS_LAST]))
    assert torch.equal(state.quantized[UP].weight(torch.float32), layer_of(state).weight)


# --- the report


def test_a_layer_that_is_skipped_by_one_and_quantized_by_another_is_quantized():
    def skip(state, layer):
        state.skip(layer, "it has no bias")

    for modifiers in ([rounding(), acts(skip)], [acts(skip), rounding()]):
        line = run(*modifiers).report[UP]
        assert (line.status, line.reason, line.notes["remarks"]) == ("quantized", None, ["it has no bias"])


def test_a_layer_that_its_modifier_left_alone_says_so():
    state = run(acts(lambda state, layer: None))

    assert state.report[UP].reason == "left as it was by Acts"
    assert state.report["lm_head"].reason == "no target of the recipe matches it"


@pytest.mark.parametrize("first", [halved, lambda state, layer: layer.weight[:, ::2].zero_()], ids=["set", "in place"])
def test_the_error_of_a_layer_that_is_changed_twice_is_that_of_both(first):
    before = tiny_llama().get_submodule(UP).weight

    state = run(acts(first), rounding())

    error = (before - layer_of(state).weight).norm() / before.norm()
    assert state.report[UP].weight_error == pytest.approx(error.item(), rel=1e-4)
    assert error > 0.5


def double_and_halve(state, layer):
    """Twice the weight, which half the gate takes back, as a transformation that tells nothing."""
    layer.weight.mul_(2)
    state.model.get_submodule(UP.replace("up_proj", "down_proj")).weight.data.div_(2)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("at", [0, 1], ids=["before", "between"])
def test_the_error_is_to_the_weight_as_it_was_transformed(told, at):
    def act(state, layer):
        double_and_halve(state, layer)
        if told:
            state.transform_original(lambda: double_and_halve(state, layer))

    before = 2 * tiny_llama().get_submodule(UP).weight
    modifiers = [acts(halved), rounding()]
    modifiers.insert(at, acts(act, name="Transforms", traits=[TRANSFORMS], needed=Needs(data=True)))

    state = run(*modifiers)

    found, error = state.report[UP].weight_error, (before - layer_of(state).weight).norm() / before.norm()
    if told or at == 0:
        assert found == pytest.approx(error.item(), rel=1e-4)
    else:
        assert found is None  # not measured, rather than wrong


def test_original_weights_that_a_transformation_does_not_tell_of_are_refused():
    def reads(state, layer):
        torch.testing.assert_close(state.original_weight(layer), 2 * tiny_llama().get_submodule(UP).weight)

    needy = acts(reads, name="Needy", needed=Needs(original_weights=True))
    run(
        acts(double_and_halve, name="Transforms", traits=[TRANSFORMS]), needy
    )  # nothing was compressed yet: what it leaves is the original

    late = acts(double_and_halve, name="Transforms", traits=[TRANSFORMS], needed=Needs(data=True))
    with pytest.raises(BrokenPluginError, match=r"Transforms.finalize at .* Needy needs the original ones"):
        run(acts(halved), late, needy)


def test_weights_of_a_stage_are_copied_only_where_a_layer_is_changed_twice():
    copies = []

    def look(state, layer):
        copies.append(None if state.originals is None else sorted(state.originals.parameters))
        state.skip(layer, "looked")

    run(acts(look), data=batches(rows=1))
    run(acts(look), rounding())

    assert copies == [None, [f"{UP}.weight"]]
