"""A Llama with random weights in sharded safetensors files, written a block at a time: any size in little memory."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from coldpress.testing.models import tiny_tokenizer


def build(folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **settings: int) -> LlamaConfig:
    """Write a model and a byte tokenizer; the same settings and seed give the same bytes."""
    config = LlamaConfig(**settings, bos_token_id=1, eos_token_id=2, pad_token_id=0, architectures=["LlamaForCausalLM"])
    config.dtype = dtype
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    weight_map, total = {}, 0
    parts = shapes(config)
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: _tensor(shape, dtype, generator) for name, shape in part.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return config


def shapes(config: LlamaConfig) -> list[dict[str, tuple[int, ...]]]:
    """Name and shape of every weight: embedding, one part a block, final norm and head."""
    width, inner = config.hidden_size, config.intermediate_size
    keys = width // config.num_attention_heads * config.num_key_value_heads
    block = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    blocks = [
        {f"model.layers.{index}.{name}.weight": shape for name, shape in block.items()}
        for index in range(config.num_hidden_layers)
    ]
    ends = {"model.norm.weight": (width,), "lm_head.weight": (config.vocab_size, width)}
    return [{"model.embed_tokens.weight": (config.vocab_size, width)}, *blocks, ends]


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    return (1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5).to(dtype)
