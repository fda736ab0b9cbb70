"""The statistics store: one update for each distinct input; values follow transformations, or are lost."""

from typing import ClassVar

import pytest
import torch
from attrs import frozen
from torch import nn

from coldpress.calibration.store import StatisticStore
from coldpress.calibration.tap import BatchInputs
from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.plugin import Modifier, Needs, Statistic
from coldpress.stage import Layer
from coldpress.statistic import statistic_for
from coldpress.testing import draw

SEEN: list[tuple[int, ...]] = []


@frozen(kw_only=True)
class Counted(Statistic):
    """A sum, and a note of every update; it follows nothing."""

    def update(self, value, x):
        SEEN.append(tuple(x.shape))
        return x.sum(0) if value is None else value + x.sum(0)

    def merge(self, a, b):
        return a + b


@frozen(kw_only=True, eq=False)
class Reads(Modifier):
    """Needs data."""

    needed: ClassVar[Needs] = Needs(data=True)

    def needs(self):
        return self.needed


@frozen(kw_only=True, eq=False)
class NeedsNothing(Modifier):
    """Needs nothing."""


def layer(name, width=4):
    return Layer(name, nn.Linear(width, 2, bias=False), ("Linear",))


def collected(asks, *batches):
    """A store that was asked for statistics of layers, and has seen batches of {layer name: key} and tensors."""
    store, modifier = StatisticStore(), Reads()
    with store.requesting(modifier):
        for one, which in asks:
            store.request(one, which)
    store.begin([modifier])
    for index, (calls, tokens) in enumerate(batches):
        store.see(BatchInputs(index, {name: (key,) for name, key in calls.items()}, tokens))
    store.finish()
    return store


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


Q, K, UP = layer("q"), layer("k"), layer("up")


def test_layers_that_read_one_tensor_share_one_update_and_one_value():
    x, y = draw(5, 4, seed=1), draw(3, 4, seed=2)

    store = collected([(Q, Counted()), (K, Counted()), (UP, Counted())], ({"q": 0, "k": 0, "up": 1}, {0: x, 1: y}))

    assert SEEN == [(5, 4), (3, 4)]
    assert store.value(Q, Counted()) is store.value(K, Counted())
    torch.testing.assert_close(store.value(UP, Counted()), y.sum(0))
    assert [[one.name for one in group] for group in store.input_groups([Q, UP, K])] == [["q", "k"], ["up"]]


def test_layers_that_part_later_go_on_from_what_they_had_in_common():
    x, y, z = (draw(2, 4, seed=seed) for seed in range(3))

    store = collected([(Q, Counted()), (K, Counted())], ({"q": 0, "k": 0}, {0: x}), ({"q": 0, "k": 1}, {0: y, 1: z}))

    torch.testing.assert_close(store.value(Q, Counted()), (x + y).sum(0))
    torch.testing.assert_close(store.value(K, Counted()), (x + z).sum(0))
    assert len(store.input_groups([Q, K])) == 2


def test_each_layer_has_what_was_asked_for_it_and_what_no_token_reached_has_nothing():
    store = collected([(Q, "absmax"), (K, "mean"), (UP, "mean")], ({"q": 0, "k": 0}, {0: draw(3, 4)}))

    torch.testing.assert_close(store.value(Q, "absmax"), draw(3, 4).abs().amax(0))
    assert store.value(UP, "mean") is None
    with pytest.raises(LookupError, match=r"'mean' of q was not requested: call state.request"):
        store.value(Q, "mean")


def test_a_rescaling_is_followed_by_what_can_and_loses_the_rest():
    x, scale = draw(6, 4), torch.tensor([0.5, 2.0, 4.0, 1.0])
    store = collected([(Q, "second_moment"), (Q, Counted()), (K, "second_moment")], ({"q": 0, "k": 0}, {0: x}))

    store.rescale([Q], scale)

    torch.testing.assert_close(store.value(Q, "second_moment").mean, (x / scale).square().mean(0))
    torch.testing.assert_close(store.value(K, "second_moment").mean, x.square().mean(0))
    with pytest.raises(LookupError, match="of q cannot follow"):
        store.value(Q, Counted())
    assert store.has_moved(["q"])
    assert not store.has_moved(["k"])
    assert store.followed


def test_a_rotation_is_followed_by_gram_matrices_and_loses_magnitudes():
    x, rotation = draw(64, 4), torch.linalg.qr(draw(4, 4, seed=3)).Q
    store = collected([(Q, "gram"), (Q, "absmax")], ({"q": 0}, {0: x}))

    store.rotate([Q], rotation)

    expected = (x @ rotation).t() @ (x @ rotation)
    torch.testing.assert_close(
        store.value(Q, "gram").total.float(), expected, rtol=2e-2, atol=2e-2 * float(expected.max())
    )
    with pytest.raises(LookupError, match="'absmax' of q cannot follow"):
        store.value(Q, "absmax")


@pytest.mark.parametrize("scale", [[1.0, 0.0, 1.0, 1.0], [1.0, float("nan"), 1.0, 1.0]])
def test_a_scale_that_cannot_be_undone_is_refused(scale):
    store = collected([(Q, "absmax")], ({"q": 0}, {0: draw(3, 4)}))

    with pytest.raises(ValueError, match="finite and nowhere zero"):
        store.rescale([Q], torch.tensor(scale))


def test_what_was_changed_without_a_word_is_lost_whole():
    store = collected([(Q, "gram"), (K, "mean")], ({"q": 0, "k": 0}, {0: draw(3, 4)}))

    store.lose()

    for one, which in ((Q, "gram"), (K, "mean")):
        with pytest.raises(LookupError, match="cannot follow"):
            store.value(one, which)


def test_another_sweep_collects_what_its_modifiers_asked_for_and_begins_anew():
    store, first, second = StatisticStore(), Reads(), Reads()
    for modifier, which in ((first, "absmax"), (second, Counted())):
        with store.requesting(modifier):
            store.request(Q, which)
            store.request(Q, which)  # twice is once

    for modifiers in ([first, second], [second]):
        wanted = store.begin(modifiers)
        store.see(BatchInputs(0, {"q": (0,)}, {0: draw(3, 4)}))
        store.finish()

    assert wanted == [Q]
    torch.testing.assert_close(store.value(Q, Counted()), draw(3, 4).sum(0))
    assert len(SEEN) == 2
    assert store.value(Q, "absmax") is None
    store.clear()
    with pytest.raises(LookupError):
        store.value(Q, Counted())


def test_a_request_that_contradicts_needs_or_layer_is_refused_by_the_modifier():
    store = StatisticStore()
    with (
        store.requesting(NeedsNothing()),
        pytest.raises(BrokenPluginError, match=r"NeedsNothing .* must say data=True"),
    ):
        store.request(Q, "absmax")

    @frozen(kw_only=True)
    class Compares(Counted):
        needs_original_inputs: ClassVar[bool] = True

    with store.requesting(Reads()), pytest.raises(BrokenPluginError, match="must say original_inputs=True"):
        store.request(Q, Compares())
    embedding = Layer("embed", nn.Embedding(4, 4), ("Embedding",))
    with store.requesting(Reads()), pytest.raises(CalibrationError, match="embed is called with token ids"):
        store.request(embedding, "absmax")


def test_what_all_layers_took_is_forgotten_and_refuses_to_be_read_again():
    store = collected([(Q, Counted()), (K, Counted()), (K, "gram")], ({"q": 0, "k": 0}, {0: draw(5, 4, seed=1)}))

    store.take(["q"], Counted())
    with pytest.raises(LookupError, match="of q was taken"):
        store.value(Q, Counted())
    assert store.value(K, Counted()) is not None  # it has not taken its own
    store.take(["k"], Counted())

    assert [[type(one) for one, _ in source.values] for source in store._sources] == [[type(statistic_for("gram"))]]
    assert store.value(K, "gram") is not None


def test_what_another_modifier_asked_for_is_kept():
    store, first, second = StatisticStore(), Reads(), Reads()
    for modifier in (first, second):
        with store.requesting(modifier):
            store.request(Q, Counted())
    store.begin([first, second])
    store.see(BatchInputs(0, {"q": (0,)}, {0: draw(5, 4, seed=1)}))
    store.finish()

    store.take(["q"], Counted())

    assert store.value(Q, Counted()) is not None
