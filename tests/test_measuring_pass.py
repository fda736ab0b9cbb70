"""The measuring pass: the whole model stage by stage, one decision, then compression; streamed, and resumed in both."""

import json
from functools import partial
from typing import ClassVar

import pytest
import torch
from attrs import field, frozen

from coldpress import CheckpointError, oneshot, testing
from coldpress.checkpoint.output import Output
from coldpress.errors import BrokenPluginError, SchemeError
from coldpress.plugin import Decision, Modifier, Needs, Scheme, Stage, State, hookimpl, preset
from coldpress.registry import find
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer

OWL = {"sparsity": 0.5, "sparsity_profile": "owl", "owl_m": 3, "owl_lmbda": 0.1, "ignore": ["lm_head"]}
TEXT = {"dataset": ["some text to calibrate with", "and some more of it"], "num_calibration_samples": 2, "quiet": True}


@frozen(kw_only=True, eq=False)
class MixedBits(Modifier):
    """Give the layers whose weights are quantized worst another scheme.

    Attributes:
        count: how many layers.
        scheme: what they get.
    """

    count: int = 2
    scheme: str = "FP8_DYNAMIC"
    spoil: str = ""
    decided: list = field(factory=list)

    def needs(self) -> Needs:
        return Needs(measuring_pass=True)

    def measure(self, state: State, stage: Stage) -> dict[str, float]:
        if self.spoil == "weight":
            for layer in stage.every_layer:
                layer.weight.mul_(2)
        found = {}
        for layer in stage.every_layer:
            if state.scheme_of(layer) is not None:
                spread = layer.weight.abs().amax(1) / layer.weight.abs().mean(1)
                found[layer.name] = float(spread.mean())
        return {"unheard": {1}} if self.spoil == "json" else found

    def decide(self, state: State, measured: list[dict[str, float]]) -> Decision:
        spread = {name: one for stage in measured for name, one in stage.items()}
        self.decided.append(spread)
        worst = sorted(spread, key=spread.get)[-self.count :]
        if self.spoil == "name":
            worst = ["model.nowhere"]
        return Decision(value=worst, schemes={name: self._scheme() for name in worst})

    def _scheme(self) -> Scheme:
        return preset(self.scheme, group_size=48) if self.spoil == "scheme" else preset(self.scheme)


run = partial(testing.run, data=batches(rows=4, batch_size=2), pipeline="sequential")


def rounding(**settings):
    given = {"scheme": "W4A16", "group_size": 32, "ignore": ["lm_head"], **settings}
    return find("modifiers", "QuantizationModifier")(**given)


def save(path):
    tiny_llama().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def tensors(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "basic"])
def test_owl_gives_blocks_sparsities_whose_mean_is_asked_for(pipeline):
    state = run(find("modifiers", "WandaModifier")(**OWL), pipeline=pipeline)

    found = {line.notes["sparsity_asked"] for name, line in state.report.items() if "layers" in name}
    assert len(found) == 2
    assert sum(found) / 2 == pytest.approx(0.5, abs=1e-4)


def test_owl_decides_alike_in_every_pipeline():
    first, *others = (
        run(find("modifiers", "SparseGPTModifier")(**OWL), pipeline=name)
        for name in ("sequential", "layer_sequential", "basic")
    )

    for other in others:
        assert {name: line.notes for name, line in other.report.items() if "asked" in str(line.notes)}.keys()
        assert all(
            line.notes.get("sparsity_asked") == first.report[name].notes.get("sparsity_asked")
            for name, line in other.report.items()
        )


@pytest.mark.parametrize("stream", [True, False])
def test_owl_gives_the_same_bytes_streamed_and_resumed(tmp_path, stream):
    source, recipe = save(tmp_path / "model"), find("modifiers", "WandaModifier")(**OWL)
    oneshot(source, recipe, output_dir=tmp_path / "whole", stream_weights=False, **TEXT)

    with interrupted(2):
        oneshot(source, recipe, output_dir=tmp_path / "out", stream_weights=stream, **TEXT)
    oneshot(source, recipe, output_dir=tmp_path / "out", stream_weights=stream, **TEXT)

    assert tensors(tmp_path / "out") == tensors(tmp_path / "whole")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_run_that_is_interrupted_while_it_measures_goes_on_there(tmp_path, monkeypatch, stream, after):
    source, recipe = save(tmp_path / "model"), find("modifiers", "WandaModifier")(**OWL)
    oneshot(source, recipe, output_dir=tmp_path / "whole", stream_weights=stream, **TEXT)
    note, noted = Output.note, []

    def stop(self, record):
        if len(noted) == after:
            raise KeyboardInterrupt
        note(self, record)
        noted.append(record)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "note", stop)
        with pytest.raises(KeyboardInterrupt):
            oneshot(source, recipe, output_dir=tmp_path / "out", stream_weights=stream, **TEXT)
    again = []
    monkeypatch.setattr(Output, "note", lambda self, record: again.append(record) or note(self, record))
    oneshot(source, recipe, output_dir=tmp_path / "out", stream_weights=stream, **TEXT)

    assert tensors(tmp_path / "out") == tensors(tmp_path / "whole")
    assert len([record for record in again if "measured" in record]) == 4 - after
    assert len([record for record in again if "decided" in record]) == 1


def test_a_decision_changes_the_schemes_of_layers_that_another_modifier_quantizes(tmp_path):
    source, mixed = save(tmp_path / "model"), MixedBits()
    oneshot(source, [mixed, rounding()], output_dir=tmp_path / "out", **TEXT)

    (spread,) = mixed.decided
    worst = sorted(spread, key=spread.get)[-2:]
    groups = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["config_groups"].values()
    assert {(group["weights"]["type"], group["weights"]["num_bits"]) for group in groups} == {("int", 4), ("float", 8)}
    report = json.loads((tmp_path / "out/report.json").read_text())["layers"]
    assert {line["name"] for line in report if line["scheme"] and "float8" in line["scheme"]} == set(worst)


@pytest.mark.parametrize("pipeline", ["sequential", "basic", "independent", "data_free", None])
def test_it_works_in_every_pipeline(pipeline):
    state = run(MixedBits(), rounding(), pipeline=pipeline)

    assert sorted(scheme.weights.num_bits for scheme in state.schemes.values()) == [4] * 12 + [8] * 2


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        ("weight", BrokenPluginError, r"MixedBits.measure at prologue changed model.embed_tokens.weight"),
        ("json", BrokenPluginError, "MixedBits measures or decides something that JSON cannot hold"),
        ("name", BrokenPluginError, "MixedBits decides a scheme for 'model.nowhere', which no modifier"),
        ("scheme", SchemeError, "group_size 48|48"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compressed(spoil, error, message):
    model = tiny_llama()
    before = model.model.layers[1].mlp.up_proj.weight.clone()

    with pytest.raises(error, match=message):
        run(MixedBits(spoil=spoil, scheme="W4A16" if spoil == "scheme" else "FP8_DYNAMIC"), rounding(), model=model)

    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, before)


def test_a_modifier_that_needs_it_must_implement_it():
    class Half(Modifier):
        traits: ClassVar[frozenset[str]] = frozenset()

        def needs(self):
            return Needs(measuring_pass=True)

        @hookimpl
        def finalize(self, state, stage):
            pass

    with pytest.raises(BrokenPluginError, match=r"Half must implement measure\(state, stage\), as its needs\(\) say"):
        run(Half())


@pytest.mark.parametrize(
    ("stop", "what", "damage", "said"),
    [
        (2, "measured", lambda record: [{}], "what was measured of model.layers.0"),
        (2, "measured", lambda record: [], "what was measured of model.layers.0"),
        (None, "decided", lambda record: [{"value": 1}], "what was decided is damaged"),
        (None, "decided", lambda record: "nothing", "what was decided is damaged"),
    ],
)
def test_a_record_of_the_journal_that_was_changed_is_told_and_nothing_is_decided_from_it(
    tmp_path, monkeypatch, stop, what, damage, said
):
    source, recipe = save(tmp_path / "model"), find("modifiers", "WandaModifier")(**OWL)
    note, noted = Output.note, []

    def stopping(self, record):
        if len(noted) == stop:
            raise KeyboardInterrupt
        note(self, record)
        noted.append(record)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "note", stopping)
        if stop is None:
            with interrupted(1):
                oneshot(source, recipe, output_dir=tmp_path / "out", **TEXT)
        else:
            with pytest.raises(KeyboardInterrupt):
                oneshot(source, recipe, output_dir=tmp_path / "out", **TEXT)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    last = [line for line in lines if what in line][-1]
    last[what] = damage(last[what])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with pytest.raises(CheckpointError, match=rf"{said}( is damaged)?; pass restart=True"):
        oneshot(source, recipe, output_dir=tmp_path / "out", **TEXT)

    oneshot(source, recipe, output_dir=tmp_path / "out", restart=True, **TEXT)
