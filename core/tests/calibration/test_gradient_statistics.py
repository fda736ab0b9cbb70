"""Statistics of output gradients: what tokens count, and that they are kept bit for bit."""

import pytest
import torch

from coldpress import CalibrationError
from coldpress.calibration.gradient_store import GradientStore
from coldpress.plugin import Gamma, Tokens, TokenWeight


def gradients(seed, outputs):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, outputs, generator=generator) for _ in range(3)]


def seen(statistic, parts):
    value = None
    for batch, part in enumerate(parts):
        value = statistic.update_with_gradient(value, part, Tokens(batch))
    return value


def test_weights_are_the_mean_over_the_outputs_of_all_layers_that_share_an_input():
    statistic, a, b = TokenWeight(quantile=1.0), gradients(0, 4), gradients(1, 12)

    found = statistic.weights([seen(statistic, a), seen(statistic, b)])

    expected = torch.cat([torch.cat([x, y], 1).square().mean(1) for x, y in zip(a, b, strict=True)])
    weights = torch.cat([found[Tokens(batch)][0] for batch in range(3)])
    torch.testing.assert_close(weights, expected / expected.mean())


def test_weights_are_cut_at_their_quantile_and_have_a_mean_of_one():
    found = TokenWeight(quantile=0.8).weights([seen(TokenWeight(), gradients(0, 4))])

    weights = torch.cat([found[Tokens(batch)][0] for batch in range(3)])
    assert int((weights == weights.max()).sum()) == 4  # the 12th of 15, and those above
    assert float(weights.mean()) == pytest.approx(1)


def test_a_group_of_outputs_says_what_tokens_count_for_it():
    a, b = gradients(0, 5), gradients(1, 12)
    groups = [TokenWeight(quantile=1.0, groups=3, group=group) for group in range(3)]

    assert [statistic.rows(5) for statistic in groups] == [slice(0, 1), slice(1, 3), slice(3, 5)]
    for statistic in groups:
        rows = [[part[:, statistic.rows(part.shape[1])] for part in parts] for parts in (a, b)]
        whole = TokenWeight(quantile=1.0).weights([seen(TokenWeight(quantile=1.0), parts) for parts in rows])
        found = statistic.weights([seen(statistic, a), seen(statistic, b)])
        assert all(torch.equal(found[tokens][0], whole[tokens][0]) for tokens in whole)


def test_a_group_without_outputs_weights_all_tokens_alike():
    statistic = TokenWeight(groups=4, group=0)

    assert torch.equal(statistic.weights([seen(statistic, [torch.ones(5, 1)])])[Tokens(0)][0], torch.ones(5))


def test_a_group_that_is_none_of_them_is_refused():
    with pytest.raises(ValueError, match="0 to 1, of 2 groups; got 2"):
        TokenWeight(groups=2, group=2)


def test_tokens_without_any_gradient_count_alike():
    found = TokenWeight().weights([seen(TokenWeight(), [torch.zeros(5, 4)])])

    assert torch.equal(found[Tokens(0)][0], torch.ones(5))


@pytest.mark.parametrize("statistic", [Gamma(), TokenWeight()])
def test_a_value_comes_back_from_its_tensors_bit_for_bit(statistic):
    value = statistic.update_with_gradient(None, gradients(0, 4)[0], Tokens(0, 0, torch.arange(5)))

    again = statistic.from_tensors(statistic.to_tensors(value))

    one, other = statistic.to_tensors(value), statistic.to_tensors(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tokens_of_an_expert_are_found_by_their_places_and_new_ones_count_one():
    store, statistic = GradientStore(), TokenWeight(quantile=1.0)
    store.see("expert", [statistic], torch.tensor([[1.0], [3.0]]), Tokens(0, 0, torch.tensor([2, 5])))

    found = store.weight(["expert"], statistic, torch.zeros(3, 8), Tokens(0, 0, torch.tensor([2, 4, 5])))

    torch.testing.assert_close(found, torch.tensor([0.2, 1.0, 1.8]))


def test_other_tokens_than_in_the_reverse_sweep_are_refused():
    store, statistic = GradientStore(), TokenWeight()
    store.see("layer", [statistic], torch.ones(4, 2), Tokens(0))

    with pytest.raises(CalibrationError, match="layer reads other tokens of batch 0"):
        store.weight(["layer"], statistic, torch.zeros(3, 8), Tokens(0))
