"""What several ranks make of a plan, and the rates of a machine that is not at hand."""

import json

import pytest

import coldpress
from coldpress import ArgumentError
from coldpress.planning.division import Division, read_profile
from coldpress.testing.models import batches, tiny_llama, tiny_tokenizer
from coldpress_gptq import GPTQModifier
from coldpress_quantization import QuantizationModifier

RATES = {
    "products": 4e8,
    "wide_products": 1e8,
    "passes": 1e9,
    "steps": 1e9,
    "disk": 1e9,
    "device": "some card",
    "threads": 8,
    "network": 1e12,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("divided") / "llama"
    tiny_llama(hidden=64).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(RATES))
    return path


def planned(folder, modifier=None, **settings):
    modifier = modifier or GPTQModifier(scheme="W4A16", group_size=32, ignore=["lm_head"])
    return coldpress.plan(str(folder), modifier, dataset=batches(rows=8), quiet=True, **settings)


def test_the_rank_with_most_tokens_counts():
    assert Division.of(1, [10, 10]).share == 1.0
    assert Division.of(2, [10] * 4).share == 0.5
    assert Division.of(2, [10] * 3).share == pytest.approx(2 / 3)
    assert Division.of(4, [10]).share == 1.0


def test_layers_are_solved_by_the_rank_that_has_least():
    assert Division(2, 0.5).busiest([4.0, 3.0, 2.0, 1.0]) == 5.0
    assert Division(1, 1.0).busiest([4.0, 3.0]) == 7.0


def test_ranks_take_less_time_and_memory_and_exchange_sums(folder, profile):
    alone, two = (planned(folder, ranks=ranks, device_profile=profile) for ranks in (1, 2))

    assert two.after == alone.after
    assert sum(alone.seconds()) / 2 < sum(two.seconds()) < sum(alone.seconds())
    waiting = [max(stage.parts.get("activations", 0) for stage in one.stages) for one in (alone, two)]
    assert waiting[0] == 2 * waiting[1] > 0
    assert alone.to_dict()["ranks"] == {"count": 1, "exchanged_bytes": 0}
    assert two.to_dict()["ranks"]["exchanged_bytes"] > 0


def test_what_no_rank_shares_takes_as_long_as_alone(folder, profile):
    modifier = QuantizationModifier(scheme="W4A16", group_size=32, ignore=["lm_head"])
    alone, two = (planned(folder, modifier, ranks=ranks, device_profile=profile) for ranks in (1, 2))
    assert two.seconds() == pytest.approx(alone.seconds(), rel=0.05)


def test_a_profile_takes_the_place_of_what_is_measured(folder, profile):
    found = planned(folder, device_profile=profile)
    assert found.rates["device"] == "some card"
    assert found.device_nbytes() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": None}, "steps is None"),
        ({"disk": 0}, "disk is 0"),
        ({"threads": True}, "threads is True"),
        ({"speed": 1}, "'speed' is no rate"),
    ],
)
def test_a_profile_that_says_nothing_sound_is_refused(tmp_path, change, words):
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**RATES, **change}))
    with pytest.raises(ArgumentError, match=words):
        read_profile(path)


def test_a_profile_without_a_rate_or_that_is_no_profile_is_refused(tmp_path):
    path = tmp_path / "card.json"
    with pytest.raises(ArgumentError, match=r"card\.json.*No such file"):
        read_profile(path)
    path.write_text(json.dumps({name: rate for name, rate in RATES.items() if name != "passes"}))
    with pytest.raises(ArgumentError, match="passes is missing"):
        read_profile(path)
    path.write_text("[1]")
    with pytest.raises(ArgumentError, match="a table"):
        read_profile(path)


@pytest.mark.parametrize("ranks", [0, -1, 1.5, True, "2"])
def test_ranks_are_counted(folder, ranks):
    with pytest.raises(ArgumentError, match="ranks must be a whole number"):
        planned(folder, ranks=ranks)


def test_without_the_model_there_is_one_process(folder):
    with pytest.raises(ArgumentError, match="one process"):
        coldpress.plan(str(folder), QuantizationModifier(scheme="W4A16"), model_free=True, ranks=2)
