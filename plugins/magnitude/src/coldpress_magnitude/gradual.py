"""GradualPruning: magnitude pruning while a model is trained, mask by mask."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coldpress.plugin import MaskedTraining, SchemeError, Training
from coldpress_magnitude.algorithm import scheduled_sparsity, smallest_of_all

if TYPE_CHECKING:
    from coldpress_magnitude.modifier import MagnitudePruningModifier

_UPDATES = 20  # masks between start and end, where `update` does not say how many


class GradualPruning(MaskedTraining):
    """Masks that cover more weights from update to update; what is covered once stays so.

    Args:
        modifier: whose layers, and on what schedule.
    """

    def __init__(self, modifier: "MagnitudePruningModifier") -> None:
        super().__init__()
        self._modifier = modifier
        self._updates = torch.zeros((), dtype=torch.long)  # masks that were made

    def attach(self, training: Training) -> None:
        """See that the structure fits; masks come with the steps.

        Raises:
            SchemeError: names the layer that the structure does not divide.
        """
        modifier = self._modifier
        modifier.check_structure(training.stage())
        if modifier.apply_globally and modifier.mask_structure != "unstructured":
            raise SchemeError(
                f"apply_globally ranks single weights, and mask_structure is {modifier.mask_structure!r}: choose one"
            )
        self.claim(modifier.layers(training.stage()))

    def step(self, training: Training) -> None:
        """Make the mask that is due, and put zeros back.

        Raises:
            SchemeError: the schedule does not fit the training, or its epochs are not counted.
        """
        modifier, (epoch, end) = self._modifier, self._times(training)
        last = training.num_steps is not None and training.step >= training.num_steps
        progress = 1.0 if last else self._progress(epoch, end)
        due = _UPDATES if modifier.update is None else max(round((end - modifier.start) / modifier.update), 1)
        number = 0 if progress < 0 else 1 + int(min(progress, 1.0) * due + 1e-9)
        if number > int(self._updates):
            self._updates = torch.tensor(number)
            self._prune(min((number - 1) / due, 1.0))
        self.apply()
        total = sum(layer.weight.numel() for layer in self.layers)
        training.metrics["sparsity"] = sum(int(gone.sum()) for gone in self.gone.values()) / total

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, and how many were made."""
        return {**super().state_dict(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Both as they were."""
        self._updates = state["updates"]
        super().load_state_dict(state)

    def _times(self, training: Training) -> tuple[float, float]:
        """The epoch that it is, and that of the last mask."""
        start, end, whole = self._modifier.start, self._modifier.end, training.num_epochs
        if end is None and whole is None:
            raise SchemeError("end is missing: the length of training is not known, say at which epoch pruning ends")
        if training.epoch is None:
            raise SchemeError(
                "epochs are not counted, so no mask would ever be due: pass num_steps and num_epochs to attach, or "
                "epoch to step"
            )
        last = end if end is not None else whole
        assert last is not None
        if whole is not None and (start >= whole or last > whole + 1e-6):
            raise SchemeError(
                f"masks from start={start:g} to end={last:g} do not fit into the {whole:.4g} epochs of training: lower "
                "them, or train longer"
            )
        return training.epoch, last

    def _progress(self, epoch: float, end: float) -> float:
        """Share of the schedule that is over; below 0 before it begins."""
        start = self._modifier.start
        if epoch < start:
            return -1.0
        return min((epoch - start) / (end - start), 1.0) if end > start else 1.0

    def _prune(self, progress: float) -> None:
        sharded = [layer.name for layer in self.layers if hasattr(layer.module._parameters["weight"], "device_mesh")]
        if sharded:
            raise SchemeError(
                f"{sharded[0]} is sharded (FSDP2), and which of its weights are smallest is seen in the whole of it: "
                "prune first, with coldpress.oneshot, and keep the zeros with ConstantPruningModifier"
            )
        modifier, share = self._modifier, self._share(progress)
        if modifier.apply_globally:
            assert share is not None
            masks = smallest_of_all([layer.weight for layer in self.layers], sparsity=share)
        else:
            masks = [(modifier.pruned(layer, share) == 0) for layer in self.layers]
        for layer, gone in zip(self.layers, masks, strict=True):
            self.mask(layer, gone)

    def _share(self, progress: float) -> float | None:
        modifier, goal = self._modifier, self._modifier.share()
        if goal is None:
            return None
        if modifier.update_scheduler == "multi_step":
            values: list[float] = [*modifier.scheduler_args["values"], goal]
            return values[min(int(progress * len(values)), len(values) - 1)]
        return scheduled_sparsity(
            progress,
            start=modifier.init_sparsity,
            end=goal,
            scheduler=modifier.update_scheduler,
            exponent=modifier.scheduler_args.get("exponent", 3.0),
        )
