"""independent: as many walks over the model as modifiers, each on what the one before left."""

from copy import deepcopy

import pytest
import torch
from loose import SEEN, Block, Loose, Watcher, stages, straight, untouched, vectors

from coldpress import oneshot, testing
from coldpress.errors import BrokenPluginError
from coldpress.plugin import State
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress.testing.trial import inputs_of
from coldpress_pipelines import Independent, Sequential

QUERIES = "QuantizationModifier: {targets: ['re:.*[qkv]_proj'], scheme: W8A8}"
DOWN = "QuantizationModifier: {targets: ['re:.*down_proj'], scheme: W4A16, group_size: 32}"


def run(model, *modifiers, pipeline=None, data=None):
    data = vectors() if data is None else data
    return testing.run(*modifiers, model=model, data=data, pipeline=pipeline or Independent())


def seen(state):
    """What each `Watcher` saw, in the order of the walks."""
    walks, last = [], None
    for entry in state.log:
        if SEEN in entry:
            key = entry[SEEN]
            if last is None or key in walks[-1]:
                walks.append({})
            walks[-1][key] = last = entry["input"]
    return walks


@pytest.mark.parametrize("inner", ["sequential", "layer_sequential"])
def test_the_second_modifier_sees_the_model_that_the_first_one_left(inner):
    model = Loose(straight)
    state = run(model, Watcher(halves=True), Watcher(), pipeline=Independent(pipeline=inner, true_sequential=False))
    expected = inputs_of(model, vectors())  # the second one changed nothing

    first, second = seen(state)

    assert {name for name, _ in second} == set(expected)
    for name, inputs in expected.items():
        torch.testing.assert_close(torch.cat([second[name, index] for index in range(4)]), inputs)
    assert not torch.equal(first["blocks.0.second", 0], second["blocks.0.second", 0])


def test_in_a_shared_sweep_it_sees_what_the_first_one_saw():
    states = [run(Loose(straight), Watcher(halves=True), Watcher(), pipeline=Sequential())]
    inputs = [entry for entry in states[0].log if SEEN in entry and entry[SEEN] == ("blocks.0.second", 0)]

    assert len(inputs) == 2
    assert torch.equal(inputs[0]["input"], inputs[1]["input"])


def test_a_recipe_of_one_modifier_is_a_shared_sweep():
    model = Loose(straight)
    alone = seen(run(deepcopy(model), Watcher(halves=True)))
    shared = seen(run(deepcopy(model), Watcher(halves=True), pipeline=Sequential()))

    assert len(alone) == len(shared) == 1
    assert all(torch.equal(alone[0][key], shared[0][key]) for key in shared[0])


def test_the_stages_are_walked_once_for_each_modifier():
    state = run(Loose(straight), Watcher(), Watcher(targets=["head"]))
    once = ["blocks.0", "blocks.1", "blocks.2", "epilogue"]

    assert [name for name in stages(state) if name != "prologue"] == [*once, *once]
    assert [entry["modifier"] for entry in state.log if "stage" in entry] == ["Watcher"] * len(stages(state))


def test_a_modifier_that_reads_no_data_runs_nothing():
    def runs(*modifiers):
        model = Loose(straight)
        run(model, *modifiers)
        return [block.runs for block in model.blocks]

    rounding = Rounding(scheme="W8A16", group_size=-1, targets=["head"])

    assert runs(Watcher(), rounding) == runs(Watcher())
    assert runs(rounding, rounding_of_blocks()) == [0, 0, 0]


def rounding_of_blocks():
    return Rounding(scheme="W8A16", group_size=-1, targets=["re:blocks.*"])


def test_every_layer_has_the_status_and_the_reason_that_the_whole_recipe_gives_it():
    reports = []
    for pipeline in (Independent(), Sequential()):
        state = run(
            tiny_llama(),
            Rounding(scheme="W8A16", group_size=-1, targets=["re:.*q_proj"]),
            Rounding(scheme="W4A16", group_size=32, targets=["re:.*down_proj"]),
            pipeline=pipeline,
            data=batches(),
        )
        reports.append({name: (line.status, line.reason, line.scheme) for name, line in state.report.items()})

    assert reports[0] == reports[1]
    assert reports[0]["model.layers.0.self_attn.q_proj"][:2] == ("quantized", None)


def test_the_checkpoint_holds_what_every_modifier_made(tmp_path):
    for pipeline in ("independent", "sequential"):
        oneshot(
            tiny_llama(),
            f"modifiers: [{QUERIES}, {DOWN}]",
            pipeline=pipeline,
            output_dir=tmp_path / pipeline,
        )

    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("independent", "sequential"))
    assert one == other


@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_inputs_that_the_first_one_quantizes_are_quantized_where_the_second_one_looks(make):
    model = make()
    name = "model.layers.1.mlp.up_proj" if make is tiny_llama else "transformer.h.1.mlp.c_fc"
    state = run(model, Rounding(scheme="W8A8"), Watcher(targets=[name]), data=batches())

    assert all(torch.equal(x, inputs) for x, inputs in zip(seen(state)[0].values(), _split(model, name), strict=True))


def _split(model, name):
    return inputs_of(model, batches())[name].split(16)


def test_settings_go_to_the_pipeline_inside():
    state = State(model=tiny_llama(), batches=batches())
    pipeline = Independent(sequential_targets=["LlamaMLP"])

    assert pipeline.count(state) == Sequential(sequential_targets=["LlamaMLP"]).count(state)
    with pytest.raises(ValueError, match="pipeline"):
        Independent(pipeline="basic")


def test_an_error_in_the_second_walk_leaves_nothing_behind():
    model = Loose(straight)

    class Clumsy(Watcher):
        def layers(self, stage):
            if stage.name == "blocks.1":
                raise LookupError("dropped it")
            return super().layers(stage)

    with pytest.raises(BrokenPluginError, match="LookupError: dropped it"):
        run(model, Watcher(), Clumsy())

    assert untouched(model)
    assert isinstance(model.blocks[0], Block)
