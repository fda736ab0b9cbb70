"""What a reverse sweep has found: statistics of output gradients, by layer."""

from collections.abc import Mapping, Sequence

import torch
from attrs import define, field
from torch import Tensor

from coldpress.errors import CalibrationError
from coldpress.statistic import GradientStatistic, Tokens

Weights = Mapping[Tokens, tuple[Tensor, Tensor | None]]


@define(eq=False)
class GradientStore:
    """Statistics of the gradient of the loss by the outputs of layers; they last for the whole run.

    Attributes:
        values: by the name of the layer and the statistic.
    """

    values: dict[tuple[str, GradientStatistic], object] = field(factory=dict)
    _weights: dict[tuple[GradientStatistic, tuple[str, ...]], Weights] = field(factory=dict)

    def see(self, name: str, statistics: Sequence[GradientStatistic], gradient: Tensor, tokens: Tokens) -> None:
        """Take in the gradient of one call of a layer, [T, O]."""
        for statistic in statistics:
            key = name, statistic
            self.values[key] = statistic.update_with_gradient(self.values.get(key), gradient, tokens)

    def value(self, name: str, statistic: GradientStatistic) -> object | None:
        """What was found of a layer; None where no token reached it."""
        return self.values.get((name, statistic))

    def weight(self, names: Sequence[str], statistic: GradientStatistic, x: Tensor, tokens: Tokens) -> Tensor:
        """What each token of an input counts, [T] float32.

        Args:
            names: of the layers that read the input.
            statistic: that says it.
            x: the input, [T, I].
            tokens: which these are.

        Raises:
            CalibrationError: the reverse sweep saw other tokens, or nothing says which tokens these are.
        """
        if tokens.places is not None and len(tokens.places) != len(x):
            raise CalibrationError(
                f"{names[0]} sees tokens sorted by expert, so it is not known which of them count how much: leave "
                "guidance out, or ignore the layer"
            )
        whole, places = self._weights_of(tuple(names), statistic).get(tokens, (None, None))
        if whole is None or tokens.places is not None or places is not None:
            return _at_places(whole, places, tokens.places, x)
        if len(whole) != len(x):
            raise CalibrationError(
                f"{names[0]} reads other tokens of batch {tokens.batch} than in the reverse sweep: no weight is known"
            )
        return whole.to(x.device)

    def keep_experts(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Experts have other numbers now; what was found of those that are gone is forgotten.

        Args:
            kept: name of each module of experts to the numbers, in order, of those that stay.
        """
        moved = {f"{home}.{old}.": f"{home}.{new}." for home, stay in kept.items() for new, old in enumerate(stay)}
        found: dict[tuple[str, GradientStatistic], object] = {}
        for (name, statistic), value in self.values.items():
            home = next((one for one in kept if name.startswith(f"{one}.")), None)
            expert = "" if home is None else f"{home}.{name[len(home) + 1 :].partition('.')[0]}."
            if not expert or expert in moved:
                found[moved.get(expert, "") + name.removeprefix(expert), statistic] = value
        self.values = found
        self._weights.clear()

    def to_tensors(self) -> tuple[list[list[str]], dict[str, Tensor]]:
        """Everything, for `fill`: names of layers and statistics, and tensors."""
        names, tensors = [], {}
        for number, ((name, statistic), value) in enumerate(self.values.items()):
            names.append([name, repr(statistic)])
            tensors.update({f"{number} {key}": tensor for key, tensor in statistic.to_tensors(value).items()})
        return names, tensors

    def fill(
        self,
        names: Sequence[Sequence[str]],
        tensors: Mapping[str, Tensor],
        wanted: Mapping[str, Sequence[GradientStatistic]],
        device: torch.device,
    ) -> None:
        """Take in what `to_tensors` gave.

        Args:
            names: of layers and statistics.
            tensors: of all of them.
            wanted: the statistics of each layer.
            device: where they were.
        """
        parts: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(names))}
        for key, tensor in tensors.items():
            number, _, own = key.partition(" ")
            parts[int(number)][own] = tensor.to(device)
        for (name, described), own_tensors in zip(names, parts.values(), strict=True):
            statistic = next(one for one in wanted[name] if repr(one) == described)
            self.values[name, statistic] = statistic.from_tensors(own_tensors)

    def _weights_of(self, names: tuple[str, ...], statistic: GradientStatistic) -> Weights:
        key = statistic, names
        if key not in self._weights:
            if len(self._weights) > 64:  # of stages that are done
                self._weights.clear()
            found = [self.values[name, statistic] for name in names if (name, statistic) in self.values]
            self._weights[key] = statistic.weights(found) if found else {}
        return self._weights[key]


def _at_places(whole: Tensor | None, known: Tensor | None, wanted: Tensor | None, x: Tensor) -> Tensor:
    """Weights of tokens at some places, [T]; 1, the mean, for those that no layer saw in the reverse sweep.

    These are tokens that a router gives to an expert which others had in the original model.
    """
    if whole is None:
        return torch.ones(len(x), device=x.device)
    known = torch.arange(len(whole), device=x.device) if known is None else known.to(x.device)
    wanted = torch.arange(len(x), device=x.device) if wanted is None else wanted.to(x.device)
    table = torch.ones(int(max(known.max(), wanted.max())) + 1, device=x.device)
    table[known] = whole.to(x.device)
    return table[wanted]
