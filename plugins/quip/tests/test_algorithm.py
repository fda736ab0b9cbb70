"""Incoherence: its bounds."""

import torch

from coldpress.numerics import rotation_of
from coldpress_quip.algorithm import expected_incoherence, incoherence


def test_it_is_one_where_all_entries_are_alike_and_largest_for_a_single_one():
    signs = torch.randint(0, 2, (8, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    single = torch.zeros(8, 16)
    single[3, 5] = 7.0

    assert abs(incoherence(signs) - 1) < 1e-6
    assert abs(incoherence(single) - 128**0.5) < 1e-4
    assert incoherence(torch.zeros(4, 4)) == 1


def test_random_rotations_on_both_sides_reach_the_bound():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(64, 128, generator=generator, dtype=torch.float64)
        weight[:, 3] *= 100
        weight[7] *= 100
        v = rotation_of(128, "random-hadamard", generator=generator)
        u = rotation_of(64, "random-hadamard", generator=generator)

        turned = u.apply(v.apply(weight).t()).t()  # U^T W V

        assert incoherence(turned) < expected_incoherence(64, 128) < incoherence(weight)
        torch.testing.assert_close(turned.norm(), weight.norm())
