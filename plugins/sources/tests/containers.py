"""Small checkpoints as their makers write them, encoded here in another way than they are decoded."""

import json

import torch
from safetensors.torch import load_file, save_file

from coldpress.testing.models import tiny_llama

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def llama(folder, quantization, encode, *, apart=False):
    """A tiny Llama whose projections are encoded by a function of the weight; scales apart, in a file of theirs."""
    tiny_llama(hidden=128).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    beside = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts = encode(tensors.pop(name).float())
        tensors[name] = parts.pop("weight")
        beside |= {name.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    write(folder, [tensors, beside] if apart else [tensors | beside])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


def write(folder, shards):
    """Files and their index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    where = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(
            {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}, folder / name
        )
        where |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def blocks(weight, side=128):
    """FP8 with a scale for each block."""
    rows, columns = (-(-size // side) for size in weight.shape)
    scale, codes = torch.empty(rows, columns), torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            part = (slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
            scale[i, j] = weight[part].abs().max() / 448
            codes[part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}


def rows(weight):
    """FP8 with a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def of_blocks(codes, scale, side=128):
    """What they stand for, one row after the other."""
    return torch.stack(
        [codes[i].float() * scale[i // side].repeat_interleave(side)[: codes.shape[1]] for i in range(len(codes))]
    )


def nibbles(weight, group, scale):
    """The nearest FP4 number of each weight, two to a byte, the first in the low half."""
    scaled = weight / scale.repeat_interleave(group, dim=-1)
    index = (scaled[..., None] - E2M1).abs().argmin(-1)  # [..., I]
    return (index[..., 0::2] | (index[..., 1::2] << 4)).to(torch.uint8)


def of_nibbles(packed, group, scale):
    """What they stand for."""
    low, high = packed.view(torch.uint8) & 15, packed.view(torch.uint8) >> 4
    return E2M1[torch.stack((low, high), dim=-1).flatten(-2).long()] * scale.repeat_interleave(group, dim=-1)


def mx(weight):
    """FP4 in groups of 32 with exponents: packed, exponents plus 127, and powers of two."""
    largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1).clamp(min=1e-30)
    exponent = largest.log2().floor() - 2
    return nibbles(weight, 32, 2.0**exponent), (exponent + 127).to(torch.uint8), 2.0**exponent


def nvfp4(weight):
    """As ModelOpt has it."""
    second = weight.abs().max() / (6 * 448)
    scale = (weight.unflatten(-1, (-1, 16)).abs().amax(-1) / 6 / second).to(torch.float8_e4m3fn)
    packed = nibbles(weight, 16, scale.float() * second)
    return {"weight": packed, "weight_scale": scale, "weight_scale_2": second, "input_scale": torch.tensor(0.01)}


def fp8_folder(folder, *, apart=True):
    """Blocks, scales in a file of their own."""
    said = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return llama(folder, said, blocks, apart=apart)


def modelopt_folder(folder):
    """NVFP4."""
    found = llama(folder, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    return found


def gpt_oss(folder):
    """A tiny gpt-oss in MXFP4, and the dense weights of its experts."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tensors, dense = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name]:
        weight = tensors.pop(name).float().transpose(1, 2)  # [E, O, I]
        packed, exponents, scale = mx(weight)
        dense[name] = of_nibbles(packed, 32, scale).transpose(1, 2)
        tensors[f"{name}_blocks"] = packed.unflatten(-1, (-1, 16))
        tensors[f"{name}_scales"] = exponents
    write(folder, [tensors])
    table = json.loads((folder / "config.json").read_text())
    table["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(table))
    return folder, dense
