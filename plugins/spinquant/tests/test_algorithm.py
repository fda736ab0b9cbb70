"""Random numbers of rotations."""

import torch

from coldpress_spinquant.algorithm import seeded


def test_each_rotation_has_random_numbers_of_its_own_and_the_same_in_every_run():
    first, again, other = (torch.rand(3, generator=seeded(0, name)) for name in ("R1", "R1", "R2"))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
