"""Tokenizers in llama.cpp: texts are cut as by transformers."""

import random

import pytest
import torch
from llama_cpp import Engine
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coldpress import ModelError, oneshot
from coldpress.testing.models import filled, tiny_tokenizer
from coldpress_gguf.vocabulary import vocabulary_of

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CORPUS = ["the quick brown fox jumps over the lazy dog, and then it doesn't do it again in the 1990s"] * 20
PIECES = ["the", " quick", "  ", "don't", "1990", "日本", "🙂", "\n", "fox jumps", "\t", "Ünï", "...", "over the lazy"]


def texts(count):
    draw = random.Random(0)
    return ["".join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(6)) for _ in range(count)]


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def sentencepiece():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + BYTES, max_token_length=8)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def model_for(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return filled(LlamaForCausalLM(config), torch.float32, 0)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_texts_are_cut_as_by_transformers(tmp_path, make):
    tokenizer = make()
    recipe = """
format: {gguf: {pre_tokenizer: gpt-2}}
modifiers: [QuantizationModifier: {scheme: Q8_0, ignore: [lm_head]}]
"""
    oneshot(model_for(tokenizer), recipe, output_dir=tmp_path / "out", tokenizer=tokenizer, quiet=True)

    engine = Engine(tmp_path / "out/model.gguf")

    for text in texts(40):
        assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids, text


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(ModelError, match="259 tokens"):
        vocabulary_of(tiny_tokenizer(), 100, "gpt-2")


def test_a_tokenizer_of_another_kind_is_refused():
    wordpiece = Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))

    with pytest.raises(ModelError, match="it is WordPiece"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=wordpiece), 100)
