"""Whole checkpoints: read again, refused, split, resumed."""

import json
import weakref

import pytest
import torch
import transformers
from safetensors.torch import save_file

from coldpress import CheckpointError, ModelError, SchemeError, load_model, oneshot
from coldpress.plugin import CheckpointReader
from coldpress.schemes import preset
from coldpress.testing.interrupt import interrupted
from coldpress.testing.models import VOCABULARY, batches, filled, logits, tiny_conv1d, tiny_llama, tiny_tokenizer
from coldpress_gguf import GgufFormat
from coldpress_gguf.architecture import architecture_of, keys_of
from coldpress_gguf.file import GgufFile
from coldpress_gguf.reading import GgufTensors
from coldpress_gguf.writing import Entry, entries_of

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


def compress(
    output, *, scheme="Q4_0", model=None, tokenizer=True, recipe=None, settings="pre_tokenizer: gpt-2", **more
):
    recipe = recipe or f"QuantizationModifier: {{scheme: {scheme}, ignore: [lm_head]}}"
    text = f"format:\n  gguf: {{{settings}}}\nmodifiers:\n  - {recipe}\n"
    tokenizer = tiny_tokenizer() if tokenizer is True else tokenizer
    model = tiny_llama(hidden=128) if model is None else model
    return oneshot(model, text, output_dir=output, tokenizer=tokenizer, quiet=True, **more)


@pytest.mark.parametrize(("scheme", "tied"), [("Q4_0", True), ("Q5_1", False), ("NVFP4A16", False)])
def test_a_checkpoint_is_read_as_it_was_in_memory(tmp_path, scheme, tied):
    model = compress(tmp_path / "out", scheme=scheme, model=tiny_llama(hidden=128, tied=tied, dtype=torch.bfloat16))

    again = load_model(tmp_path / "out")

    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(again, data))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gguf")) == ["model.gguf"]


def test_biases_of_experts_and_sinks_of_attention_are_read_as_they_were_in_memory(tmp_path):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 4}
    config = transformers.GptOssConfig(**sizes, **heads, rope_parameters={**YARN, "truncate": True})
    model = filled(transformers.GptOssForCausalLM(config), torch.float32, 0)
    recipe = 'QuantizationModifier: {scheme: Q4_0, ignore: [lm_head, "re:.*router$"]}'

    model = compress(tmp_path / "out", model=model, recipe=recipe)

    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out", dtype="float32"), data))


def test_the_file_alone_is_a_dense_model(tmp_path):
    model = compress(tmp_path / "out")

    again = load_model(tmp_path / "out" / "model.gguf", dtype="float32")

    expected = model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in again.state_dict().items())


def test_what_is_not_quantized_keeps_its_dtype(tmp_path):
    compress(tmp_path / "out", model=tiny_llama(hidden=128, dtype=torch.bfloat16))

    file = GgufFile(tmp_path / "out" / "model.gguf")

    kinds = {name: place.kind for name, place in file._places.items()}
    assert (kinds["token_embd.weight"], kinds["output_norm.weight"], kinds["blk.0.attn_q.weight"]) == (30, 0, 2)


def test_embeddings_and_heads_are_quantized_by_choice(tmp_path):
    recipe = """QuantizationModifier:
      ignore: []
      config_groups:
        head: {targets: [lm_head], weights: {num_bits: 8, group_size: 32}}
        embedding: {targets: [Embedding], weights: {num_bits: 5, group_size: 32}}
        rest: {targets: [Linear], weights: {num_bits: 4, group_size: 32}}"""

    model = compress(tmp_path / "out", recipe=recipe)

    file = GgufFile(tmp_path / "out" / "model.gguf")
    assert [file._places[name].kind for name in ("output.weight", "token_embd.weight")] == [8, 6]
    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out", dtype="float32"), data))


@pytest.mark.parametrize(("scheme", "shared"), [("Q8_0", True), ("NVFP4A16", False)])
def test_an_embedding_and_a_head_of_the_same_codes_are_one_tensor(tmp_path, scheme, shared):
    recipe = f"QuantizationModifier: {{scheme: {scheme}, targets: [Linear, Embedding], ignore: []}}"
    source = tiny_llama(hidden=128, tied=True, dtype=torch.bfloat16)

    model = compress(tmp_path / "out", recipe=recipe, model=source)

    names = GgufFile(tmp_path / "out" / "model.gguf").names()
    assert ("output.weight" not in names) == shared
    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out"), data))
    if shared:  # a file alone is read by transformers, which knows no NVFP4
        alone = load_model(tmp_path / "out" / "model.gguf", dtype="bfloat16")
        assert torch.equal(logits(model, data), logits(alone, data))


def test_a_file_is_split(tmp_path):
    model = compress(tmp_path / "out", settings="pre_tokenizer: gpt-2, split_max_size: 100000")

    names = sorted(path.name for path in (tmp_path / "out").glob("*.gguf"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.gguf"
    data = batches(rows=2)
    assert torch.equal(logits(model, data), logits(load_model(tmp_path / "out", dtype="float32"), data))
    (tmp_path / "out" / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"{len(names) - 1} of the {len(names)} files"):
        load_model(tmp_path / "out")


def test_an_interrupted_run_gives_the_same_file(tmp_path):
    compress(tmp_path / "whole")

    with interrupted(2):
        compress(tmp_path / "resumed")
    compress(tmp_path / "resumed")

    assert (tmp_path / "whole/model.gguf").read_bytes() == (tmp_path / "resumed/model.gguf").read_bytes()


def test_a_streamed_run_gives_the_file_of_one_in_memory(tmp_path):
    tiny_llama(hidden=128, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    compress(tmp_path / "streamed", model=str(tmp_path / "model"), tokenizer=None, return_model=False)
    compress(tmp_path / "memory", model=load_model(tmp_path / "model"), tokenizer=None)

    assert (tmp_path / "streamed/model.gguf").read_bytes() == (tmp_path / "memory/model.gguf").read_bytes()


@pytest.mark.parametrize(
    ("scheme", "shape", "words"),
    [
        ("W8A8", (64, 64), "rounds inputs in its own way"),
        ("NVFP4", (64, 64), "NVFP4A16"),
        ("FP8_BLOCK", (128, 128), "rounds inputs"),
        ("MXFP8A16", (64, 64), "no type holds float8"),
        ("W4A16", (64, 48), "48 columns do not divide into blocks of 32"),
        ("NVFP4A16", (64, 96), "96 columns do not divide into blocks of 64"),
    ],
)
def test_what_no_type_holds_is_refused(scheme, shape, words):
    form = GgufFormat()
    scheme = form.complete(
        {"x.up": preset(scheme, **({"group_size": -1} if scheme == "W4A16" else {}))}, {"x.up": shape}
    )

    with pytest.raises(SchemeError, match=words) as caught:
        form.check(scheme["x.up"], "x.up", shape)
    assert "x.up" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"), [("group_size: 16", "multiple of 32"), ("symmetric: false", "asymmetric")]
)
def test_groups_of_16_and_asymmetric_int8_are_refused_before_the_run(tmp_path, settings, words):
    bits = 4 if "group" in settings else 8
    weights = f"{{num_bits: {bits}, {settings}{', strategy: channel' if bits == 8 else ''}}}"
    groups = f"config_groups: {{a: {{targets: [Linear], weights: {weights}}}}}"
    recipe = f"QuantizationModifier:\n      ignore: [lm_head]\n      {groups}"

    with pytest.raises(SchemeError, match=words):
        compress(tmp_path / "out", recipe=recipe)


def test_architectures_and_pre_tokenizers_that_nobody_knows_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="models of the type 'gpt2' are not written as GGUF"):
        compress(
            tmp_path / "out",
            model=tiny_conv1d(),
            scheme="W8A16",
            recipe="QuantizationModifier: {scheme: W8A16, group_size: -1}",
        )
    with pytest.raises(ModelError, match="llama.cpp does not know how this tokenizer cuts text"):
        compress(tmp_path / "out", settings="")
    assert not (tmp_path / "out").exists()


def test_what_llama_cpp_does_not_compute_is_refused(tmp_path):
    model = tiny_llama(hidden=128)
    model.config.hidden_act = "relu"
    with pytest.raises(ModelError, match="activation is 'relu'"):
        compress(tmp_path / "out", model=model)
    model = tiny_llama(hidden=128)
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ModelError, match="rope_type is 'dynamic'"):
        compress(tmp_path / "out", model=model)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("Llama", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "beta_fast of yarn is 16.0, not 32"),
        ("Llama", {"rope_parameters": {**YARN, "beta_slow": 2.0}}, "beta_slow of yarn is 2.0, not 1"),
        ("Llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate of yarn is False"),
        ("Llama", {"rope_parameters": {**YARN, "attention_factor": 1.5}}, "attention_factor of yarn"),
        ("Llama", {"rope_parameters": {**YARN, "mscale": 0.5, "mscale_all_dim": 1.5}}, "mscale and mscale_all_dim"),
        ("Gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        ("Gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping is null"),
        ("Gemma3Text", {"attention_bias": True}, "attention_bias is true"),
        ("Qwen3", {"attention_bias": True}, "attention_bias is true"),
        ("Qwen3Moe", {"attention_bias": True, "norm_topk_prob": True}, "attention_bias is true"),
        ("Olmo2", {"attention_bias": True}, "attention_bias is true"),
        ("SmolLM3", {"mlp_bias": True}, "mlp_bias is true"),
        ("GptOss", {"rope_parameters": {**YARN, "truncate": False}}, "truncate of yarn is False"),
        ("GptOss", {"rope_parameters": YARN, "swiglu_limit": 5.0}, "swiglu_limit is 5.0, not 7.0"),
        ("Starcoder2", {"use_bias": False, "sliding_window": None}, "use_bias is false"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(family, settings, words):
    with pytest.raises(ModelError, match=f"llama.cpp does not compute what this .* does: {words}"):
        architecture_of(getattr(transformers, f"{family}Config")(**settings))


@pytest.mark.parametrize("mscale", [{"mscale": 0.707}, {"mscale": 1.0, "mscale_all_dim": 0.0}, {"beta_fast": 32.0}])
def test_settings_of_yarn_that_change_nothing_are_written(mscale):
    config = transformers.LlamaConfig(rope_parameters={**YARN, **mscale})

    assert "rope.scaling.factor" in keys_of(config, architecture_of(config))


def mixture():
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2, "sliding_window": None}
    return filled(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)), torch.float32, 0)


@pytest.mark.parametrize(
    ("ignored", "groups", "words"),
    [
        ('"re:.*experts.1.*"', "", r"experts\.0\.\w+ is Q4_0 and .*experts\.1\.\w+ is not quantized"),
        ("lm_head", 'one: {targets: ["re:.*experts.1.*"], weights: {num_bits: 5, group_size: 32}}', "Q4_0 and .* Q5_0"),
    ],
)
def test_experts_of_different_types_are_refused_before_the_run(tmp_path, ignored, groups, words):
    recipe = f"""QuantizationModifier:
      ignore: [lm_head, "re:.*gate$", {ignored}]
      config_groups:
        rest: {{targets: [Linear], weights: {{num_bits: 4, group_size: 32}}}}
        {groups}"""

    with pytest.raises(SchemeError, match=words):
        compress(tmp_path / "out", model=mixture(), recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_an_expert_alone_is_completed():
    name = "model.layers.0.mlp.experts.1.up_proj"

    assert GgufFormat().complete({name: preset("Q4_K")}, {name: (64, 256)}) == {name: preset("Q4_K")}


@pytest.mark.parametrize("ignored", ["", ', "re:.*experts.*"'])
def test_experts_are_read_one_by_one(tmp_path, monkeypatch, ignored):
    recipe = f'QuantizationModifier: {{scheme: Q4_0, ignore: [lm_head, "re:.*gate$"{ignored}]}}'
    compress(tmp_path / "out", model=mixture(), recipe=recipe)
    places, found = [], GgufFile._place
    monkeypatch.setattr(GgufFile, "_place", lambda *args: places.append(found(*args)) or places[-1])

    tensors = GgufTensors(tmp_path / "out")
    read = {name: tensors.read(name) for name in tensors.names() if ".experts." in name}

    assert len(read) == len(places) == 6  # three matrices of two experts
    assert len({place.begin for place in places}) == 6
    file = GgufFile(tmp_path / "out/model.gguf")
    for name, tensor in read.items():
        stack, number, _ = tensors._places[name]
        assert torch.equal(tensor, (file.get(stack) if ignored else file.raw(stack))[number])


@pytest.mark.parametrize(("scheme", "factor"), [("Q4_0", 1e8), ("Q4_K", 1e11), ("Q4_K", 1e-8), ("Q6_K", 1e11)])
def test_scales_that_float16_cannot_hold_are_refused_before_a_code_is_chosen(tmp_path, scheme, factor):
    model = tiny_llama(hidden=256)
    model.model.layers[0].mlp.up_proj.weight.data.mul_(factor)

    with pytest.raises(
        SchemeError, match=r"layers\.0\.mlp\.up_proj: the scales of its weights do not fit into float16"
    ):
        compress(tmp_path / "out", model=model, scheme=scheme)


def test_one_tensor_of_the_file_is_in_memory_at_a_time(tmp_path, monkeypatch):
    made, alive, make = [], [], Entry.made

    def watched(entry, parts):
        alive.append(sum(tensor() is not None for tensor in made))
        tensor = make(entry, parts)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Entry, "made", watched)
    compress(tmp_path / "out")

    assert len(made) > 12
    assert max(alive) <= 1  # the one before, while the next is made


def test_a_mix_with_other_weights_is_refused():
    scheme = preset("Q4_K_M", symmetric=True, scale_bits=None)
    with pytest.raises(SchemeError, match="x: Q4_K_M has symmetric False by definition, True is not Q4_K_M"):
        GgufFormat().complete({"x": scheme}, {"x": (64, 256)})


def test_experts_of_different_types_are_not_made_one_tensor(tmp_path):
    names = [f"model.layers.0.block_sparse_moe.experts.{number}.w1" for number in (0, 1)]
    blocks = {f"{name}.blocks": torch.zeros(64, 36, dtype=torch.uint8) for name in names}
    save_file(blocks, tmp_path / "model.safetensors")
    parts, config = CheckpointReader(tmp_path), mixture().config

    with pytest.raises(CheckpointError, match="2 experts are one tensor, and differ in type"):
        entries_of(parts, config, architecture_of(config), dict(zip(names, ("Q4_0", "NVFP4"), strict=True)))


def test_a_damaged_configuration_is_told(tmp_path):
    compress(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    del config["quantization_config"]["groups"]
    (tmp_path / "out/config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match="groups cannot be read"):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q5_K_S"])
def test_a_mix_has_types_for_layers(mix):
    names = [
        f"model.layers.{i}.{part}"
        for i in range(16)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    ]
    shapes = {name: (64, 512) for name in names} | {"lm_head": (64, 512), "model.layers.3.mlp.up_proj": (64, 96)}
    form, scheme = GgufFormat(), preset(mix)

    found = form.complete(dict.fromkeys(shapes, scheme), shapes)

    bits = {name: (one.weights.num_bits, one.weights.scale_bits) for name, one in found.items()}
    base = 4 if mix == "Q4_K_M" else 5
    assert bits["lm_head"] == (6, 8)
    assert bits["model.layers.3.self_attn.q_proj"] == (base, 6)
    assert bits["model.layers.3.mlp.up_proj"] == (5, None)  # 256 does not divide its columns
    more = [i for i in range(16) if bits[f"model.layers.{i}.mlp.down_proj"] == (6, 8)]
    assert more == ([0, 1, 4, 7, 10, 13, 14, 15] if mix == "Q4_K_M" else [])
