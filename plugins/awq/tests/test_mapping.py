"""AWQMapping: what scripts for llm-compressor write."""

from coldpress.porting import port
from coldpress_awq import AWQMapping


def test_its_fields_may_be_given_by_place():
    mapping = AWQMapping("re:.*input_layernorm$", ["re:.*q_proj$"])

    assert (mapping.smooth_layer, mapping.balance_layers) == ("re:.*input_layernorm$", ["re:.*q_proj$"])


def test_a_ported_script_imports_it_from_beside_the_modifier():
    before = "from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier\n"

    after = "from coldpress.modifiers import AWQModifier\nfrom coldpress_awq import AWQMapping\n"
    assert sorted(port(before).text.splitlines()) == sorted(after.splitlines())
    assert port(before).remarks == ()
