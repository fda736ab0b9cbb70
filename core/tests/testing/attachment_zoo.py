"""Attachments to try the kit on: three that keep every promise, and several that break exactly one."""

from collections.abc import Callable
from typing import ClassVar

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from coldpress.plugin import Attachment


@frozen(kw_only=True)
class GoodClamp(Attachment):
    """Limits outputs.

    Attributes:
        most: largest magnitude.
    """

    kind: ClassVar[str] = "good_clamp"

    most: float = 1.5

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        return y.clamp(-self.most, self.most)


@frozen(kw_only=True)
class GoodScale(Attachment):
    """Inputs times what lies beside the weight."""

    kind: ClassVar[str] = "good_scale"

    def buffers(self):
        return ("input_factor",)

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        return x * module.input_factor.to(x.dtype)


@frozen(kw_only=True)
class GoodKeys(Attachment):
    """Keys, a little larger."""

    kind: ClassVar[str] = "good_keys"

    def attention(self, module, states):
        return evolve(states, keys=states.keys * 1.25)


def factors(module: nn.Module) -> dict[str, Tensor]:
    """Buffers of `GoodScale`."""
    return {"input_factor": torch.linspace(0.5, 2, module.weight.shape[1])}


@frozen(kw_only=True)
class Undocumented(GoodClamp):
    """Has a secret."""

    secret: int = 0


@frozen(kw_only=True)
class Nameless(GoodClamp):
    """Cannot be found again."""

    kind: ClassVar[str] = ""


@frozen(kw_only=True)
class Idle(Attachment):
    """Does nothing."""

    kind: ClassVar[str] = "idle"


@frozen(kw_only=True)
class RecordsSomethingElse(GoodClamp):
    """Is recalled as another one."""

    def to_record(self):
        return {"most": self.most / 2}


@frozen(kw_only=True)
class StaysInFloat32(GoodClamp):
    """Computes in float32, and stays there."""

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        return y.float().clamp(-self.most, self.most)


@frozen(kw_only=True)
class ClampsInPlace(GoodClamp):
    """Saves memory in the wrong place."""

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        return y.detach().clamp_(-self.most, self.most) + (y - y.detach())


@frozen(kw_only=True)
class HoldsAFunction(GoodClamp):
    """Keeps what no pickle holds.

    Attributes:
        how: what is done.
    """

    how: Callable[[Tensor], Tensor] = field(factory=lambda: lambda y: y.clamp(-1, 1))

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        return self.how(y)

    def to_record(self):
        return {}


@frozen(kw_only=True)
class LeavesHook(GoodClamp):
    """Hooks the module that it acts on, once."""

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        if not module._backward_hooks:
            module.register_full_backward_hook(_nothing)
        return y.clamp(-self.most, self.most)


def _nothing(*_: object) -> None:
    """What is called in a backward pass."""


@frozen(kw_only=True)
class StopsGradients(GoodClamp):
    """Lets nothing through."""

    def outputs(self, module: nn.Module, y: Tensor) -> Tensor:
        return y.detach().round()


GOOD: tuple[type[Attachment], ...] = (GoodClamp, GoodKeys)

# class -> the one check that it fails
BAD: dict[type[Attachment], str] = {
    Undocumented: "settings_class",
    Nameless: "acts",
    Idle: "acts",
    RecordsSomethingElse: "recorded",
    StaysInFloat32: "keeps_the_form",
    ClampsInPlace: "writes_into_nothing",
    HoldsAFunction: "goes_with_the_model",
    LeavesHook: "can_be_taken_off",
    StopsGradients: "passes_gradients",
}
