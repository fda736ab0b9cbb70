"""What a run keeps of its worst layers, and what it lets modifiers note."""

import json
from typing import ClassVar

import pytest
import torch
from attrs import frozen

from coldpress import model_free_ptq, oneshot
from coldpress.errors import BrokenPluginError
from coldpress.plugin import PRUNES, Modifier, Needs, Note, Stage, State, hookimpl
from coldpress.report.histogram import Histogram
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import batches, tiny_llama

STATIC = "QuantizationModifier: {scheme: FP8, ignore: [lm_head]}"
WEIGHTS = "QuantizationModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}"


def lines_of(folder):
    return {line["name"]: line for line in json.loads((folder / "report.json").read_text())["layers"]}


def kept(lines):
    return {name: line["histograms"] for name, line in lines.items() if "histograms" in line}


def test_the_five_layers_that_lose_most_have_their_weights_and_inputs(tmp_path):
    model = tiny_llama(hidden=64)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
        for name, module in model.named_modules()
        if name.endswith("proj")
    ]
    model(**batches(rows=2)[0])
    for hook in hooks:
        hook.remove()

    oneshot(model, STATIC, dataset=batches(rows=2)[:1], output_dir=str(tmp_path / "out"), quiet=True)

    lines = lines_of(tmp_path / "out")
    worst = sorted((name for name in lines if lines[name]["weight_error"]), key=lambda n: -lines[n]["weight_error"])
    assert kept(lines).keys() == set(worst[:5])
    for name, parts in kept(lines).items():
        assert parts["inputs"]["values"] == seen[name][0].numel()
        found = dict(parts["weights"])
        assert found.pop("largest_kept") == pytest.approx(parts["weights"]["largest"], rel=0.1)
        assert found == Histogram.of(weights[f"{name}.weight"]).to_dict()
    first = next((name for name in kept(lines) if ".layers.0." in name and "self_attn.o" not in name), None)
    if first is not None:
        assert kept(lines)[first]["inputs"] == Histogram.of(seen[first][0].flatten(0, -2)).to_dict()


def test_a_run_that_goes_on_keeps_those_of_one_that_was_not_interrupted(tmp_path):
    tiny_llama(hidden=64, layers=4).save_pretrained(tmp_path / "model")
    source = str(tmp_path / "model")
    oneshot(source, WEIGHTS, output_dir=str(tmp_path / "whole"), quiet=True, return_model=False)

    with interrupted(3):
        oneshot(source, WEIGHTS, output_dir=str(tmp_path / "out"), quiet=True, return_model=False)
    oneshot(source, WEIGHTS, output_dir=str(tmp_path / "out"), quiet=True, return_model=False)
    model_free_ptq(source, str(tmp_path / "free"), recipe=WEIGHTS, quiet=True)

    whole = kept(lines_of(tmp_path / "whole"))
    assert len(whole) == 5
    assert kept(lines_of(tmp_path / "out")) == whole
    assert kept(lines_of(tmp_path / "free")) == whole


@frozen(kw_only=True, eq=False)
class Halving(Modifier):
    """Makes weights half as large, and notes it under a key that it does not declare."""

    traits: ClassVar[frozenset[str]] = frozenset({PRUNES})

    def needs(self) -> Needs:
        return Needs()

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        for layer in self.layers(stage):
            state.set_weight(layer, layer.weight / 2)
            state.report[layer.name].notes["halves"] = 1


@frozen(kw_only=True, eq=False)
class DeclaredHalving(Halving):
    """The same, with the key declared."""

    notes: ClassVar[tuple[Note, ...]] = (Note("halves", "times", "that the weights were halved"),)


def test_a_note_that_is_not_declared_is_refused():
    with pytest.raises(BrokenPluginError, match=r"'halves' is not declared: add Note\(.*Halving"):
        oneshot(tiny_llama(), Halving(ignore=["lm_head"]), quiet=True)


def test_what_a_note_means_is_in_the_report(tmp_path):
    oneshot(tiny_llama(dtype=torch.bfloat16), DeclaredHalving(), output_dir=str(tmp_path / "out"), quiet=True)

    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["notes"] == [{"key": "halves", "unit": "times", "meaning": "that the weights were halved"}]
    assert {line["notes"].get("halves") for line in report["layers"]} == {None, 1}
