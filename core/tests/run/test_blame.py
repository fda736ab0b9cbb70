"""Whose mistake an exception is: the plugin's, with its method, the hook, the stage and the layer."""

import importlib
import sys

import pytest
import torch
from attrs import frozen

from coldpress.errors import BrokenPluginError, CalibrationError
from coldpress.modifier import Modifier, Needs
from coldpress.plugin import Observer, Statistic, hookimpl
from coldpress.run.blame import blaming
from coldpress.schemes import QuantizationArgs
from coldpress.testing import run
from coldpress.testing.models import tiny_llama
from coldpress.testing.package import write_package
from coldpress.testing.rounding import Rounding
from coldpress.testing.trial import Parts

UP = "model.layers.1.mlp.up_proj"

SOURCE = '''
import torch
from attrs import frozen
from coldpress.plugin import Modifier, Needs, Observer, Statistic, hookimpl

def multiply(weight, other):
    return weight @ other

@frozen(kw_only=True, eq=False)
class Clumsy(Modifier):
    """Multiplies what does not fit."""

    @hookimpl
    def finalize(self, state, stage):
        for layer in self.layers(stage):
            state.set_weight(layer, multiply(layer.weight, layer.weight))

@frozen(kw_only=True)
class NoRange(Observer):
    """Forgets a method."""

    def update(self, statistic, x):
        return x

@frozen(kw_only=True)
class WrongRange(NoRange):
    """Has another shape in mind."""

    def range(self, statistic):
        return statistic.amin().reshape(1, 1, 1, 1), statistic.amax().reshape(1, 1, 1, 1)

@frozen(kw_only=True)
class Stumbles(Statistic):
    """Divides by nothing."""

    def update(self, value, x):
        return 1 / 0

def nothing(split=None):
    pass

def stumbles(split=None):
    return 1 / 0
'''

POINTS = {
    "coldpress.modifiers": {"Clumsy": "acme_clumsy:Clumsy"},
    "coldpress.observers": {"no_range": "acme_clumsy:NoRange", "wrong_range": "acme_clumsy:WrongRange"},
    "coldpress.statistics": {"stumbles": "acme_clumsy:Stumbles"},
    "coldpress.datasets": {"acme/nothing": "acme_clumsy:nothing", "acme/stumbles": "acme_clumsy:stumbles"},
}


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A package with one clumsy plugin of each kind."""
    write_package(tmp_path / "site", "acme_clumsy", SOURCE, POINTS, version="1.2")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield importlib.import_module("acme_clumsy")
    sys.modules.pop("acme_clumsy")


def rounding(**settings):
    return Rounding(**{"scheme": "W8A16", "group_size": -1, "targets": [UP], **settings})


def observed(**settings):
    """Rounds with the observer that it is given, which `Rounding` never asks."""

    class Observed(Rounding):
        @hookimpl
        def finalize(self, state, stage):
            for layer in self.layers(stage):
                state.set_quantized(layer, self.rounded(state, layer))

    return Observed(**{"scheme": "W8A16", "group_size": -1, "targets": [UP], **settings})


def test_a_hook_is_told_with_its_package_the_stage_and_the_layer(acme):
    with pytest.raises(
        BrokenPluginError,
        match=rf"^Clumsy.finalize \(acme-clumsy 1.2\) at model.layers.1, layer {UP}: RuntimeError: mat1 and mat2",
    ):
        run(acme.Clumsy(targets=[UP]))


def test_an_observer_is_to_blame_and_not_the_modifier_that_asks_it(acme):
    with pytest.raises(BrokenPluginError, match=r"^acme_clumsy.NoRange must implement range\(statistic\)$"):
        run(observed(weight_observer="no_range"))
    with pytest.raises(
        BrokenPluginError, match=r"the observer WrongRange gives a range of the shape \(1, 1, 1, 1\), .* \(256, 1\)"
    ):
        run(observed(weight_observer="wrong_range"))


@frozen(kw_only=True, eq=False)
class Asks(Modifier):
    """Requests a statistic, and reads it not.

    Attributes:
        which: its name.
    """

    which: str = "stumbles"

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def initialize(self, state, stage):
        for layer in self.layers(stage):
            state.request(layer, self.which)


def test_a_statistic_is_to_blame_while_batches_run(acme):
    with pytest.raises(
        BrokenPluginError, match=r"^Stumbles.update \(acme-clumsy 1.2\) at model.layers.1: ZeroDivision"
    ):
        run(Asks(targets=[UP]))


def test_a_data_set_that_gives_nothing_says_so(acme):
    from coldpress import oneshot

    for name, said in (("nothing", "gives None: its function must return rows"), ("stumbles", "ZeroDivisionError")):
        with pytest.raises(BrokenPluginError, match=rf"'acme/{name}' \(acme-clumsy 1.2\) .*{said}"):
            oneshot(tiny_llama(), [Asks(targets=[UP])], dataset=f"acme/{name}")


def test_a_pipeline_is_to_blame_for_what_it_raises():
    class Stumbling(Parts):
        def stages(self, state):
            yield from [1 / 0]

    with pytest.raises(BrokenPluginError, match=r"^Stumbling.stages: ZeroDivisionError: division by zero$"):
        run(rounding(), pipeline=Stumbling())


def test_our_own_errors_and_those_of_the_machine_stay_what_they_are():
    for error in (CalibrationError("too few tokens"), MemoryError("full"), OSError(28, "No space left on device")):
        with pytest.raises(type(error)), blaming():
            raise error


def test_an_exception_outside_of_hooks_and_plugins_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), blaming():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("one", "call", "said"),
    [
        (Observer(args=QuantizationArgs()), lambda one: one.merge(1, 2), r"Observer must implement merge\(a, b\)"),
        (Statistic(), lambda one: one.rescale(1, torch.ones(1)), r"or leave RESCALE out of supports"),
    ],
)
def test_a_base_method_says_what_must_be_implemented(one, call, said):
    with pytest.raises(BrokenPluginError, match=said):
        call(one)
