"""Cross: a sum over tokens, that follows a signal which moves."""

import torch

from coldpress.testing import draw
from coldpress_gptq.cross import Cross

X, ORIGINAL = draw(30, 6), draw(30, 6, seed=1)


def test_it_is_the_product_of_the_difference_and_the_input():
    found = Cross().update_with_original(None, X.bfloat16(), ORIGINAL.bfloat16())

    x, original = X.bfloat16().double(), ORIGINAL.bfloat16().double()
    torch.testing.assert_close(found, ((original - x).t() @ x).float())


def test_equal_inputs_give_zero():
    assert not Cross().update_with_original(None, X, X).any()
