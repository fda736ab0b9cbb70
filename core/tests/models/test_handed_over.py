"""Models that users hand over in memory: wrapped, adapted, quantized, made under inference mode."""

import re

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from transformers import AutoModelForCausalLM

from coldpress import load_model, oneshot
from coldpress.errors import ArgumentError, CheckpointError, ModelError, TargetError
from coldpress.models.handed_over import handed_over
from coldpress.testing.models import batches, logits, tiny_llama

ROUNDING = "QuantizationModifier: {scheme: W8A16, group_size: -1, ignore: [lm_head]}"
LEARNING = "GPTQModifier: {scheme: W8A16, group_size: -1, ignore: [lm_head]}"


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda model: compiled(nn.DataParallel(model))])
def test_a_wrapper_is_taken_off(wrap):
    model = tiny_llama(layers=1)

    assert handed_over(wrap(model)) is model


def test_blocks_that_are_compiled_by_themselves_are_taken_out_so_that_names_are_the_model_s():
    model = tiny_llama()
    names = list(model.state_dict())
    model.model.layers[1] = compiled(model.model.layers[1])

    handed_over(model)

    assert list(model.state_dict()) == names


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_becomes_what_the_plain_one_does(in_place):
    torch.manual_seed(0)
    plain, other = tiny_llama(layers=1), tiny_llama(layers=1)
    if in_place:
        other.compile(backend="eager")
    data = batches(rows=2)
    logits(other, data)  # compiled now, without the hooks that a run leaves

    recipe = "GPTQModifier: {scheme: W8A8, ignore: [lm_head]}"
    plain = oneshot(plain, recipe, dataset=data, quiet=True)
    other = oneshot(other if in_place else compiled(other), recipe, dataset=data, quiet=True)

    torch.testing.assert_close(logits(other, data), logits(plain, data))
    assert bool(other._compiled_call_impl) == in_place


class Adapted(nn.Module):
    """As PEFT builds its layers, which it calls Linear."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.lora_A = base, nn.Linear(base.in_features, 2, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x)


def adapted(model):
    model.model.layers[0].self_attn.q_proj = type("Linear", (Adapted,), {})(model.model.layers[0].self_attn.q_proj)


def marked(model):
    model.peft_config = {}


def pruned(model):
    prune.l1_unstructured(model.lm_head, "weight", 0.5)


def parametrized(model):
    parametrizations.weight_norm(model.lm_head)


def in_dtype(dtype):
    def change(model):
        weight = model.lm_head.weight
        model.lm_head.weight = nn.Parameter(torch.zeros(weight.shape).to(dtype), requires_grad=False)

    return change


def packed(model):
    layer = model.model.layers[0].self_attn.q_proj
    del layer.weight
    layer.quantization_scheme = object()


def qweight(model):
    model.lm_head = nn.Module()
    model.lm_head.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))


def told(model):
    model.is_quantized = True
    model.config.quantization_config = {"quant_method": "awq"}


class Subclass(torch.Tensor):
    pass


def subclassed(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(Subclass))


REFUSED = {
    "adapted layer": (adapted, r"merge_and_unload\(\)"),
    "adapted model": (marked, r"merge_and_unload\(\)"),
    "pruned by torch": (pruned, r'lm_head\.weight is computed.*torch\.nn\.utils\.prune\.remove\(layer, "weight"\)'),
    "weight norm": (parametrized, r"lm_head\.weight is computed.*remove_parametrizations"),
    "float8": (in_dtype(torch.float8_e4m3fn), r"quantized already \(lm_head\.weight has the dtype float8_e4m3fn"),
    "int8": (in_dtype(torch.int8), r"quantized already \(lm_head\.weight has the dtype int8"),
    "complex": (in_dtype(torch.complex64), r"lm_head\.weight has the dtype complex64"),
    "compressed-tensors": (packed, r"quantized already \(model\.layers\.0\.self_attn\.q_proj is a quantized Linear"),
    "qweight": (qweight, r"quantized already \(lm_head is a quantized Module"),
    "as transformers says": (told, r"quantized already \(transformers loaded it so, awq"),
    "a tensor of another kind": (subclassed, r"lm_head\.weight is a Subclass"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_plain_weights_is_refused_with_a_way_out(case):
    change, message = REFUSED[case]
    model = tiny_llama(layers=1)
    change(model)

    with pytest.raises(ModelError, match=message):
        oneshot(model, ROUNDING, quiet=True)


def test_a_script_is_refused():
    with pytest.raises(ModelError, match="TorchScript"):
        handed_over(torch.jit.script(nn.Linear(2, 2)))


@pytest.mark.parametrize("thing", [3, [tiny_llama], {"model": None}, lambda: None])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(ArgumentError, match="must be a path, a name or a torch module"):
        oneshot(thing, ROUNDING)


def test_a_module_of_plain_torch_is_compressed_in_memory_and_cannot_be_written(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    before = model[0].weight.clone()

    with pytest.raises(ModelError, match="a Sequential is no model of transformers"):
        oneshot(model, "QuantizationModifier: {scheme: W4A16, group_size: 32}", output_dir=tmp_path / "out")
    assert torch.equal(model[0].weight, before)

    oneshot(model, "QuantizationModifier: {scheme: W4A16, group_size: 32}", quiet=True)

    assert len(model[0].weight[0, :32].unique()) <= 16


@pytest.mark.parametrize("run_inside", [False, True])
def test_what_was_made_under_inference_mode_is_compressed_as_any_other(run_inside):
    plain = oneshot(tiny_llama(tied=True), LEARNING, dataset=batches(), quiet=True)
    with torch.inference_mode():
        model, data = tiny_llama(tied=True), batches()
        if run_inside:
            model = oneshot(model, LEARNING, dataset=data, quiet=True)
    if not run_inside:
        model = oneshot(model, LEARNING, dataset=data, quiet=True)

    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_a_module_whose_config_is_not_of_transformers_cannot_be_written(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64))
    model.config = {"hidden_size": 64}

    with pytest.raises(ModelError, match="a Sequential is no model of transformers"):
        oneshot(model, ROUNDING, output_dir=tmp_path / "out")


def test_a_layer_without_weights_is_refused_by_name():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 0))

    with pytest.raises(TargetError, match=r"'1' has no weights \(0 x 64\): ignore it"):
        oneshot(model, ROUNDING)


def test_weights_in_float64_are_rounded_like_any(tmp_path):
    model = tiny_llama(layers=1).double()
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()

    oneshot(model, "QuantizationModifier: {scheme: W8A8}", output_dir=tmp_path / "out", quiet=True)

    change = (model.model.layers[0].mlp.up_proj.weight - before).abs().max()
    assert 0 < change <= before.abs().max() / 250
    assert torch.equal(logits(load_model(tmp_path / "out", device="cpu"), batches()), logits(model, batches()))


def test_layers_of_torch_s_own_quantization_are_refused():
    model = torch.ao.quantization.quantize_dynamic(tiny_llama(layers=1), {nn.Linear}, dtype=torch.qint8)

    with pytest.raises(ModelError, match="quantized already .*is a quantized Linear"):
        handed_over(model)


def test_wrappers_that_recompute_activations_are_taken_out(caplog):
    model = tiny_llama()
    names = list(model.state_dict())
    model.model.layers[1] = checkpoint_wrapper(model.model.layers[1])

    handed_over(model)

    assert [name for name, _ in model.named_parameters()] == names
    assert "CheckpointWrapper is taken off" in caplog.text


def _fewer(model):
    model.model.layers = model.model.layers[:1]


def _narrower(model):
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = (nn.Linear(128, 64, bias=False) for _ in range(2))
    mlp.down_proj = nn.Linear(64, 128, bias=False)


def _vocabulary(model):
    model.config.vocab_size = 999


def _head(model):
    model.lm_head = nn.Sequential(nn.Linear(128, 16), nn.Linear(16, 259))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_fewer, r"model.layers.1.* \(none, and 128 x 128 by model.config\)"),
        (_narrower, r"model.layers.1.mlp.gate_proj.weight \(64 x 128, and 256 x 128 by model.config\)"),
        (_vocabulary, r"model.embed_tokens.weight \(259 x 128, and 999 x 128 by model.config\)"),
        (_head, r"lm_head.weight \(none, and 259 x 128 by model.config\)"),
        (lambda model: model.resize_token_embeddings(300), None),
    ],
)
def test_a_model_that_its_configuration_does_not_describe_is_a_warning(change, says, caplog, tmp_path):
    model = tiny_llama()
    change(model)

    oneshot(model, "QuantizationModifier: {scheme: W8A8}", output_dir=tmp_path / "out", quiet=True)

    assert bool(re.search(f"that its configuration describes, the first is {says}", caplog.text)) == (says is not None)
    if says is None:
        load_model(tmp_path / "out", device="cpu")
    else:
        with pytest.raises(CheckpointError, match="in the model that config.json describes|lacks"):
            load_model(tmp_path / "out", device="cpu")


def test_a_configuration_that_json_cannot_hold_is_refused_by_name_at_once_and_later(tmp_path):
    model = tiny_llama()
    model.config.mine = {1, 2}

    with pytest.raises(CheckpointError, match="config.json cannot hold 'mine' of the model"):
        oneshot(model, ROUNDING, output_dir=tmp_path / "out")
    oneshot(model, ROUNDING, quiet=True)
    with pytest.raises(CheckpointError, match="config.json cannot hold 'mine' of the model"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_called_as_a_part_of_the_checkpoint_is_refused(tmp_path):
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.register_buffer("weight_scale", torch.ones(3))

    with pytest.raises(
        CheckpointError, match=r"up_proj.weight_scale of the model has the name that the checkpoint needs"
    ):
        oneshot(model, ROUNDING, output_dir=tmp_path / "out")


def test_sparse_tensors_are_refused_by_name():
    model = tiny_llama()
    model.model.mask = nn.Parameter(torch.eye(4).to_sparse())

    with pytest.raises(ModelError, match="model.mask is stored sparsely"):
        oneshot(model, ROUNDING)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: model.add_module("later", nn.LazyLinear(5)), "later.weight has no shape yet"),
        (lambda model: nn.utils.spectral_norm(model.lm_head), r"lm_head.weight .*remove_spectral_norm\(layer\)"),
    ],
)
def test_weights_that_are_not_there_yet_are_refused_with_what_to_call(change, says):
    model = tiny_llama()
    change(model)

    with pytest.raises(ModelError, match=says):
        oneshot(model, ROUNDING)


def test_a_caller_under_autocast_gets_the_model_that_any_other_gets():
    plain = oneshot(tiny_llama(), LEARNING, dataset=batches(), quiet=True)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = oneshot(tiny_llama(), LEARNING, dataset=batches(), quiet=True)

    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), found.state_dict().values(), strict=True))


def test_a_caller_inside_of_the_meta_device_gets_the_model_that_any_other_gets(tmp_path):
    plain, model, data = oneshot(tiny_llama(), LEARNING, dataset=batches(), quiet=True), tiny_llama(), batches()
    tiny_llama().save_pretrained(tmp_path / "model")

    with torch.device("meta"):
        found = oneshot(model, LEARNING, dataset=data, quiet=True)
        written = oneshot(tmp_path / "model", ROUNDING, output_dir=tmp_path / "out", device="cpu", quiet=True)

    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), found.state_dict().values(), strict=True))
    assert {tensor.device.type for tensor in written.state_dict().values()} == {"cpu"}


def test_extra_state_has_no_place_in_a_checkpoint(tmp_path):
    class Keeping(nn.Linear):
        def get_extra_state(self):
            return {"scale": 1}

    model = tiny_llama()
    model.model.layers[0].mlp.up_proj = Keeping(128, 256, bias=False)

    with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj \(Keeping\) keeps extra state"):
        oneshot(model, ROUNDING, output_dir=tmp_path / "out")


def test_weights_that_transformers_made_dense_are_told_to_be_rounded_a_second_time(tmp_path, caplog):
    oneshot(tiny_llama(), "QuantizationModifier: {scheme: W4A16_ASYM}", output_dir=tmp_path / "out", quiet=True)
    assert "is compressed" not in caplog.text
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    oneshot(model, ROUNDING, quiet=True)

    assert f"{tmp_path / 'out'}, which the model was loaded from, is compressed (compressed-tensors)" in caplog.text
