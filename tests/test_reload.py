"""What `oneshot` wrote, read again by `load_model`, is the model that `oneshot` returned."""

import json

import pytest
import torch
import transformers

from coldpress import oneshot
from coldpress.attachment import every_attachment
from coldpress.models import load_model, load_tokenizer
from coldpress.testing.models import batches, filled, logits, tiny_conv1d, tiny_llama, tiny_tokenizer

SCHEMES = ("W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W4A8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
def test_a_checkpoint_reloads_to_the_model_that_was_returned(tmp_path, make, scheme):
    data = batches(rows=2)
    recipe = f"modifiers:\n  - QuantizationModifier: {{scheme: {scheme}, ignore: [lm_head]}}"
    returned = oneshot(
        make(hidden=128), recipe, tokenizer=tiny_tokenizer(), dataset=data, output_dir=tmp_path / "out", quiet=True
    )

    reloaded = load_model(tmp_path / "out", device="cpu")

    assert reloaded.state_dict().keys() == returned.state_dict().keys()
    assert all(torch.equal(weight, returned.state_dict()[name]) for name, weight in reloaded.state_dict().items())
    assert [name for name, _, _ in every_attachment(reloaded.named_modules())] == [
        name for name, _, _ in every_attachment(returned.named_modules())
    ]
    assert torch.equal(logits(reloaded, data), logits(returned, data))
    assert len(load_tokenizer(tmp_path / "out")) == len(tiny_tokenizer())


def test_settings_of_generation_that_transformers_would_not_save_come_through(tmp_path):
    model = tiny_llama()
    model.generation_config.temperature = 0.5  # and do_sample is not set
    oneshot(model, "modifiers: [QuantizationModifier: {scheme: W8A8}]", output_dir=tmp_path / "out", quiet=True)

    assert load_model(tmp_path / "out", device="cpu").generation_config.temperature == 0.5


def shared(part):
    """A Llama that runs a block, its attention or its MLP at two places."""
    model = tiny_llama(layers=3)
    first, second = model.model.layers[0], model.model.layers[2]
    if part == "block":
        model.model.layers[2] = first
    else:
        setattr(second, part, getattr(first, part))
    return model


@pytest.mark.parametrize("part", ["block", "self_attn", "mlp"])
def test_what_runs_at_two_places_is_the_same_at_both_after_reading(part, tmp_path):
    """Without a cache: attention at two places fills one place of it twice, before any compression too."""
    recipe = "modifiers: [GPTQModifier: {scheme: W4A16, group_size: 32, ignore: [lm_head]}]"
    returned = oneshot(shared(part), recipe, dataset=batches(rows=2), output_dir=tmp_path / "out", quiet=True)

    data = [{**batch, "use_cache": False} for batch in batches(rows=2)]
    found = load_model(tmp_path / "out", device="cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(found, data), logits(returned, data))
    assert torch.equal(logits(theirs, data), logits(returned, data))
    returned.save_pretrained(tmp_path / "later")
    whole, later = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "later"))
    assert whole == later


def test_what_the_configuration_of_the_language_model_says_of_quantization_counts(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
        text_config=transformers.LlamaConfig(**sizes, vocab_size=264, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        image_token_index=260,
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    model = filled(transformers.LlavaForConditionalGeneration(config), torch.float32, 0)
    recipe = "modifiers: [QuantizationModifier: {scheme: W8A8, ignore: [lm_head, 're:.*vision.*']}]"
    returned = oneshot(model, recipe, output_dir=tmp_path / "out", quiet=True)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    saved["text_config"]["quantization_config"] = saved.pop("quantization_config")
    (tmp_path / "out" / "config.json").write_text(json.dumps(saved))

    reloaded = load_model(tmp_path / "out", device="cpu")

    assert all(torch.equal(weight, returned.state_dict()[name]) for name, weight in reloaded.state_dict().items())
    assert not hasattr(reloaded.config.get_text_config(), "quantization_config")
