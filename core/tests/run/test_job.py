"""The run: which hooks fire when, what stops it before it begins, and that an error leaves nothing behind."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from attrs import field, frozen

from coldpress import testing
from coldpress.checkpoint import CheckpointWriter
from coldpress.checkpoint.output import Output
from coldpress.dataflow.partition import partition
from coldpress.errors import (
    BrokenPluginError,
    CalibrationError,
    CheckpointError,
    NumericsError,
    SchemeError,
    TargetError,
)
from coldpress.modifier import PRUNES, QUANTIZES, Modifier, Needs
from coldpress.plugin import hookimpl
from coldpress.registry import find
from coldpress.run.hooks import Hooks
from coldpress.stage import Stage
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama
from coldpress.testing.rounding import Rounding
from coldpress.testing.trace import changed, differences, trace_of, weights_of
from coldpress.testing.trial import Parts


@frozen(kw_only=True, eq=False)
class Diary(Modifier):
    """Writes down which hook is called, and changes every layer that it claims."""

    name: str = "diary"
    pages: list = field(factory=list)

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state, stage):
        self.pages.append((self.name, "initialize", stage.name))

    @hookimpl
    def calibrate_batch(self, state, stage, batch):
        self.pages.append((self.name, "batch", batch.index))

    @hookimpl
    def finalize(self, state, stage):
        self.pages.append((self.name, "finalize", stage.name))
        for layer in self.layers(stage):
            layer.weight.mul_(0.5)

    @hookimpl
    def save(self, state, folder):
        self.pages.append((self.name, "save", folder.name))
        (folder / f"{self.name}.txt").write_text(self.name)


@frozen(kw_only=True, eq=False)
class Idle(Modifier):
    """Promises to quantize, and does nothing."""

    traits = frozenset({QUANTIZES})
    excuse: str = ""

    @hookimpl
    def finalize(self, state, stage):
        if self.excuse:
            for layer in self.layers(stage):
                state.skip(layer, self.excuse)


@frozen(kw_only=True, eq=False)
class Clumsy(Modifier):
    """Raises where it is told to."""

    traits = frozenset({PRUNES})
    at: str = "finalize"

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def calibrate_batch(self, state, stage, batch):
        if self.at == "calibrate_batch" and batch.index == 1:
            raise RuntimeError("dropped it")

    @hookimpl
    def finalize(self, state, stage):
        if self.at == "finalize":
            raise RuntimeError("dropped it")


run = partial(testing.run, data=batches(rows=4, batch_size=2))


def rounding(**settings):
    return Rounding(**{"scheme": "W8A16", "group_size": -1, "ignore": ["lm_head"], **settings})


def output(folder):
    return Output(CheckpointWriter(folder / "out"), find("formats", "compressed-tensors")())


# --- the order of things


def test_hooks_fire_in_recipe_order_stage_by_stage():
    pages = []
    run(Diary(name="a", pages=pages, targets=["re:.*q_proj"]), Diary(name="b", pages=pages, targets=["re:.*k_proj"]))
    block = [page for page in pages if page[2] in ("model.layers.1", 0, 1)]

    assert block[-8:] == [
        ("a", "initialize", "model.layers.1"),
        ("b", "initialize", "model.layers.1"),
        ("a", "batch", 0),
        ("b", "batch", 0),
        ("a", "batch", 1),
        ("b", "batch", 1),
        ("a", "finalize", "model.layers.1"),
        ("b", "finalize", "model.layers.1"),
    ]


def test_every_stage_is_initialized_and_finalized_once():
    pages = []
    run(Diary(pages=pages))
    stages = [stage.name for stage in partition(tiny_llama())]

    assert [page[2] for page in pages if page[1] == "initialize"] == stages
    assert [page[2] for page in pages if page[1] == "finalize"] == stages


def test_stages_without_a_claimed_layer_are_not_swept():
    pages = []
    run(Diary(pages=pages, targets=["model.layers.1.mlp.up_proj"]))

    assert [page[2] for page in pages if page[1] == "batch"] == [0, 1]


def test_save_is_the_last_hook_and_its_files_are_in_the_checkpoint(tmp_path):
    pages = []
    out = output(tmp_path)
    run(Diary(pages=pages), output=out)

    assert pages[-1][:2] == ("diary", "save")
    assert (tmp_path / "out/diary.txt").read_text() == "diary"


def test_a_modifier_may_stand_twice_in_a_recipe():
    model = tiny_llama()
    before = model.lm_head.weight.detach().clone()

    run(Diary(targets=["lm_head"]), Diary(targets=["lm_head"]), model=model)

    assert torch.equal(model.lm_head.weight, before / 4)


def test_a_misspelt_hook_is_an_error():
    class Misspelt(Modifier):
        @hookimpl
        def finalise(self, state, stage): ...

    with pytest.raises(BrokenPluginError, match="finalise"):
        Hooks([Misspelt()])


def test_a_hook_with_an_argument_that_there_is_not_is_an_error():
    class Curious(Modifier):
        @hookimpl
        def finalize(self, state, stage, weather): ...

    with pytest.raises(BrokenPluginError, match="weather"):
        Hooks([Curious()])


# --- what stops it before it begins


def test_a_target_that_matches_nothing_is_an_error_with_near_names():
    with pytest.raises(TargetError, match=r"the target 'model.layers.0.mlp.up_porj' matches no layer.*mlp.up_proj"):
        run(rounding(targets=["model.layers.0.mlp.up_porj"]))


def test_all_targets_that_match_nothing_are_listed():
    with pytest.raises(TargetError) as caught:
        run(rounding(targets=["Linearr"]), Diary(targets=["re:nothing", "lm_head"]))

    assert "'Linearr'" in str(caught.value)
    assert "'Linear'" in str(caught.value)
    assert "'re:nothing'" in str(caught.value)
    assert "Diary" in str(caught.value)


def test_ignoring_everything_is_an_error():
    with pytest.raises(TargetError, match="ignored, so it would do nothing"):
        run(rounding(ignore=["Linear"]))


def test_two_modifiers_that_quantize_one_layer_are_refused():
    with pytest.raises(SchemeError, match=r"lm_head: quantized by Rounding and Rounding; let one of them ignore it"):
        run(rounding(ignore=[]), rounding(targets=["lm_head"], ignore=[]))


def test_a_group_size_that_does_not_divide_names_the_layer_its_width_and_what_would():
    model = tiny_llama(hidden=96)

    with pytest.raises(SchemeError, match=r"model.layers.0.self_attn.q_proj: .*128 .*96 columns.*32"):
        run(rounding(scheme="W4A16", group_size=128), model=model)


def test_a_scheme_that_is_not_quantized_yet_says_so():
    with pytest.raises(SchemeError, match="not quantized yet; supported now"):
        run(Rounding(config_groups={"a": {"targets": ["Linear"], "weights": {"dynamic": True}}}, ignore=["lm_head"]))


def test_a_recipe_that_reads_data_needs_some():
    with pytest.raises(CalibrationError, match="Diary needs calibration data: pass dataset"):
        run(Diary(), data=[])


def test_a_recipe_that_reads_data_needs_a_pipeline_that_runs_some():
    with pytest.raises(CalibrationError, match="runs none; choose another"):
        run(Diary(), pipeline=find("pipelines", "data_free")())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = value

    with pytest.raises(NumericsError, match=r"model.layers.1.mlp.up_proj.weight"):
        run(rounding(), model=model)


def test_nothing_is_changed_by_a_run_that_does_not_begin(tmp_path):
    model = tiny_llama()
    before = weights_of(model)

    out = output(tmp_path)
    with pytest.raises(TargetError):
        run(rounding(), Diary(targets=["nowhere"]), model=model, output=out)

    assert changed(before, model) == []
    assert list(tmp_path.iterdir()) == []


# --- what stops it later


def test_a_claimed_layer_that_nobody_reached_is_an_error():
    with pytest.raises(TargetError, match=r"Idle: model.layers.0.self_attn.q_proj[\s\S]*claimed and left as it was"):
        run(Idle())


def test_a_claimed_layer_may_be_skipped_with_a_reason():
    state = run(Idle(excuse="not today"))

    assert state.report["lm_head"].reason == "not today"
    assert state.report["lm_head"].status == "untouched"


def test_a_claimed_layer_in_no_stage_is_an_error():
    class Half(Parts):
        def stages(self, state) -> Iterator[Stage]:
            yield from partition(state.model)[:-1]

    with pytest.raises(TargetError, match=r"lm_head\nin no stage of the pipeline Half"):
        run(rounding(ignore=[]), pipeline=Half())


@pytest.mark.parametrize("at", ["calibrate_batch", "finalize"])
def test_an_error_in_a_hook_is_told_with_its_place_and_leaves_no_hook_and_no_output(tmp_path, at):
    model = tiny_llama()
    before = trace_of(model)

    out = output(tmp_path)
    with pytest.raises(BrokenPluginError, match=rf"Clumsy.{at} at .*: RuntimeError: dropped it"):
        run(Clumsy(at=at), model=model, output=out)

    assert differences(before, trace_of(model)) == []
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_not_finite_names_layer_and_batch(tmp_path):
    model = tiny_llama()
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, args, x: x * float("inf"))

    out = output(tmp_path)
    with pytest.raises(NumericsError, match=r"down_proj.* in batch 0"):
        run(Diary(targets=["re:.*down_proj"]), model=model, output=out)

    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]  # the prologue was finished


def test_an_output_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")

    with pytest.raises(CheckpointError, match="out"):
        output(tmp_path)

    assert (tmp_path / "out/mine.txt").read_text() == "mine"


# --- what it leaves


def test_the_report_has_every_layer_and_a_reason_for_each_that_is_left():
    state = run(rounding(targets=["re:.*mlp"]))
    lines = state.report

    assert len(lines) == 2 * 7 + 2
    assert {name for name, line in lines.items() if line.status == "quantized"} == {
        f"model.layers.{i}.mlp.{part}" for i in (0, 1) for part in ("gate_proj", "up_proj", "down_proj")
    }
    assert all(line.reason for line in lines.values() if line.status == "untouched")
    assert lines["lm_head"].reason == "ignored by Rounding"
    assert lines["model.layers.0.self_attn.q_proj"].reason == "no target of the recipe matches it"


def test_a_layer_that_was_changed_without_the_state_is_reported_as_changed():
    state = run(Diary(targets=["lm_head"]))

    assert state.report["lm_head"].status == "changed"


def test_a_tied_head_that_is_quantized_gets_weights_of_its_own():
    model = tiny_llama(tied=True)
    embedding = model.model.embed_tokens.weight.detach().clone()

    state = run(rounding(ignore=[]), model=model)

    assert model.lm_head.weight is not model.model.embed_tokens.weight
    notes = state.report["lm_head"].notes
    assert (notes["untied_from"], notes["untied_bytes"]) == ("model.embed_tokens", 4 * embedding.numel())
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not torch.equal(model.lm_head.weight, embedding)
    assert model.config.tie_word_embeddings is False


def test_a_tied_head_that_is_ignored_stays_tied():
    model = tiny_llama(tied=True)

    state = run(rounding(), model=model)

    assert "untied_from" not in state.report["lm_head"].notes
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is True


def test_conv1d_is_quantized_along_its_inputs():
    plain, model = tiny_conv1d(), tiny_conv1d()

    run(rounding(targets=["transformer.h.0.mlp.c_fc"]), model=model)

    old = plain.transformer.h[0].mlp.c_fc.weight.detach()  # [I, O]
    new = model.transformer.h[0].mlp.c_fc.weight.detach()
    scale = old.abs().amax(0) / 127.5  # one for each output
    assert ((old - new).abs() <= scale / 2 + 1e-6).all()


def test_dropout_is_off_during_a_run_and_back_on_afterwards():
    model = tiny_llama().train()
    seen = []

    class Watch(Diary):
        @hookimpl
        def calibrate_batch(self, state, stage, batch):
            seen.append(state.model.training)

    run(Watch(targets=["lm_head"]), model=model)

    assert seen == [False, False]
    assert model.training


def test_quantized_inputs_are_simulated_on_the_model_that_is_left():
    model = tiny_llama()
    weights_only = tiny_llama()
    run(rounding(scheme="W8A8"), model=model)
    run(rounding(scheme="W8A16", group_size=-1), model=weights_only)

    data = batches(rows=2)

    assert changed(weights_of(model), weights_only) == []
    assert not torch.equal(logits(model, data), logits(weights_only, data))


def test_gradients_are_recorded_again_after_a_run():
    run(rounding())

    assert torch.is_grad_enabled()


def test_the_callers_random_numbers_go_on_as_if_nothing_had_run():
    model = tiny_llama()
    before = torch.get_rng_state()
    run(Diary(), model=model)

    assert torch.equal(torch.get_rng_state(), before)
