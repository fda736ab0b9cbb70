"""The tap: distinct inputs, padding, and a forward that ends where nobody looks any more."""

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from coldpress.calibration.tap import InputTap, StopForward
from coldpress.errors import CalibrationError, NumericsError
from coldpress.stage import Layer, find_layers


class Mesh(nn.Module):
    """Three layers on a path that the caller chooses."""

    def __init__(self, path) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.path = path
        self.finished = 0

    def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
        out = self.path(self, x)
        self.finished += 1
        return out


def layers_of(model: nn.Module) -> list[Layer]:
    return list(find_layers(model.named_modules()))


def sightings(model: nn.Module, *batches: Tensor, mask: Tensor | None = None):
    with torch.no_grad(), InputTap(layers_of(model)) as tap:
        found = []
        for index, x in enumerate(batches):
            with suppress(StopForward):
                model(x)
            found.append(tap.collect(index, {"attention_mask": mask}))
    return found


def straight(mesh: Mesh, x: Tensor) -> Tensor:
    return mesh.c(mesh.a(x) + mesh.b(x))


def x(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 4), generator=torch.Generator().manual_seed(seed))


def test_layers_that_are_handed_one_tensor_share_it():
    (seen,) = sightings(Mesh(straight), x())

    assert seen.calls["a"] == seen.calls["b"] != seen.calls["c"]
    assert len(seen.tokens) == 2


def test_equal_numbers_in_other_memory_are_another_input():
    (seen,) = sightings(Mesh(lambda mesh, x: mesh.c(mesh.a(x) + mesh.b(x.clone()))), x())

    assert seen.calls["a"] != seen.calls["b"]


def test_views_of_one_memory_are_other_inputs_if_they_differ():
    (seen,) = sightings(Mesh(lambda mesh, x: mesh.c(mesh.a(x[:1]) + mesh.b(x[1:]))), x())

    assert len(set(seen.calls.values())) == 3


def test_a_tensor_that_takes_the_place_of_a_dead_one_is_another_input():
    def path(mesh: Mesh, x: Tensor) -> Tensor:
        for layer in (mesh.a, mesh.b, mesh.c):
            layer(x * 2)  # freed at once; the allocator hands out the same memory again
        return x

    (seen,) = sightings(Mesh(path), x())

    assert len(set(seen.calls.values())) == 3


def test_a_layer_that_is_called_twice_saw_both():
    (seen,) = sightings(Mesh(lambda mesh, x: mesh.a(mesh.a(x))), x())

    assert len(seen.calls["a"]) == 2
    assert seen.batch().inputs["a"].shape == (12, 4)


def test_an_input_that_is_changed_in_place_afterwards_is_refused():
    def path(mesh: Mesh, x: Tensor) -> Tensor:
        y = x * 2
        return mesh.a(y) + y.add_(1)

    with pytest.raises(CalibrationError, match="changes the input of a in place"):
        sightings(Mesh(path), x())


def test_the_same_memory_with_other_numbers_is_another_input():
    def path(mesh: Mesh, x: Tensor) -> Tensor:
        y = x * 2
        mesh.a(y)
        y.add_(1)
        return mesh.b(y)

    with pytest.raises(CalibrationError, match="in place"):
        sightings(Mesh(path), x())


@pytest.mark.parametrize("flat", [False, True])
def test_padding_is_never_a_token(flat):
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    given = x()
    path = straight if not flat else lambda mesh, x: straight(mesh, x.flatten(0, 1))

    (seen,) = sightings(Mesh(path), given, mask=mask)

    assert torch.equal(seen.batch().inputs["a"], given[mask.bool()])
    assert seen.batch().inputs["c"].shape == (4, 4)


def test_layers_that_no_token_reached_are_not_in_a_sighting():
    (seen,) = sightings(Mesh(lambda mesh, x: mesh.a(x) + mesh.b(x[:0]).sum()), x())

    assert set(seen.calls) == {"a"}
    assert set(seen.batch().inputs) == {"a"}
    assert set(seen.batch(["b", "c"]).inputs) == set()


def test_a_batch_has_the_inputs_that_were_asked_for_without_a_copy():
    given = x()
    (seen,) = sightings(Mesh(straight), given)

    assert list(seen.batch(["a"]).inputs) == ["a"]
    assert seen.batch(["a"]).inputs["a"].data_ptr() == given.data_ptr()


def test_from_the_second_batch_on_a_forward_ends_in_front_of_the_last_layer():
    model = Mesh(straight)
    seen = sightings(model, x(0), x(1), x(2))

    assert model.finished == 1
    assert [list(one.calls) for one in seen] == [["a", "b", "c"]] * 3


def test_ending_early_never_changes_which_tokens_count():
    def turning(mesh: Mesh, x: Tensor) -> Tensor:
        order = (mesh.a, mesh.b, mesh.c) if x.sum() > 0 else (mesh.c, mesh.b, mesh.a)
        for layer in order:
            x = layer(x)
        return x

    data = [x(seed) for seed in range(8)]
    assert len({bool(part.sum() > 0) for part in data}) == 2
    model = Mesh(turning)

    early = sightings(model, *data)
    late = [sightings(model, part)[0] for part in data]

    assert 8 < model.finished < 16
    for one, other in zip(early, late, strict=True):
        a, b = one.batch().inputs, other.batch().inputs
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_layer_that_the_first_batch_did_not_reach_keeps_the_forward_going():
    model = Mesh(lambda mesh, x: mesh.b(mesh.a(x)) if x.sum() > 0 else mesh.c(mesh.b(mesh.a(x))))

    seen = sightings(model, x().abs(), -x().abs(), x().abs())

    assert model.finished == 3
    assert [list(one.calls) for one in seen] == [["a", "b"], ["a", "b", "c"], ["a", "b"]]


def test_a_layer_that_is_called_more_than_once_keeps_the_forward_going():
    model = Mesh(lambda mesh, x: mesh.c(mesh.b(mesh.a(mesh.a(x)))))

    sightings(model, x(), x())

    assert model.finished == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_names_layer_and_batch(bad):
    model = Mesh(lambda mesh, x: mesh.c(mesh.b(mesh.a(x) * (bad if x.sum() > 0 else 1))))

    with pytest.raises(NumericsError, match="the input of b has NaN or Inf in batch 1"):
        sightings(model, -x().abs(), x().abs())


def test_hooks_are_gone_whatever_happened():
    model = Mesh(straight)
    with pytest.raises(RuntimeError), InputTap(layers_of(model)):
        model(torch.zeros(1, 1, 5))

    assert not any(module._forward_pre_hooks for module in model.modules())


def test_padding_is_left_out_where_the_sequence_comes_first():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])

    (seen,) = sightings(Mesh(straight), x(0, 3, 2, 4), mask=mask)

    assert all(len(tokens) == 5 for tokens in seen.tokens.values())
