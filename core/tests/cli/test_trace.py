"""coldpress trace: what a person and a program are shown of a model's dataflow."""

import json


def test_a_llama_has_four_distinct_inputs_and_its_pairs(coldpress, model):
    answer = coldpress("trace", model)

    assert answer.code == 0, answer.err
    assert "2 × LlamaDecoderLayer" in answer.out
    assert "4 distinct inputs" in answer.out
    assert "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj" in answer.out
    assert "input_layernorm →" in answer.out


def test_json_names_every_pair_and_its_certificate(coldpress, model):
    answer = coldpress("trace", model, "--json")
    (kind,) = json.loads(answer.out)["kinds"]

    assert {pair["producer"] for pair in kind["dataflow"]["pairs"]} >= {"input_layernorm", "mlp.up_proj"}
    assert all(pair["certificate"] < 1e-6 for pair in kind["dataflow"]["pairs"])


def test_blocks_that_do_not_exist_are_a_clear_error(coldpress, model):
    answer = coldpress("trace", model, "--sequential-targets", "LlamaDecoderLayr")

    assert answer.code == 2
    assert "did you mean 'LlamaDecoderLayer'" in answer.err
