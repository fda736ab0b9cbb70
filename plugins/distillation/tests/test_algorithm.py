"""Losses of distillation."""

import math

import pytest
import torch
from torch.nn import functional

from coldpress_distillation.algorithm import kl_divergence, square_head


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_that_of_the_definition(temperature):
    student, teacher = random(0, 600, 40), random(1, 600, 40)

    p, q = ((x.double() / temperature).softmax(-1) for x in (teacher, student))

    wanted = temperature**2 * (p * (p.log() - q.log())).sum()
    assert kl_divergence(student, teacher, temperature=temperature).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_its_gradient_is_the_difference_of_probabilities():
    student, teacher = random(0, 8, 30).requires_grad_(), random(1, 8, 30)

    kl_divergence(student, teacher).backward()

    torch.testing.assert_close(student.grad, (student.softmax(-1) - teacher.softmax(-1)).detach(), atol=1e-6, rtol=1e-5)


def test_at_high_temperature_it_is_half_the_squared_difference_of_logits():
    student, teacher = random(0, 5, 20), random(1, 5, 20)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))

    found = kl_divergence(student.double(), teacher.double(), temperature=100.0)

    assert found.item() == pytest.approx(centred.square().sum().item() / 2 / 20, rel=0.05)


def test_equal_models_do_not_diverge_and_have_no_gradient():
    x = random(0, 9, 30).requires_grad_()

    for settings in ({}, {"top_k": 4}, {"temperature": 2.0}):
        (gradient,) = torch.autograd.grad(kl_divergence(x, x.detach(), **settings), x)
        assert gradient.abs().max() < 1e-5
    assert kl_divergence(x, x.detach()).item() == pytest.approx(0.0, abs=1e-5)


def test_what_is_not_among_the_top_is_one_class():
    student, teacher = torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[math.log(5), 0.0, 0.0, 0.0]])

    found = kl_divergence(student, teacher, top_k=1)

    wanted = 5 / 8 * math.log(5 / 8 / 0.25) + 3 / 8 * math.log(3 / 8 / 0.75)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_all_of_the_top_are_all():
    student, teacher = random(0, 9, 30), random(1, 9, 30)

    assert torch.equal(kl_divergence(student, teacher, top_k=30), kl_divergence(student, teacher))


def test_fewer_classes_tell_less():
    student, teacher = random(0, 9, 30), random(1, 9, 30)

    found = [kl_divergence(student, teacher, top_k=k).item() for k in (1, 4, 16, 30)]

    assert found == sorted(found)  # the data processing inequality


def test_square_head_does_not_depend_on_the_size_of_hidden_states():
    student, teacher = random(0, 7, 16), random(1, 7, 16)

    found = square_head(student, teacher)

    assert square_head(student * 40, teacher * 40).item() == pytest.approx(found.item(), rel=1e-5)
    assert found.item() == pytest.approx((functional.mse_loss(student, teacher) / teacher.square().mean()).item())
    assert square_head(teacher, teacher) == 0
