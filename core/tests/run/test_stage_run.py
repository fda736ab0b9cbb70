"""StageRun and the store: what is asked for is collected once, follows the signal, or is collected again."""

from contextlib import suppress
from typing import Any, ClassVar

import pytest
import torch
from attrs import field, frozen
from torch import Tensor, nn

from coldpress import testing
from coldpress.calibration.statistics import Absmax, Gram, GramValue
from coldpress.calibration.store import StatisticStore
from coldpress.calibration.tap import BatchInputs, InputTap, StopForward
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.experts import linearize_experts
from coldpress.plugin import (
    ROTATE,
    TRANSFORMS,
    Batch,
    Modifier,
    Needs,
    Pass,
    Pipeline,
    Stage,
    State,
    Statistic,
    hookimpl,
)
from coldpress.recipe import Recipe
from coldpress.run.job import Job
from coldpress.stage import find_layers
from coldpress.testing.mixtures import tiny_mixture
from coldpress.testing.models import batches, tiny_llama
from coldpress.testing.trace import differences, trace_of
from coldpress.testing.trial import Parts, inputs_of

READS_NORM = ["q_proj", "k_proj", "v_proj"]
LINEAR = ["Linear"]
BLOCK = [*READS_NORM, "o_proj", "gate_proj", "up_proj", "down_proj"]


@frozen(kw_only=True)
class CountingGram(Gram):
    """A Gram matrix that says when it is updated."""

    updates: ClassVar[list[int]] = []

    def update(self, value: GramValue | None, x: Tensor) -> GramValue:
        self.updates.append(x.shape[1])
        return Gram.update(self, value, x)


@frozen(kw_only=True)
class StubbornMax(Absmax):
    """A statistic that cannot follow anything."""

    supports: ClassVar[frozenset[str]] = frozenset()


@frozen(kw_only=True, eq=False)
class Reader(Modifier):
    """Reads a statistic of every layer, and remembers what it read."""

    ignore: list[str] = field(factory=lambda: ["lm_head"])
    statistic: Any = "gram"
    read: dict = field(factory=dict)
    groups: list = field(factory=list)

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.request(layer, self.statistic)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        layers = self.layers(stage)
        self.read.update({layer.name: state.statistic(layer, self.statistic) for layer in layers})
        self.groups.extend([layer.name for layer in group] for group in state.input_groups(layers))


@frozen(kw_only=True, eq=False)
class Smoother(Reader):
    """Divides the inputs of q, k and v by a scale, in the norm that makes them, and says so unless told not to."""

    traits: ClassVar[frozenset[str]] = frozenset({TRANSFORMS})

    targets: list[str] = field(factory=lambda: [f"re:.*{name}" for name in READS_NORM])
    statistic: Any = "absmax"
    says: bool = True
    rotates: bool = False

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for group in state.input_groups(self.layers(stage)):
            scale = state.require(group[0], self.statistic).sqrt()  # [I]
            stage.modules[group[0].name.rsplit(".", 2)[0] + ".input_layernorm"].weight.div_(scale)
            for layer in group:
                layer.weight.mul_(scale)
            if self.says and self.rotates:
                state.rotate_inputs(group, torch.diag(1 / scale))
            elif self.says:
                state.rescale_inputs(group, scale)


@frozen(kw_only=True, eq=False)
class Watcher(Modifier):
    """Looks at batches itself, and keeps their largest number."""

    ignore: list[str] = field(factory=lambda: ["lm_head"])
    seen: dict = field(factory=dict)
    names: set = field(factory=set)

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            self.seen[layer.name] = []

    @hookimpl
    def calibrate_batch(self, state: State, stage: Stage, batch: Batch) -> None:
        self.names.update(batch.inputs)
        for layer in self.layers(stage):
            self.seen[layer.name].append(batch.inputs[layer.name].abs().amax(0))


@frozen(kw_only=True, eq=False)
class CountedParts(Parts):
    """Remembers which stages were swept."""

    sweeps: list = field(factory=list)

    def sweep(self, state: State, stage: Stage):
        self.sweeps.append(stage.name)
        yield from Parts.sweep(self, state, stage)


def run(*modifiers: Modifier, model: nn.Module | None = None, data=None, pipeline: Pipeline | None = None):
    pipeline = CountedParts() if pipeline is None else pipeline
    return testing.run(*modifiers, model=model, data=data, pipeline=pipeline), pipeline


def oracle(name: str, model: nn.Module, data=None) -> Tensor:
    x = inputs_of(model, batches(batch_size=4) if data is None else data)[name].double()
    return (x.t() @ x).float()


def blocks(sweeps: list[str]) -> list[str]:
    return [name for name in sweeps if "layers" in name]


def test_two_modifiers_that_ask_share_one_sweep_and_one_update_of_each_distinct_input():
    CountingGram.updates.clear()
    first, second = Reader(statistic=CountingGram(chunk=1)), Reader(statistic=CountingGram(chunk=1))

    _, pipeline = run(Smoother(), first, second)

    assert blocks(pipeline.sweeps) == ["model.layers.0", "model.layers.1"]
    assert len(CountingGram.updates) == 2 * 2 * 4  # blocks, batches, and q k v | o | gate up | down
    assert first.read["model.layers.0.self_attn.q_proj"] is second.read["model.layers.0.self_attn.k_proj"]


def test_layers_that_share_an_input_share_the_value():
    reader = Reader()
    run(reader)

    prefix = "model.layers.0."
    inside = [[name.rsplit(".")[-1] for name in group] for group in reader.groups if group[0].startswith(prefix)]
    assert inside == [READS_NORM, ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert reader.read[f"{prefix}mlp.gate_proj"] is reader.read[f"{prefix}mlp.up_proj"]
    assert reader.read[f"{prefix}mlp.gate_proj"] is not reader.read[f"{prefix}mlp.down_proj"]


def test_a_statistic_is_that_of_a_plain_forward():
    reader, model = Reader(), tiny_llama()
    run(reader, model=model)

    for name, value in reader.read.items():
        torch.testing.assert_close(value.total, oracle(name, model), rtol=1e-4, atol=1e-3)
        assert value.count == 8 * 16


def test_padding_changes_nothing():
    padded, plain = Reader(), Reader()
    short = batches(batch_size=1, length=12)
    long = [{name: nn.functional.pad(x, (0, 5)) for name, x in batch.items()} for batch in short]

    run(plain, data=short)
    run(padded, data=long)

    for name, value in plain.read.items():
        assert value.count == padded.read[name].count
        torch.testing.assert_close(value.total, padded.read[name].total, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rotates", [False, True])
def test_a_statistic_follows_a_signal_that_moves(rotates):
    reader, model = Reader(), tiny_llama()

    _, pipeline = run(Smoother(rotates=rotates), reader, model=model)

    assert blocks(pipeline.sweeps) == ["model.layers.0", "model.layers.1"]
    for name, value in reader.read.items():
        torch.testing.assert_close(value.total, oracle(name, model), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("smoother", "statistic"),
    [(Smoother(), StubbornMax()), (Smoother(rotates=True), "absmax"), (Smoother(says=False), "absmax")],
    ids=["cannot rescale", "cannot rotate", "nobody says how"],
)
def test_what_cannot_follow_is_collected_again(smoother, statistic):
    reader, model = Reader(statistic=statistic), tiny_llama()

    _, pipeline = run(smoother, reader, model=model)

    assert blocks(pipeline.sweeps) == ["model.layers.0"] * 2 + ["model.layers.1"] * 2
    inputs = inputs_of(model, batches(batch_size=4))
    for name, value in reader.read.items():
        torch.testing.assert_close(value, inputs[name].abs().amax(0), rtol=1e-4, atol=1e-4)


def test_what_nobody_reads_any_more_is_not_collected_again():
    _, pipeline = run(Reader(statistic=StubbornMax()), Smoother(), Reader(targets=["re:.*down_proj"], ignore=[]))

    assert blocks(pipeline.sweeps) == ["model.layers.0", "model.layers.1"]


def test_who_looks_at_batches_begins_anew_when_the_signal_moved():
    watcher, model = Watcher(), tiny_llama()

    _, pipeline = run(Smoother(), watcher, model=model)

    assert blocks(pipeline.sweeps) == ["model.layers.0"] * 2 + ["model.layers.1"] * 2
    inputs = inputs_of(model, batches(batch_size=4))
    for name, seen in watcher.seen.items():
        assert len(seen) == 2
        torch.testing.assert_close(torch.stack(seen).amax(0), inputs[name].abs().amax(0), rtol=1e-4, atol=1e-4)


def test_inputs_are_handed_only_to_who_looks_and_only_those_it_claims():
    watcher = Watcher(targets=["re:.*down_proj"], ignore=[])

    run(Reader(), watcher)

    assert {name.rsplit(".")[-1] for name in watcher.names} == {"down_proj"}


def test_nothing_is_run_where_nobody_asks():
    _, pipeline = run(Reader(targets=["re:.*layers.1.*down_proj"]))

    assert pipeline.sweeps == ["model.layers.1"]


def test_a_pipeline_that_cannot_run_a_stage_twice_is_named():
    class Once(CountedParts):
        def sweep(self, state, stage):
            if stage.name not in self.sweeps:
                yield from CountedParts.sweep(self, state, stage)

    with pytest.raises(CalibrationError, match="Reader needs statistics of model.layers.0 .* the pipeline Once cannot"):
        run(Smoother(says=False), Reader(), pipeline=Once())


def test_who_asks_must_say_that_it_needs_data():
    class Liar(Reader):
        def needs(self):
            return Needs()

    with pytest.raises(BrokenPluginError, match=r"Liar requests statistics: its needs\(\) must say data=True"):
        run(Liar())


def test_an_embedding_has_no_statistics():
    with pytest.raises(CalibrationError, match=r"model.embed_tokens is called with token ids"):
        run(Reader(targets=["Embedding"]))


def test_a_statistic_that_nobody_asked_for_is_a_mistake_of_the_modifier():
    class Forgetful(Reader):
        @hookimpl
        def finalize(self, state, stage):
            for layer in self.layers(stage):
                state.statistic(layer, "mean")

    with pytest.raises(BrokenPluginError, match="'mean' of model.layers.0.self_attn.q_proj was not requested"):
        run(Forgetful())


def test_an_error_in_a_hook_leaves_no_hook_on_the_model_and_no_statistic():
    class Clumsy(Reader):
        @hookimpl
        def calibrate_batch(self, state, stage, batch):
            raise ZeroDivisionError

    model = tiny_llama()
    before, state = trace_of(model), State(model=model, batches=batches())

    with pytest.raises(BrokenPluginError, match=r"Clumsy.calibrate_batch at model.layers.0: ZeroDivisionError"):
        Job(recipe=Recipe([Clumsy()]), state=state, pipeline=Parts()).run()

    assert differences(before, trace_of(model)) == []
    assert state.statistics.begin([]) == []


# --- the statistics store alone


class Two(nn.Module):
    """Two layers that read the same tensor, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


class Comparer(Reader):
    """Says that it compares."""

    def needs(self):
        return Needs(data=True, original_inputs=True)


def store_of(model: nn.Module, which="gram", modifier=None):
    store, layers = StatisticStore(), list(find_layers(model.named_modules()))
    modifier = modifier or Comparer()
    with store.requesting(modifier):
        for layer in layers:
            store.request(layer, which)
    store.begin([modifier])
    return store, layers


def see(store: StatisticStore, model: Two, layers, a: Tensor | None, b: Tensor | None) -> None:
    with torch.no_grad(), InputTap(layers) as tap:
        for layer, x in ((model.a, a), (model.b, b)):
            if x is not None:
                layer(x)
        seen_inputs = tap.collect(0, {})
    store.see(seen_inputs)


def tokens(seed: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))


class Differences(Statistic):
    """The sum of what inputs differ by from those of the original."""

    needs_original_inputs = True

    def update_with_original(self, value, x, original):
        return (0 if value is None else value) + (original - x).sum(0)


def test_inputs_are_compared_with_those_of_the_original_call_by_call():
    model = Two()
    store, (a, b) = store_of(model, Differences())
    one, two, three = tokens(1), tokens(2), tokens(3)
    calls, seen = {a.name: (0, 1), b.name: (0, 1)}, {0: one, 1: two}

    store.see(BatchInputs(0, calls, seen), {a.name: [two, three], b.name: [two, three]})
    store.see(BatchInputs(1, calls, seen))  # as nothing is compressed yet
    store.finish()

    torch.testing.assert_close(store.value(a, Differences()), (two - one + three - two).sum(0))
    assert store.value(b, Differences()) is store.value(a, Differences())


def test_who_compares_must_say_so():
    with pytest.raises(BrokenPluginError, match=r"Reader requests Differences\(\).*must say original_inputs=True"):
        store_of(Two(), Differences(), Reader())


@pytest.mark.parametrize("originals", [{}, {"a": []}, {"a": [torch.ones(4, 4)]}])
def test_layers_that_see_other_tokens_in_the_original_cannot_be_compared(originals):
    store, (a, _) = store_of(Two(), Differences())

    with pytest.raises(CalibrationError, match="a sees other tokens than in the original model"):
        store.see(BatchInputs(0, {a.name: (0,)}, {0: tokens(1)}), originals)


def test_layers_that_part_go_on_from_what_they_had_in_common():
    model = Two()
    store, layers = store_of(model)
    one, two, three = tokens(1), tokens(2), tokens(3)

    see(store, model, layers, one, one)
    together = [len(group) for group in store.input_groups(layers)]
    see(store, model, layers, two, three)
    see(store, model, layers, one, one)
    store.finish()
    a, b = (store.value(layer, "gram") for layer in layers)

    assert together == [2]
    assert [len(group) for group in store.input_groups(layers)] == [1, 1]
    for value, parts in ((a, (one, two, one)), (b, (one, three, one))):
        whole = torch.cat(parts)
        torch.testing.assert_close(value.total, whole.t() @ whole)


def test_a_layer_that_a_batch_leaves_out_parts_from_the_others():
    model = Two()
    store, layers = store_of(model)

    see(store, model, layers, tokens(1), None)
    one = tokens(2)
    see(store, model, layers, one, one)
    store.finish()

    assert [store.value(layer, "gram").count for layer in layers] == [10, 5]


def test_a_layer_that_no_token_reached_has_no_statistic():
    model = Two()
    store, layers = store_of(model)

    see(store, model, layers, tokens(1), None)
    store.finish()
    state = State(model=model, statistics=store)

    assert state.statistic(layers[1], "gram") is None
    assert [len(group) for group in state.input_groups(layers)] == [1, 1]
    with pytest.raises(CalibrationError, match="no token of the calibration data reached b"):
        state.require(layers[1], "gram")


def test_only_the_layers_that_are_named_move():
    model = Two()
    store, layers = store_of(model)
    one, scale = tokens(1), torch.tensor([1.0, 2.0, 4.0, 8.0])
    see(store, model, layers, one, one)
    store.finish()

    store.rescale(layers[:1], scale)
    a, b = (store.value(layer, "gram") for layer in layers)

    torch.testing.assert_close(a.total, b.total / scale[:, None] / scale)
    torch.testing.assert_close(b.total, one.t() @ one)


def test_a_lost_statistic_cannot_be_read():
    model = Two()
    store, layers = store_of(model, "absmax")
    assert ROTATE not in Absmax().supports
    one = tokens(1)
    see(store, model, layers, one, one)

    store.rotate(layers[:1], torch.eye(4))

    with pytest.raises(LookupError, match="'absmax' of a cannot follow a signal that moved"):
        store.value(layers[0], "absmax")
    assert torch.equal(store.value(layers[1], "absmax"), one.abs().amax(0))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(3), "inputs of width 4"),
        (torch.zeros(4), "finite and nowhere zero"),
        (torch.full((4,), float("nan")), "finite and nowhere zero"),
    ],
)
def test_a_scale_that_makes_no_sense_is_refused(scale, message):
    store, layers = store_of(Two())

    with pytest.raises(ValueError, match=message):
        store.rescale(layers, scale)


@frozen(kw_only=True, eq=False)
class Halves(Pipeline):
    """Divides a stage of several modules into two parts, and says what it is asked to sweep."""

    asked: list = field(factory=list)

    def stages(self, state):
        yield Stage.whole(state.model)

    def parts(self, state, stage):
        modules = list(stage.modules.items())
        for some in (modules[:9], modules[9:]):
            yield Stage(stage.name, stage.index, dict(some))

    def sweep(self, state, stage):
        self.asked.append(len(stage.modules))
        for index, batch in enumerate(state.batches):
            with suppress(StopForward):
                state.model(**batch)
            yield Pass(index)


@pytest.mark.parametrize(("modifiers", "parts"), [([Reader()], 2), ([Smoother(), Reader()], 1)])
def test_a_stage_is_divided_where_no_signal_moves_between_its_parts(modifiers, parts):
    pipeline = Halves()
    Job(recipe=Recipe(modifiers), state=State(model=tiny_llama(), batches=batches()), pipeline=pipeline).run()

    assert len(set(pipeline.asked)) == parts


def test_a_stage_with_experts_is_not_divided():
    pipeline, model = Halves(), tiny_mixture("mixtral")
    linearize_experts(model)
    Job(recipe=Recipe([Reader()]), state=State(model=model, batches=batches()), pipeline=pipeline).run()

    assert len(set(pipeline.asked)) == 1
