"""Models of every kind are calibrated with what their forward takes: images, sound, inputs of a decoder."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from coldpress import oneshot
from coldpress.modifiers import GPTQModifier, QuantizationModifier
from coldpress.testing.models import filled, tiny_tokenizer

IMAGE = 258
TEXT = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SPEECH = {
    "vocab_size": 264,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(count, seed=0):
    return torch.randint(3, 250, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=28, patch_size=14),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    row = {"input_ids": [*ids(4), *[IMAGE] * 4, *ids(9)], "pixel_values": numbers(3, 28, 28)}
    return transformers.LlavaForConditionalGeneration(config), row, "model.vision_tower"


def qwen():
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        vision_config={**vision, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [0]},
        image_token_id=IMAGE,
        vision_start_token_id=260,
        vision_end_token_id=261,
    )
    row = {
        "input_ids": [[*ids(3), 260, *[IMAGE] * 4, 261, *ids(8)]],
        "mm_token_type_ids": [[0] * 4 + [1] * 4 + [0] * 9],
        "pixel_values": numbers(16, 3 * 2 * 14 * 14),
        "image_grid_thw": [[1, 4, 4]],
    }
    return transformers.Qwen2_5_VLForConditionalGeneration(config), row, "model.visual"


def gemma():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=16, sliding_window=8),
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=28, patch_size=7),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    row = {
        "input_ids": [*ids(3), *[IMAGE] * 4, *ids(8)],
        "token_type_ids": [0] * 3 + [1] * 4 + [0] * 8,
        "pixel_values": numbers(3, 28, 28),
    }
    return transformers.Gemma3ForConditionalGeneration(config), row, "model.vision_tower"


def t5():
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    config = transformers.T5Config(vocab_size=264, **sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": ids(10), "labels": ids(5)}, "decoder"


def bart():
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**SPEECH, max_position_embeddings=32))
    return model, {"input_ids": ids(10), "decoder_input_ids": ids(5)}, "model.decoder"


def whisper():
    config = transformers.WhisperConfig(**SPEECH, max_source_positions=8, max_target_positions=32, num_mel_bins=4)
    row = {"input_features": numbers(4, 16), "labels": ids(5)}
    return transformers.WhisperForConditionalGeneration(config), row, "model.encoder"


MODELS = [llava, qwen, gemma, t5, bart, whisper]
REST = ["re:.*(lm_head|proj_out|projector|merger|head).*"]


@pytest.mark.parametrize("make", MODELS)
def test_what_a_row_holds_reaches_the_part_that_reads_it(make, tmp_path):
    model, row, part = make()
    model = filled(model, torch.bfloat16, 0)
    calls = []
    model.get_submodule(part).register_forward_pre_hook(lambda *_: calls.append(1))
    recipe = GPTQModifier(scheme="W4A16", group_size=32, ignore=REST)

    oneshot(model, recipe, dataset=[row] * 3, output_dir=tmp_path / "out", num_calibration_samples=3, quiet=True)

    report = json.loads((tmp_path / "out/report.json").read_text())
    tokens = {line["name"]: line["notes"]["tokens"] for line in report["layers"] if line["status"] == "quantized"}
    assert calls
    assert any(name.startswith(part) for name in tokens)
    assert all(count > 0 for count in tokens.values())
    assert report["calibration"]["samples"] == 3


@pytest.mark.parametrize("make", [llava, t5, whisper])
def test_padding_of_no_sequence_counts(make, tmp_path):
    model, row, _ = make()
    names = [name for name in ("input_ids", "labels") if name in row]
    rows = [row, {**row, **{name: row[name][: -1 - i] for i, name in enumerate(names)}}]
    recipe = GPTQModifier(scheme="W4A16", group_size=32, ignore=["re:.*(lm_head|proj_out|projector|vision).*"])

    oneshot(
        filled(model, torch.float32, 0),
        recipe,
        dataset=rows,
        batch_size=2,
        data_collator="padding",
        output_dir=tmp_path / "out",
        quiet=True,
    )

    report = json.loads((tmp_path / "out/report.json").read_text())
    tokens = {line["notes"]["tokens"] for line in report["layers"] if line["status"] == "quantized"}
    lengths = {sum(len(one[name]) for one in rows) for name in names}
    assert lengths <= tokens
    assert report["calibration"]["padding"] > 0


def test_static_inputs_of_a_model_with_images_have_scales(tmp_path):
    model, row, _ = llava()
    recipe = QuantizationModifier(scheme="FP8", ignore=REST)

    oneshot(filled(model, torch.float32, 0), recipe, dataset=[row] * 2, output_dir=tmp_path / "out", quiet=True)

    scales = [name for name in load_file(tmp_path / "out/model.safetensors") if name.endswith("input_scale")]
    assert any("vision" in name for name in scales)
    assert any("language" in name for name in scales)


def test_text_alone_calibrates_both_halves_of_an_encoder_decoder_and_that_is_told(caplog):
    model, _, _ = t5()

    oneshot(
        filled(model, torch.float32, 0),
        GPTQModifier(scheme="W4A16", group_size=32, ignore=REST),
        dataset=["hello world"] * 2,
        tokenizer=tiny_tokenizer(),
        quiet=True,
    )

    assert "the decoder reads the same tokens as the encoder" in caplog.text


def test_the_answer_of_a_pair_is_what_a_decoder_reads():
    model, _, _ = t5()
    read = []
    model.decoder.register_forward_pre_hook(lambda _, args, kw: read.append(kw["input_ids"]), with_kwargs=True)

    oneshot(
        filled(model, torch.float32, 0),
        GPTQModifier(scheme="W4A16", group_size=32, ignore=REST),
        dataset=[{"article": "a long story", "highlights": "short"}],
        tokenizer=tiny_tokenizer(),
        quiet=True,
    )

    assert tiny_tokenizer().decode(read[0][0][1:]) == "shor"
