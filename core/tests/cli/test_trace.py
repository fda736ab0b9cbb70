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


def test_load_and_saliency_of_experts_are_shown_on_data(coldpress, tmp_path):
    from coldpress.testing.mixtures import tiny_mixture
    from coldpress.testing.models import tiny_tokenizer

    tiny_mixture("mixtral").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = ("--dataset", "coldpress/short", "--num-calibration-samples", "2", "--max-seq-length", "16")

    told = coldpress("trace", tmp_path / "model", *data)
    counted = json.loads(coldpress("trace", tmp_path / "model", *data, "--json").out)["experts"]

    assert told.code == 0, told.err
    assert all(word in told.out for word in ("mixture", "busiest", "saliency", "█"))
    assert [one["name"] for one in counted] == [f"model.layers.{block}.mlp.experts" for block in range(2)]
    assert all(sum(one["tokens"]) == 2 * 2 * 16 and min(one["saliency"]) > 0 for one in counted)


def test_data_for_a_model_without_experts_are_a_clear_error(coldpress, model):
    answer = coldpress("trace", model, "--dataset", "coldpress/short", "--num-calibration-samples", "1")

    assert answer.code == 2
    assert "--dataset shows what experts see, and a LlamaForCausalLM has none" in answer.err
