"""The pipelines that go block by block: layers see what a plain forward brings them, and nothing is left behind."""

import json

import greenlet
import pytest
import torch
from attrs import evolve
from loose import SEEN, Block, Halver, Loose, Watcher, some, stages, straight, twice, untouched, vectors, watch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from coldpress import CalibrationError, read_recipe
from coldpress.plugin import State
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.testing.models import batches, tiny_llama
from coldpress_pipelines import Basic, LayerSequential, Sequential

BLOCKWISE = pytest.mark.parametrize("pipeline", [Sequential, LayerSequential])


@BLOCKWISE
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3", "mixtral", "opt", "gpt_neox"])
def test_every_layer_sees_what_a_plain_forward_brings_it(kind, pipeline):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 259, "n_embd": 32, "n_layer": 3, "n_head": 4}
    small |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0, "num_local_experts": 4}
    fields = AutoConfig.for_model(kind).to_dict()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{k: v for k, v in small.items() if k in fields})
    model = AutoModelForCausalLM.from_config(config).eval()
    data = batches()

    plain, _ = watch(model, data, Basic())
    suspended, state = watch(model, data, pipeline())

    assert plain.keys() == suspended.keys()
    assert all(torch.equal(plain[key], suspended[key]) for key in plain)
    assert len(stages(state)) == 5
    assert untouched(model)


@BLOCKWISE
def test_later_blocks_see_what_compressed_ones_put_out(pipeline):
    model = Loose(straight)
    seen, _ = watch(model, vectors(), pipeline(), halves=True)

    with torch.no_grad():  # the weights are halved now, as they were when the batches were pushed on
        x = model.blocks[0](vectors()[0]["x"])

    torch.testing.assert_close(seen["blocks.1.first", 0], x[0])


@BLOCKWISE
def test_without_propagation_later_blocks_see_the_outputs_of_the_original(pipeline):
    model = Loose(straight)
    plain, _ = watch(model, vectors(), Basic())
    seen, _ = watch(model, vectors(), pipeline(propagate_error=False), halves=True)

    assert all(torch.equal(plain[key], seen[key]) for key in plain if not key[0].endswith(("second", "head")))


@BLOCKWISE
@pytest.mark.parametrize("told", [True, False])
def test_where_nobody_follows_errors_a_block_runs_once_and_later_ones_see_the_original(pipeline, told):
    model, original = Loose(straight), Loose(straight)
    original.load_state_dict(model.state_dict())
    plain, _ = watch(original, vectors(4), Basic())
    how = pipeline(propagate_error=False) if told else pipeline()
    how = evolve(how, true_sequential=False) if pipeline is Sequential else how
    seen, _ = watch(model, vectors(4), how, halves=True, follows=told)

    assert plain.keys() == seen.keys()
    assert all(torch.equal(plain[key], seen[key]) for key in plain)
    assert [block.runs for block in model.blocks] == [4, 4, 4]


def test_who_asks_for_true_sequential_has_it_also_where_nobody_follows_errors():
    model = Loose(straight)
    seen, _ = watch(model, vectors(), Sequential(true_sequential=True), halves=True, follows=False)

    with torch.no_grad():  # the weights are halved now, as they were when the batches were led on
        x = torch.relu(model.blocks[0].first(vectors()[0]["x"]))

    torch.testing.assert_close(seen["blocks.0.second", 0], x[0])


@BLOCKWISE
def test_the_original_is_seen_also_behind_blocks_that_nobody_looks_at(pipeline):
    model = Loose(straight)
    plain, _ = watch(model, vectors(), Basic())
    state = State(model=model, batches=vectors())
    modifiers = Halver(targets=["re:blocks.[01]"]), Watcher(targets=["re:blocks.2"], follows=False)
    Job(recipe=Recipe(modifiers), state=state, pipeline=pipeline()).run()
    seen = {entry[SEEN]: entry["input"] for entry in state.log if SEEN in entry}

    assert torch.equal(seen["blocks.2.first", 0], plain["blocks.2.first", 0])


def test_a_block_that_runs_twice_is_compressed_at_its_first_visit():
    seen, state = watch(Loose(twice), vectors(), Sequential())

    assert stages(state) == ["prologue", "blocks.0", "blocks.1", "blocks.2", "epilogue"]
    assert ("head", 3) in seen


def test_a_block_that_some_batches_skip_sees_the_others():
    data = vectors(8)
    seen, _ = watch(Loose(some), data, Sequential())
    going = [index for index, batch in enumerate(data) if batch["x"].sum() > 0]

    assert 0 < len(going) < 8
    assert [index for index in range(8) if ("blocks.1.first", index) in seen] == going
    assert all(("blocks.2.first", index) in seen for index in range(8))


@BLOCKWISE
def test_what_nobody_observes_is_not_run(pipeline):
    model = Loose(straight)
    watch(model, vectors(), pipeline(), targets=["blocks.0.first"])

    assert [block.runs for block in model.blocks] == [4 + (pipeline is Sequential), 0, 0]  # once to see what is shared


def test_a_model_without_blocks_is_one_stage():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    seen, state = watch(model, [{"input": torch.ones(2, 8)}], Sequential(), targets=["0"])

    assert stages(state) == ["model"]
    assert set(seen) == {("0", 0)}


def test_an_exception_unwinds_every_suspended_forward():
    left = []

    def path(blocks: list[nn.Module], x: Tensor) -> Tensor:
        try:
            x = blocks[0](x)
            if x.shape[1] == 3:
                raise ValueError("three is too few")
            return straight(blocks[1:], x)
        finally:
            left.append(x.shape[1])

    model = Loose(path)
    data = [*vectors(3), {"x": torch.ones(1, 3, 8)}]

    with pytest.raises(CalibrationError, match="batch 3.*three is too few"):
        watch(model, data, Sequential())

    assert sorted(left) == [3, 5, 5, 5]
    assert untouched(model)
    assert greenlet.getcurrent().parent is None


def test_blocks_that_no_batch_runs_are_named():
    with pytest.raises(CalibrationError, match=r"blocks\.1"):
        watch(Loose(lambda blocks, x: blocks[0](x)), vectors(), Sequential())


class Two(nn.Module):
    """Two lists of blocks, and between them modules with layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(Block() for _ in range(2))
        self.bridge = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.planks = nn.ModuleList([nn.Linear(8, 8)])
        self.right = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return straight(list(self.right), self.planks[0](self.bridge(straight(list(self.left), x))))


def test_layers_between_two_lists_of_blocks_may_be_ignored():
    _, state = watch(Two(), vectors(), Sequential(), ignore=["re:(bridge|planks)"])

    assert stages(state) == ["prologue", "left.0", "left.1", "right.0", "right.1", "after left.1"]


@BLOCKWISE
@pytest.mark.parametrize("ignore", [[], ["re:(bridge|planks)"]])
def test_layers_see_what_modules_between_two_lists_of_blocks_make_of_it(pipeline, ignore):
    model = Two()
    expected, _ = watch(model, vectors(), Basic(), ignore=ignore)
    found, state = watch(model, vectors(), pipeline(), ignore=ignore)

    between = [] if ignore and pipeline is Sequential else ["bridge", "planks.0"]
    assert stages(state) == ["prologue", "left.0", "left.1", *between, "right.0", "right.1", "after left.1"]
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


@BLOCKWISE
def test_the_blocks_may_be_named(pipeline):
    for targets in ("LlamaDecoderLayer", ["re:model.layers.\\d+$"], ["model.layers.0", "model.layers.1"]):
        _, state = watch(tiny_llama(), batches(), pipeline(sequential_targets=targets), targets=["re:.*down_proj"])

        assert {"model.layers.0", "model.layers.1"} <= set(stages(state))


@BLOCKWISE
@pytest.mark.parametrize("targets", ["Linear", ["LlamaAttention", "LlamaMLP"], ["re:.*q_proj"]])
def test_targets_below_blocks_are_taken_as_their_blocks_with_one_warning(pipeline, targets, caplog):
    found, state = watch(tiny_llama(), batches(), pipeline(sequential_targets=targets))
    expected, _ = watch(tiny_llama(), batches(), pipeline())

    assert stages(state) == ["prologue", "model.layers.0", "model.layers.1", "epilogue"]
    assert len(found) == len(expected)
    assert caplog.text.count("lies inside of the block model.layers.0: whole blocks are compressed") == 1


def doubled(blocks, x):
    return straight(blocks[1:], 2 * blocks[0](x))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (twice, "runs twice"),
        (some, "in another order"),
        (doubled, r"blocks\.1 is not called with what blocks\.0 returns"),
    ],
)
def test_layer_sequential_refuses_what_it_cannot_feed(path, why):
    with pytest.raises(CalibrationError, match=f"{why}.*use the pipeline sequential"):
        watch(Loose(path), vectors(8), LayerSequential())


class Forking(nn.Module):
    """A block with a way for two layers that read the same input, and a way of its own for some batches."""

    def __init__(self, way="both") -> None:
        super().__init__()
        self.left, self.right, self.out = (nn.Linear(8, 8) for _ in range(3))
        self.way = way
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        y = torch.tanh(x)
        if self.way == "twice":
            return x + self.out(self.left(y)) + self.out(self.right(y))
        z = y + 1 if self.way == "odd" and self.runs > 2 else y
        left = self.left(y) if self.way != "unused" else y
        if self.way == "changes" or (self.way == "changes later" and self.runs > 2):
            y.mul_(2)
        return x + self.out(left * self.right(z))


def forking(way="both"):
    torch.manual_seed(1)
    model = Loose(straight)
    model.blocks = nn.ModuleList(Forking(way) for _ in range(3))
    return model


def test_a_layer_sees_what_compressed_ones_before_it_in_its_block_put_out():
    model = forking()
    seen, _ = watch(model, vectors(), Sequential(), halves=True)
    x = vectors()[2]["x"]

    with torch.no_grad():  # every weight is halved now
        for index, block in enumerate(model.blocks):
            y = torch.tanh(x)
            torch.testing.assert_close(seen[f"blocks.{index}.left", 2], y[0])
            torch.testing.assert_close(seen[f"blocks.{index}.right", 2], y[0])
            torch.testing.assert_close(seen[f"blocks.{index}.out", 2], (block.left(y) * block.right(y))[0])
            x = block(x)
    assert untouched(model)


def test_every_batch_runs_through_a_block_once():
    model = forking()
    watch(model, vectors(), Sequential())

    assert [block.runs for block in model.blocks] == [5, 4, 4]  # blocks of a kind are looked at once


def test_as_a_whole_a_block_is_compressed_when_told_so():
    found = [
        watch(forking(), vectors(), Sequential(true_sequential=False, **more), halves=True)[0] for more in ({}, {})
    ]
    plain, _ = watch(forking(), vectors(), Basic())

    assert all(torch.equal(found[0][key], found[1][key]) for key in plain)
    assert torch.equal(found[0]["blocks.0.out", 0], plain["blocks.0.out", 0])


def test_a_layer_that_runs_twice_in_a_block_makes_it_a_whole():
    plain, _ = watch(forking("twice"), vectors(), Basic())
    seen, _ = watch(forking("twice"), vectors(), Sequential())

    assert plain.keys() == seen.keys()
    assert all(torch.equal(plain[key], seen[key]) for key in plain)
    assert len(seen["blocks.0.out", 0]) == 10


def test_a_layer_that_no_batch_calls_is_finished_without_having_seen_one():
    model = forking("unused")
    seen, _ = watch(model, vectors(), Sequential(), halves=True)

    assert not any("left" in name for name, _ in seen)
    torch.testing.assert_close(model.blocks[1].left.weight, forking("unused").blocks[1].left.weight / 2)


def test_a_batch_that_gives_layers_another_input_than_the_first_one_is_refused():
    model = forking("odd")

    with pytest.raises(CalibrationError, match=r"blocks\.0\.right is called with another input"):
        watch(model, vectors(), Sequential())

    assert untouched(model)


@pytest.mark.parametrize("way", ["changes", "changes later"])
def test_an_input_that_changes_in_place_between_the_layers_that_read_it_is_refused(way):
    model = forking(way)

    with pytest.raises(CalibrationError, match=r"in place|called with another input"):
        watch(model, vectors(), Sequential())

    assert untouched(model)


def test_a_part_that_nobody_asks_about_is_compressed_and_passed():
    """One scheme needs to see inputs and one does not; both are of one modifier."""
    groups = {
        "static": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}},
        "free": {"targets": ["re:.*[qkv]_proj"], "weights": {"num_bits": 4, "group_size": 32}},
    }
    recipe = {"modifiers": [{"QuantizationModifier": {"config_groups": groups, "ignore": ["lm_head"]}}]}
    states = [State(model=tiny_llama(), batches=batches()) for _ in range(2)]
    for state, whole in zip(states, (False, True), strict=True):
        pipeline = Sequential(true_sequential=not whole)
        Job(recipe=read_recipe(json.dumps(recipe)), state=state, pipeline=pipeline).run()

    assert {line.status for line in states[0].report.values()} == {"quantized", "untouched"}
    assert [line.status for line in states[0].report.values()] == [line.status for line in states[1].report.values()]


def test_hooks_of_a_layer_run_once_a_batch():
    model, calls = forking(), []
    model.blocks[1].out.register_forward_hook(lambda *_: calls.append(1))
    model.blocks[1].out.register_forward_pre_hook(lambda *_: calls.append(-1))
    watch(model, vectors(), Sequential(), targets=["re:blocks"])

    assert calls.count(1) == 4
    assert calls.count(-1) == 8  # shown, and run


def test_many_activations_are_not_held_inside_of_a_block_unless_told_so(monkeypatch):
    monkeypatch.setattr("coldpress_pipelines.pipelines.sequential._SMALL", 4 * 5 * 8 * 4 - 1)  # batches, tokens, width
    large, told = forking(), forking()
    watch(large, vectors(), Sequential())
    watch(told, vectors(), Sequential(true_sequential=True))

    assert [block.runs for block in large.blocks] == [8, 8, 8]
    assert [block.runs for block in told.blocks] == [5, 4, 4]
