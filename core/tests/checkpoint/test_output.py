"""Output: stages become tensors of a format, once each, are recalled with all that was said of them, and completed."""

import json
from contextlib import contextmanager

import pytest
import torch
from attrs import frozen

from coldpress.checkpoint import CheckpointReader, CheckpointWriter
from coldpress.checkpoint.output import Output
from coldpress.errors import BrokenPluginError, CheckpointError, SchemeError
from coldpress.plugin import Format, Modifier, State, hookimpl
from coldpress.quantized import set_encoding
from coldpress.schemes import Scheme, preset
from coldpress.stage import Stage, find_layers
from coldpress.testing import run
from coldpress.testing.models import tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress.testing.rounding import Rounding, rounded_weight

UP = "model.layers.0.mlp.up_proj"
SCHEME = preset("W8A16", group_size=-1)


@frozen(kw_only=True)
class Plain(Format):
    """Codes and scales as they are."""

    def check(self, scheme, name, shape):
        if scheme.weights.num_bits != 8:
            raise SchemeError(f"{name}: eight bits only")

    def tensors(self, quantized):
        return {"codes": quantized.codes, "scale": quantized.scale, "zero_point": quantized.zero_point}

    def config(self, schemes, ignore):
        return {
            "quant_method": "plain",
            "layers": {name: one.to_dict() for name, one in schemes.items()},
            "no": list(ignore),
        }

    def read(self, config):
        return lambda name, classes: Scheme.from_dict(config["layers"][name]) if name in config["layers"] else None

    def restore(self, tensors, scheme):
        from coldpress.plugin import Quantized

        return Quantized(scheme, **{name: tensors[name] for name in ("codes", "scale", "zero_point")})


@frozen(kw_only=True)
class PublishesNothing(Plain):
    """Forgets its tensors."""

    def publish(self, parts, folder, state):
        """Nothing."""


def rounding(**settings):
    return Rounding(**{"scheme": "W8A16", "group_size": -1, "targets": [UP], **settings})


def output(folder, form=None):
    return Output(CheckpointWriter(folder), form or Plain())


@contextmanager
def writing(folder, model=None):
    """An output that is being written, and the state of a model with one rounded layer."""
    state = State(model=model or tiny_llama(), batches=[])
    (layer,) = find_layers([(UP, state.model.get_submodule(UP))])
    state.quantized[UP] = rounded_weight(layer.weight, SCHEME)
    state.schemes[UP] = SCHEME
    with output(folder) as out:
        out.prepare(state, state.schemes)
        out.begin({})
        yield out, state


def names(folder):
    return set(CheckpointReader(folder).names())


def test_a_quantized_layer_is_written_as_its_format_says_and_the_rest_as_it_is(tmp_path):
    state = run(rounding(), output=output(tmp_path / "out"), tokenizer=tiny_tokenizer())

    weights = {name for name, _ in tiny_llama().named_parameters()}
    expected = weights - {f"{UP}.weight"} | {f"{UP}.{part}" for part in ("codes", "scale", "zero_point")}
    assert names(tmp_path / "out") == expected
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert list(config["layers"]) == [UP]
    assert "lm_head" in config["no"]
    assert UP not in config["no"]
    reader = CheckpointReader(tmp_path / "out")
    decoded = reader.read(f"{UP}.codes") * reader.read(f"{UP}.scale")
    torch.testing.assert_close(decoded, state.model.get_submodule(UP).weight)


@pytest.mark.parametrize("make", [lambda: tiny_llama(tied=True), tiny_conv1d])
def test_a_tensor_that_two_modules_share_is_written_once(tmp_path, make):
    run(model=make(), output=output(tmp_path / "out"), tokenizer=tiny_tokenizer())

    assert not {name for name in names(tmp_path / "out") if "lm_head" in name}


def test_what_no_stage_held_is_written_in_the_end(tmp_path):
    with writing(tmp_path / "out") as (out, state):
        block = Stage("block", 0, {n: m for n, m in state.model.named_modules() if n.startswith("model.layers.0")})
        out.write(block, state)

        rest = out.rest(state)

        assert "model.layers.0.mlp.up_proj" not in rest.modules
        assert {"lm_head", "model.norm", "model.layers.1.mlp.up_proj", "model.embed_tokens"} <= rest.modules.keys()
        out.write(rest, state)
        assert not out.rest(state).modules


def test_the_files_of_a_run_lie_beside_its_weights(tmp_path):
    run(rounding(), output=output(tmp_path / "out"), tokenizer=tiny_tokenizer())

    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "manifest.json", "recipe.yaml", "report.json"} <= found
    assert {"tokenizer.json", "tokenizer_config.json"} <= found
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["files"].keys() == found - {"manifest.json"}


def test_what_a_format_cannot_write_is_refused_before_anything_is_there(tmp_path):
    with pytest.raises(SchemeError, match="eight bits only"):
        run(rounding(scheme="W4A16"), output=output(tmp_path / "out"))

    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_was_changed_after_it_was_quantized_is_refused_by_name(tmp_path):
    with writing(tmp_path / "out") as (out, state):
        (layer,) = find_layers([(UP, state.model.get_submodule(UP))])
        quantized = state.quantized.pop(UP)
        layer.weight.data.copy_(quantized.weight(layer.weight.dtype))
        set_encoding(layer.module, quantized, layer.weight)
        layer.weight.data.mul_(1.01)

        with pytest.raises(CheckpointError, match=rf"{UP}.weight was changed after it was quantized \(int8 channel\)"):
            out.write(Stage.whole(state.model), state)


def test_codes_that_were_let_go_of_are_found_again_from_the_weight(tmp_path):
    with writing(tmp_path / "out") as (out, state):
        (layer,) = find_layers([(UP, state.model.get_submodule(UP))])
        quantized = state.quantized.pop(UP)
        layer.weight.data.copy_(quantized.weight(layer.weight.dtype))
        set_encoding(layer.module, quantized, layer.weight)

        out.write(Stage.whole(state.model), state)
        out.note({"stage": "model"})

        written = dict(out.weights({UP: layer.module}, state))
        assert torch.equal(written[f"{UP}.weight"], layer.weight)


def test_a_record_brings_back_what_was_said_of_a_stage(tmp_path):
    state = run(rounding())
    state.log.append({"stage": "model", "seconds": 0.5})
    whole = Stage.whole(state.model)
    with output(tmp_path / "out") as out:
        out.begin({})
        out.write(whole, state)
        out.keep(whole, state)
    with output(tmp_path / "out") as again:
        (record,) = again.begin({})
        other = State(model=tiny_llama(), batches=[], report=dict.fromkeys(state.report))

        again.recall(Stage.whole(other.model), record, other)

        assert {name: line.to_dict() for name, line in other.report.items()} == {
            name: line.to_dict() for name, line in state.report.items()
        }
        assert (other.schemes, other.log[-1]) == (state.schemes, {"stage": "model", "seconds": 0.5})
        assert not again.rest(other).modules  # all of it is written
        recalled = dict(again.weights(Stage.whole(other.model).modules, other))
        assert all(torch.equal(recalled[name], tensor) for name, tensor in state.model.named_parameters())


def test_a_format_that_leaves_tensors_out_is_named(tmp_path):
    with pytest.raises(BrokenPluginError, match=r"PublishesNothing.publish left out 23 tensors, the first is"):
        run(rounding(), output=output(tmp_path / "out", PublishesNothing()), tokenizer=tiny_tokenizer())

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "report.json", "model.safetensors", "model-00001-of-00002.safetensors"]
)
def test_a_modifier_that_saves_a_file_of_the_run_is_refused_and_others_are_kept(tmp_path, name):
    @frozen(kw_only=True, eq=False)
    class Saves(Modifier):
        name: str = "thoughts.json"

        @hookimpl
        def save(self, state, folder):
            (folder / self.name).write_text("{}")

    run(Saves(), output=output(tmp_path / "fine"), tokenizer=tiny_tokenizer())
    assert (tmp_path / "fine/thoughts.json").read_text() == "{}"

    with pytest.raises(BrokenPluginError, match=rf"Saves.save writes {name}, which the run writes itself"):
        run(Saves(name=name), output=output(tmp_path / "out"), tokenizer=tiny_tokenizer())
    assert not (tmp_path / "out").exists()
