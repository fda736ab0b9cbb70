import pytest
from handmade import WIDTH, Attention, Experts, GatedMLP, Parallel, PreNorm, RMSNorm, call
from torch import nn

from coldpress.dataflow import parse_mappings, unmatched
from coldpress.dataflow.mapping import resolve
from coldpress.errors import TargetError

QKV = [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*norm$"]


def test_a_true_mapping_gives_its_pair():
    (pair,) = resolve(PreNorm(RMSNorm(), Attention()), call(), [QKV], prefix="model.layers.3")

    assert pair.producer == "norm"
    assert len(pair.consumers) == 3


@pytest.mark.parametrize(
    "entry",
    [
        [["re:.*o_proj"], "re:.*v_proj"],
        ["re:.*o_proj", "inner.v_proj"],
        {"balance_layers": ["model.layers.3.inner.o_proj"], "smooth_layer": "model.layers.3.inner.v_proj"},
    ],
)
def test_mappings_are_read_in_the_forms_that_recipes_have(entry):
    (pair,) = resolve(PreNorm(RMSNorm(), Attention()), call(), [entry], prefix="model.layers.3")

    assert (pair.producer, pair.consumers) == ("inner.v_proj", ("inner.o_proj",))


def test_a_mapping_that_forgets_a_reader_is_refused_by_its_name():
    with pytest.raises(TargetError, match=r"also feeds mlp\.gate_proj, mlp\.up_proj"):
        resolve(Parallel(), call(), [QKV])


def test_a_mapping_that_forgets_the_router_is_refused_by_its_name():
    block = PreNorm(RMSNorm(), Experts())

    with pytest.raises(TargetError, match=r"also feeds inner\.router"):
        resolve(block, call(tokens=64), [[["re:.*gate_proj", "re:.*up_proj"], "norm"]])


def test_each_expert_is_paired_with_itself():
    block = PreNorm(RMSNorm(), Experts())
    found = resolve(block, call(tokens=64), [[["re:.*down_proj"], "re:.*up_proj"]])

    assert [(p.producer, p.consumers[0]) for p in found] == [
        (f"inner.experts.{i}.up_proj", f"inner.experts.{i}.down_proj") for i in range(4)
    ]


def test_a_false_mapping_is_refused_with_who_really_reads():
    with pytest.raises(TargetError, match=r"o_proj does not read norm.*q_proj"):
        resolve(PreNorm(RMSNorm(), Attention()), call(), [[["re:.*o_proj"], "norm"]])


def test_a_producer_that_no_layer_reads_channel_by_channel_is_refused():
    with pytest.raises(TargetError, match="gate_proj: no input is scaled by its channels"):
        resolve(GatedMLP(), call(), [[["down_proj"], "gate_proj"]])


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(TargetError, match=r"norm gives 16 channels, inner\.down_proj reads 24"):
        resolve(PreNorm(RMSNorm(), GatedMLP()), call(), [[["re:.*down_proj"], "norm"]])


def test_a_producer_that_feeds_the_residual_stream_is_refused():
    block = PreNorm(RMSNorm(), Attention(), residual_behind_norm=True)

    with pytest.raises(TargetError, match="residual"):
        resolve(block, call(), [QKV])


def test_a_mapping_that_matches_nothing_anywhere_says_so():
    with pytest.raises(TargetError, match=r"matches no module.*q_proj"):
        unmatched(Parallel(), [[["re:.*query_proj", "re:.*k_proj"], "norm"]])


@pytest.mark.parametrize("bad", ["re:.*q_proj", [["a"]], [[["a"], "b", "c"]], [[[], "b"]], [[["a"], 3]]])
def test_other_forms_are_refused(bad):
    with pytest.raises(TargetError, match="mapping"):
        parse_mappings(bad)


def test_mappings_of_other_blocks_are_passed_over():
    assert resolve(nn.Linear(WIDTH, WIDTH), call(), [QKV]) == ()
