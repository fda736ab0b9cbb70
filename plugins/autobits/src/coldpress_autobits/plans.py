"""Units, plans of them, how far a plan is from the original, and how a plan looks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from attrs import field, frozen
from torch import Tensor, nn

from coldpress.plugin import FusedLayers, Layer, Modifier, Stage, State, counted_tokens, siblings, simulated
from coldpress_autobits.noise import InputNoise

_CHUNK = 128  # tokens whose log-probabilities are held at once


@frozen(eq=False)
class Unit:
    """Layers that must have one scheme.

    Attributes:
        layers: their names.
        options: indices of the candidates that fit all of them.
        costs: the rise of KL a token by each option.
        sizes: bytes by each option.
        weights: how many they have.
    """

    layers: tuple[str, ...]
    options: tuple[int, ...]
    costs: tuple[float, ...]
    sizes: tuple[int, ...]
    weights: int

    @classmethod
    def of(cls, names: Sequence[str], measured: Sequence[Mapping[str, Any]]) -> "Unit":
        """The sums over some layers."""
        count = len(measured[0]["sizes"])
        options = tuple(i for i in range(count) if all(one["sizes"][i] is not None for one in measured))
        costs = tuple(sum(one["costs"][i] for one in measured) for i in options)
        sizes = tuple(sum(one["sizes"][i] for one in measured) for i in options)
        return cls(tuple(names), options, costs, sizes, sum(one["weights"] for one in measured))

    @property
    def name(self) -> str:
        """Of its first layer, and how many more there are."""
        more = len(self.layers) - 1
        return self.layers[0] + (f" and {more} more" if more else "")


@frozen(eq=False)
class Choice:
    """What a unit gets.

    Attributes:
        unit: which.
        place: in its options.
    """

    unit: Unit
    place: int

    @property
    def option(self) -> int:
        """The index of the candidate."""
        return self.unit.options[self.place]


@frozen(eq=False)
class Plan:
    """A choice for every unit.

    Attributes:
        name: how it was found.
        choices: of all units.
        kl: from the original on calibration tokens; None where it was not measured.
    """

    name: str
    choices: Sequence[Choice]
    kl: float | None = field(default=None)

    @property
    def options(self) -> list[int]:
        """The candidate of each unit."""
        return [choice.option for choice in self.choices]

    @property
    def nbytes(self) -> int:
        """Of all units."""
        return sum(choice.unit.sizes[choice.place] for choice in self.choices)

    @property
    def predicted(self) -> float:
        """The sum of the costs."""
        return sum(choice.unit.costs[choice.place] for choice in self.choices)

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "bits": round(8 * self.nbytes / sum(choice.unit.weights for choice in self.choices), 4),
            "nbytes": self.nbytes,
            "predicted_kl": self.predicted,
            "measured_kl": self.kl,
        }


def together(state: State, modifier: Modifier, layers: Mapping[str, Any]) -> list[list[str]]:
    """Names of layers in groups that must have one scheme, in model order."""
    fused, parents = state.fact(FusedLayers), {name: name for name in layers}

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    def join(a: str, others: Iterable[str]) -> None:
        for other in others:
            if other in parents:
                parents[root(other)] = root(a)

    homes: dict[str, str] = {}
    for layer in modifier.layers(Stage.whole(state.model)):
        if layer.name in parents:
            join(layer.name, (one.name for one in fused.beside(layer)))
            if siblings(state.model, layer):  # an expert's: all projections of all experts
                home = layer.name.rpartition(".")[0].rpartition(".")[0]
                join(layer.name, [homes.setdefault(home, layer.name)])
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def divergence_of(
    state: State, weights: Mapping[Layer, Tensor], noises: Mapping[Layer, InputNoise], tokens: int
) -> float:
    """Mean KL from the original to the model with other weights and rounded inputs, on the last calibration tokens.

    Args:
        state: with the model in memory and the batches, whose padding does not count.
        weights: of each layer, [O, I], in the dtype of its own.
        noises: how the inputs of layers are rounded, where they are.
        tokens: how many at least, if there are so many.
    """
    total, count, device = 0.0, 0, next(state.model.parameters()).device
    for batch in reversed(state.batches):
        inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        wanted = state.model(**inputs).logits  # [B, S, vocabulary]
        with simulated(weights), _rounded_inputs(noises):
            logits = state.model(**inputs).logits
        mask = counted_tokens(wanted, batch)
        pair = [one.flatten(0, 1) if mask is None else one[mask.to(one.device)] for one in (wanted, logits)]
        for part, other in zip(*(one.split(_CHUNK) for one in pair), strict=True):
            log_p, log_q = part.float().log_softmax(-1), other.float().log_softmax(-1)
            total += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
            count += len(part)
        if count >= tokens:
            break
    return total / max(count, 1)


@contextmanager
def _rounded_inputs(noises: Mapping[Layer, InputNoise]) -> Iterator[None]:
    """Inside, layers see their inputs rounded."""

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], noise: InputNoise) -> tuple[Tensor, ...]:
        x, *others = inputs
        return noise.rounded(x.flatten(0, -2)).view_as(x), *others

    with ExitStack() as hooks:
        for layer, noise in noises.items():
            hooks.callback(layer.module.register_forward_pre_hook(partial(seen, noise=noise)).remove)
        yield


def picture(value: Mapping[str, Any], names: Sequence[str]) -> str:
    """What was chosen, as Markdown: plans, and a line for each block with a sign for each of its layers.

    Args:
        value: of the decision.
        names: of the candidates, in words.
    """
    signs = "".join("0123456789abcdefghijklmnopqrstuvwxyz"[i] for i in range(len(names)))
    counts = Counter(value["layers"].values())
    bits, plan, whole = value["bits"], value["plan"], value["whole_nbytes"]
    lines = ["# Bits", "", f"{bits} bits a weight, plan {plan!r}; {whole:,} bytes with all other weights.", ""]
    lines += ["| plan | bits | predicted KL | measured KL |", "|---|--:|--:|--:|"]
    for one in value["plans"]:
        kl = "" if one["measured_kl"] is None else f"{one['measured_kl']:.4f}"
        lines.append(f"| {one['name']} | {one['bits']} | {one['predicted_kl']:.4f} | {kl} |")
    lines += ["", "| sign | scheme | layers |", "|---|---|--:|"]
    lines += [f"| {signs[i]} | {name} | {counts[i]} |" for i, name in enumerate(names)]
    blocks: dict[str, dict[str, int]] = {}
    for name, option in value["layers"].items():
        head, own = _split(name)
        blocks.setdefault(head, {})[own] = option
    columns = list(dict.fromkeys(own for block in blocks.values() for own in block))
    lines += ["", f"| block | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for head, block in blocks.items():
        lines.append(f"| {head} | {' | '.join(signs[block[own]] if own in block else '' for own in columns)} |")
    lines += ["", "What each candidate was expected to cost, in KL a token, by the first layer of a unit:", ""]
    lines += [f"- `{name}`: " + ", ".join(f"{one:.3g}" for one in costs) for name, costs in value["costs"].items()]
    return "\n".join(lines) + "\n"


def _split(name: str) -> tuple[str, str]:
    """The name of a block, up to its number, and what is inside."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    cut = numbers[0] + 1 if numbers else len(parts) - 1
    return ".".join(parts[:cut]) or name, ".".join(parts[cut:]) or name
