"""Tiny models, batches and a tokenizer, made in milliseconds from a seed and the same on every machine."""

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
VOCABULARY = len(SPECIAL) + 256  # a token for every byte
POSITIONS = 256


def tiny_llama(
    *,
    hidden: int = 128,
    layers: int = 2,
    heads: int = 4,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A Llama with random weights; half as many key heads as heads, an MLP of twice the width.

    Args:
        hidden: width, a multiple of twice `heads`; 128 takes every group size of the presets.
        layers: decoder blocks.
        heads: attention heads, an even number.
        tied: whether the head shares the weights of the embedding.
        dtype: of all weights.
        seed: of the weights.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return filled(LlamaForCausalLM(config), dtype, seed)


def tiny_conv1d(
    *, hidden: int = 64, layers: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, whose linear layers are `Conv1D` and store [I, O]; its head is tied."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=hidden,
        n_layer=layers,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return filled(GPT2LMHeadModel(config), dtype, seed)


def batches(*, rows: int = 8, length: int = 16, batch_size: int = 1, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random token ids without padding; the same rows in the same order whatever the batch size.

    Returns:
        `input_ids` and `attention_mask`, [batch_size, length] each; the last batch may be smaller.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL), VOCABULARY, (rows, length), generator=generator)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.split(ids, batch_size)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, so that every text can be encoded, and decoded again, without a file."""
    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteDecoder()
    pad, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end, model_max_length=POSITIONS
    )


def logits(model: nn.Module, data: list[dict[str, Tensor]]) -> Tensor:
    """What a model says to batches, [rows, length, vocabulary] in float32 on the CPU, wherever the model is."""
    where = next((x.device for x in model.parameters() if not x.is_meta), torch.device("cpu"))
    with torch.no_grad():
        there = ({n: x.to(where) if isinstance(x, Tensor) else x for n, x in batch.items()} for batch in data)
        return torch.cat([model(**batch).logits.float().cpu() for batch in there])


def filled(model: Any, dtype: torch.dtype, seed: int) -> Any:
    """The model with weights that keep the size of a signal, whatever its own initialisation would be.

    Buffers keep their dtype, as they do in a model that is loaded: angles of positions stay in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise /= parameter.shape[-1] ** 0.5
        else:
            noise = 0.1 * noise + (not name.endswith("bias"))
        parameter.data = noise.to(dtype)
    model.tie_weights()
    return model.eval()
