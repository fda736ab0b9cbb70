"""Lifecycles: everything of a recipe that acts in training, on one model, from attach to detach."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coldpress.attachment import attachments_on
from coldpress.bases.quantized_training import QuantizedTraining, QuantizedWeight, is_trained_quantized
from coldpress.errors import ArgumentError, CheckpointError, ModelError, RecipeError, TargetError
from coldpress.lifecycle import Lifecycle, Training
from coldpress.modifier import Modifier, expanded
from coldpress.stage import Layer, Stage
from coldpress.training.forward import ForwardHook
from coldpress.training.teacher import check_teacher, freeze

log = logging.getLogger(__name__)

_SAVE = "save_pretrained"
_PACKED = ("weight_packed", "qweight")  # of compressed-tensors, of GPTQ and AWQ


class Lifecycles:
    """What modifiers do while one model is trained.

    Layers that are quantized and that no modifier of the recipe trains are trained on their grids, with the scales that
    they have: a model that came quantized stays so.

    Args:
        modifiers: of the recipe, in its order; each must act in training.
        model: to train, as the loop calls it.
        teacher: of distillation; None where there is none.

    Raises:
        RecipeError: a modifier does not act in training.
        ModelError: a teacher is missing or has another vocabulary.
        TargetError: a target matches nothing.
    """

    def __init__(self, modifiers: Sequence[Modifier], model: nn.Module, teacher: nn.Module | None = None) -> None:
        found = [(one, one.training()) for one in expanded(modifiers)]
        idle = [type(one).__name__ for one, lifecycle in found if lifecycle is None]
        if idle:
            raise RecipeError(
                [
                    f"{', '.join(idle)} calibrates and does not act in training: call coldpress.oneshot first, or "
                    "call coldpress.train, which does so before it trains"
                ]
            )
        check_trainable(model)
        self.training = Training(model=model, teacher=teacher)
        self.all: list[Lifecycle] = [lifecycle for _, lifecycle in found if lifecycle is not None]
        self._modifiers = [one for one, _ in found]
        self._hook: ForwardHook | None = None
        self._save: Any = None
        needy = [type(m).__name__ for m, lifecycle in found if lifecycle is not None and lifecycle.needs_teacher]
        if needy and teacher is None:
            raise ModelError(f"{needy[0]} needs a teacher: pass distill_teacher=, a model or the name of one")
        if teacher is not None:
            check_teacher(teacher, model)
        self._check_targets()

    @property
    def attached(self) -> bool:
        """Whether the model is in training."""
        return self._hook is not None

    def attach(self) -> None:
        """Begin; before the optimizer is made, which must have parameters that are learned.

        Raises:
            ColdpressError: the model cannot be trained so; it is as it was then.
        """
        done: list[Lifecycle] = []
        try:
            for lifecycle in [*self.all, QuantizedTraining(_left)]:
                done.append(lifecycle)
                lifecycle.attach(self.training)
        except BaseException:
            for lifecycle in reversed(done):
                lifecycle.detach(self.training)
            raise
        self.all = done
        if self.training.teacher is not None:
            freeze(self.training.teacher)  # when nothing is refused any more
        self._save = vars(self.training.model).pop(_SAVE, None)  # checkpoints on the way hold dense weights
        self._hook = ForwardHook(self.training, self.all)
        self._hook.install()

    def check_optimizer(self, optimizer: Any) -> None:
        """Refuse an optimizer that does not have all parameters that are learned.

        Raises:
            ArgumentError: it was made before `attach`.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        learned = [parameter for lifecycle in self.all for parameter in lifecycle.learned()]
        if any(id(parameter) not in there for parameter in learned) and not _are_sharded(self.training.model):
            raise ArgumentError(
                f"the optimizer was made before {len(learned)} learned scales were there, and would not move them: "
                "attach first (in a Trainer, pass callbacks=[...] when it is made), then make the optimizer"
            )

    def begin_step(self) -> None:
        """Before the first batch of an optimizer step."""
        if self._hook is not None:
            self._hook.begin_step()

    @torch.no_grad()
    def step(self) -> None:
        """After an optimizer step, before anything reads the weights; `training` says which."""
        if self._hook is not None:
            self._hook.check_loss()
        for lifecycle in self.all:
            lifecycle.step(self.training)
        self.begin_step()

    def loss(self, output: Any, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
        """The loss of a batch on which the model was called without labels."""
        if self._hook is None:
            raise ArgumentError("attach first: the loss is that of a model in training")
        return self._hook.loss(output, labels, num_items)

    def detach(self) -> None:
        """End: the model is plain again, and quantized layers have the codes of their new weights."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        for lifecycle in reversed(self.all):
            lifecycle.detach(self.training)
        if self._save is not None:
            vars(self.training.model)[_SAVE] = self._save

    def state_dict(self) -> dict[str, Tensor]:
        """What must be kept beside the weights so that a run can go on."""
        return {
            prefix + name: tensor.contiguous()
            for prefix, lifecycle in self._prefixed()
            for name, tensor in lifecycle.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, after `attach`.

        Raises:
            CheckpointError: it is that of another recipe; nothing is loaded.
        """
        own = self.state_dict().keys()
        prefixes = tuple(prefix for prefix, _ in self._prefixed())
        other = [*sorted(own - state.keys()), *(key for key in sorted(state) if not key.startswith(prefixes))]
        if other:
            has = "has no" if other[0] in own else "has"
            raise CheckpointError(
                f"the checkpoint is that of another recipe, as it {has} {other[0]!r}: go on with the recipe that it "
                "was made with, or begin anew"
            )
        for prefix, lifecycle in self._prefixed():
            lifecycle.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _prefixed(self) -> list[tuple[str, Lifecycle]]:
        """What the keys of each begin with: its place in the recipe, and what it is."""
        return [(f"{number}:{type(one).__name__}:", one) for number, one in enumerate(self.all)]

    def _check_targets(self) -> None:
        stage = self.training.stage()
        for modifier in self._modifiers:
            missed = [pattern for pattern in modifier.patterns() if not modifier.matching(pattern, stage)]
            if missed:
                raise TargetError(f"{type(modifier).__name__}: the target {missed[0]!r} matches no layer of the model")


def check_trainable(model: nn.Module) -> None:
    """Refuse a model whose weights are codes, which no gradient moves, or one without anything to train.

    Raises:
        ModelError: says how to load it.
    """
    for name, module in model.named_modules():
        packed = [part for part in _PACKED if part in {**module._parameters, **module._buffers}]
        if packed or (getattr(module, "quantization_scheme", None) is not None):
            raise ModelError(
                f"{name} holds packed weights ({(packed or ['quantization_scheme'])[0]}), which cannot be trained as "
                "they are: load the folder with coldpress.load_model, which decodes it and keeps its schemes"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("no parameter of the model requires a gradient, so there is nothing to train")


def _left(stage: Stage) -> list[Layer]:
    """Quantized layers that no modifier trains on their grid."""
    return [
        layer
        for layer in stage.every_layer
        if is_trained_quantized(layer)
        and not any(isinstance(one, QuantizedWeight) for one in attachments_on(layer.module))
    ]


def _are_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
