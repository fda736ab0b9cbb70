"""Checkpoints that are written tensor by tensor, and what checkpoints hold."""

import json

import torch
from safetensors.torch import load_file, save_file


def tensors_of(path):
    """Name to tensor."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def write(path, shards, config=None):
    """A folder whose files hold these tensors, with their index."""
    path.mkdir(parents=True, exist_ok=True)
    weights = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(
            {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()},
            path / name,
            {"format": "pt"},
        )
        weights |= dict.fromkeys(tensors, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (path / "config.json").write_text(
        json.dumps({"model_type": "unheard_of", "torch_dtype": "bfloat16", **(config or {})})
    )
    return path


def config_of(path):
    """config.json."""
    return json.loads((path / "config.json").read_text())


def randn(*shape, dtype=torch.bfloat16, seed=0):
    """Random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mixture(*, rows=256, columns=128, experts=4):
    """Tensors of a mixture with an attention, routers, an embedding and a head."""
    found = {"model.embed_tokens.weight": randn(rows, columns), "lm_head.weight": randn(rows, columns, seed=1)}
    prefix = "model.layers.0"
    for number, name in enumerate(["q_proj", "k_proj", "v_proj", "o_proj"]):
        found[f"{prefix}.self_attn.{name}.weight"] = randn(columns, columns, seed=number) * (number + 1)
    found[f"{prefix}.mlp.gate.weight"] = randn(experts, columns)
    for expert in range(experts):
        for number, name in enumerate(["gate_proj", "up_proj"]):
            found[f"{prefix}.mlp.experts.{expert}.{name}.weight"] = randn(64, columns, seed=expert) * (number + 1)
        found[f"{prefix}.mlp.experts.{expert}.down_proj.weight"] = randn(columns, 64, seed=expert)
    found[f"{prefix}.linear_attn.conv1d.weight"] = randn(columns, 1, 4)
    found[f"{prefix}.input_layernorm.weight"] = randn(columns)
    return found


def differing(a, b):
    """Names of tensors that are not the same bytes in two dictionaries."""
    return sorted({name for name in a.keys() | b.keys() if not (name in a and name in b and same(a[name], b[name]))})


def same(a, b):
    """Whether two tensors are of one dtype, shape, and the same bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)


def files_of(path):
    """Name to bytes of every file that does not hold times."""
    return {
        file.name: file.read_bytes()
        for file in sorted(path.iterdir())
        if file.name not in ("report.json", "report.html", "manifest.json")
    }


def _bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
