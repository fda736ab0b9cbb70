"""A compressed folder as a dense model; the format is a small one of this test."""

import json

import pytest
import torch
from attrs import evolve, frozen
from safetensors.torch import load_file, save_file

from coldpress import registry
from coldpress.attachment import every_attachment
from coldpress.checkpoint import Format
from coldpress.errors import BrokenPluginError, CheckpointError, ModelError
from coldpress.models import load_model
from coldpress.numerics import dynamic_qparams, fake_quantize
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme, preset
from coldpress.testing.models import batches, logits, tiny_conv1d, tiny_llama

SCALE = 0.05


@frozen(kw_only=True)
class EightBits(Format):
    """Every layer but the head in int8, with one scale for all."""

    def check(self, scheme, name, shape):
        """Take anything."""

    def tensors(self, quantized):
        """Not used here."""

    def config(self, schemes, ignore, attachments=()):
        """Not used here."""

    def read(self, config):
        """Every layer but the head."""
        scheme = preset("W8A8") if config["inputs"] else evolve(preset("W8A8"), input_activations=None)
        return lambda name, classes: scheme if name != "lm_head" and "Linear" in classes else None

    def restore(self, tensors, scheme: Scheme):
        """Codes with one scale."""
        rows = tensors["codes"].shape[0]
        return Quantized(scheme, codes=tensors["codes"], scale=torch.full((rows, 1), SCALE))


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The format, installed as `eight-bits`."""
    found = registry.find
    monkeypatch.setattr(registry, "find", lambda kind, name: EightBits if name == "eight-bits" else found(kind, name))


def _compress(path, model, *, inputs=False):
    """Save a model with the codes of its layers; return it with the weights that the codes stand for."""
    model.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    for name, module in model.named_modules():
        if type(module).__name__ not in ("Linear", "Conv1D") or name == "lm_head":
            continue
        turned = type(module).__name__ == "Conv1D"
        codes = (module.weight.detach() / SCALE).round().clamp(-128, 127)
        module.weight.data = codes * SCALE
        key = next(k for k in weights if k.endswith(".weight") and name.endswith(k.removesuffix(".weight")))
        del weights[key]
        weights[f"{name}.codes"] = (codes.t() if turned else codes).to(torch.int8).contiguous()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "eight-bits", "inputs": inputs}
    (path / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_weights_are_what_the_codes_stand_for(tmp_path, make):
    expected = _compress(tmp_path, make(hidden=64))

    model = load_model(tmp_path, device="cpu")

    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected.state_dict()[name], msg=name)
    assert not hasattr(model.config, "quantization_config")
    assert not list(every_attachment(model.named_modules()))


def test_inputs_are_rounded_as_when_served(tmp_path):
    expected = _compress(tmp_path, tiny_llama(hidden=64), inputs=True)
    inputs = preset("W8A8").input_activations
    for name, module in expected.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(
                lambda module, args: fake_quantize(args[0], *dynamic_qparams(args[0], inputs), inputs)
            )

    model = load_model(tmp_path, device="cpu")

    data = batches(rows=2)
    assert len(list(every_attachment(model.named_modules()))) == 2 * 7
    torch.testing.assert_close(logits(model, data), logits(expected, data))


def test_a_tensor_that_is_missing_is_told(tmp_path):
    _compress(tmp_path, tiny_llama(hidden=64))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_model(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    _compress(tmp_path, tiny_llama(hidden=64))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "error", "says"),
    [
        ({"quant_method": "nosuch"}, ModelError, "already compressed, with 'nosuch'"),
        ({"bits": 4}, CheckpointError, "names no quant_method"),
    ],
)
def test_a_method_that_nobody_reads_is_told(tmp_path, quantization, error, says):
    tiny_llama(hidden=64).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))

    with pytest.raises(error, match=says):
        load_model(tmp_path)


def test_a_format_that_is_none_is_told(tmp_path, monkeypatch):
    _compress(tmp_path, tiny_llama(hidden=64))
    monkeypatch.setattr(registry, "find", lambda kind, name: dict)

    with pytest.raises(BrokenPluginError, match="not a coldpress.Format"):
        load_model(tmp_path)
