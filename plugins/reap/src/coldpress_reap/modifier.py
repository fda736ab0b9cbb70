"""REAPPruningModifier: settings and wiring of REAP."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, instance_of, optional
from torch import Tensor, nn

from coldpress.plugin import (
    DROPS_EXPERTS,
    CalibrationError,
    Decision,
    Layer,
    LayerReport,
    LinearExperts,
    ModelError,
    Modifier,
    Needs,
    Note,
    RoutedTokens,
    SchemeError,
    Stage,
    State,
    Statistic,
    TargetError,
    check_fewer_experts,
    counted_tokens,
    hookimpl,
    linear_experts,
    matches_name,
)
from coldpress_reap.algorithm import CRITERIA, count_kept, gate_scales, kept_experts, masses, saliency, sums, uneven
from coldpress_reap.router import Router, gates_of, minds_others, read_router, tells_all_gates

log = logging.getLogger(__name__)

GROUP = 2
"""Experts by which routers that choose among groups judge each of them."""


@frozen(kw_only=True)
class ExpertSums(Statistic):
    """Tokens, g |f|, |f| and |f|^2 of each expert, summed over tokens; its value is a tensor, [E, 4] float64."""

    sees_heads: ClassVar[bool] = True

    def update(self, value: Tensor | None, x: Tensor) -> Tensor:
        """Take in the tokens of `RoutedTokens`, [T, E, 2]."""
        seen = sums(x)
        return seen if value is None else value + seen

    def merges_batches(self) -> bool:
        """It does."""
        return True

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """The sums of both."""
        return a + b


@frozen(kw_only=True, eq=False)
class REAPPruningModifier(Modifier):
    """Drop the experts of every mixture of the model that add least; the others stay as they are.

    The model is looked at once, as it was, and then as many experts are dropped in every layer; routers, their biases
    and the configuration follow, and the other steps of the recipe work on the smaller model.

    Attributes:
        sparsity: share of the experts of a layer to drop, above 0 and below 1; rounded down, and so that as many of
            each group go where a router chooses among groups first.
        keep: how many experts of a layer stay, in place of `sparsity`.
        criterion: what an expert is worth, a mean over the tokens that its router sends it: `reap`, the weight that its
            output gets times the norm of that output; `man`, the norm; `msan`, its square.
        per_layer: `uniform`: as many experts of every layer go, which is all that configurations can say.
        rescale: where a router takes a softmax over all experts and does not renormalise, so that those which stay get
            larger weights than before, scale their down projections back, each by what its weight grew on average.
        report_path: a .json file that says which experts of each layer stay.
        ignore: modules of experts to leave alone; all or none, for the same reason.
    """

    traits: ClassVar[frozenset[str]] = frozenset({DROPS_EXPERTS})

    notes: ClassVar[tuple[Note, ...]] = (
        Note("criterion", "", "by which experts are ranked"),
        Note("kept", "", "numbers of the experts that stay"),
        Note("tokens_of_experts", "tokens", "that the router sent to each expert"),
        Note("saliency", "", "what each expert is worth by the criterion"),
        Note("saliency_kept", "of the sum", "share of that worth which stays"),
        Note("router_minds_others", "", "whether weights of experts that stay depend on those that are gone"),
        Note("rescaled_by", "", "factors of the down projections of the experts that stay"),
    )

    targets: list[str] = field(factory=list, converter=list)
    sparsity: float | None = field(default=None)
    keep: int | None = field(default=None, validator=optional(ge(1)))
    criterion: Literal["reap", "man", "msan"] = field(default="reap", validator=in_(CRITERIA))
    per_layer: Literal["uniform"] = field(default="uniform", validator=in_(("uniform",)))
    rescale: bool = field(default=False, validator=instance_of(bool))
    report_path: str | None = field(default=None)

    @sparsity.validator
    def _check_sparsity(self, attribute: object, value: Any) -> None:
        if value is not None and not 0 < value < 1:
            raise SchemeError(f"sparsity must be above 0 and below 1, got {value!r}")

    @keep.validator
    def _check_keep(self, attribute: object, value: Any) -> None:
        if (value is None) == (self.sparsity is None):
            raise SchemeError("say either sparsity, the share of experts to drop, or keep, how many of a layer stay")

    @report_path.validator
    def _check_report_path(self, attribute: object, value: Any) -> None:
        if value is not None and not str(value).endswith(".json"):
            raise SchemeError(f"report_path is a .json file, got {value!r}")

    def needs(self) -> Needs:
        """A look at the whole model on data; nothing afterwards."""
        return Needs(data=True, propagated_error=False, measuring_pass=True, measures_only=True, calls=self.rescale)

    def layers(self, stage: Stage) -> list[Layer]:
        """None: it drops modules, and changes no weight; with `rescale` the down projections of experts."""
        homes = [f"{name}." for name, _ in self._experts(stage)] if self.rescale else []
        down = [layer for layer in stage.every_layer if layer.name.endswith(".down_proj")]
        return [layer for layer in down if any(_is_of(layer.name, home) for home in homes)]

    def observes(self, stage: Stage) -> list[str]:
        """The modules of experts."""
        return [name for name, _ in self._experts(stage)]

    def check(self, state: State) -> None:
        """Refuse models without mixtures, or whose routers and experts do not allow what is asked.

        Raises:
            ColdpressError: names the layer and says what to do.
        """
        decided = state.decision(self)
        if decided is not None:  # they are gone, and an interrupted run knows of them from here
            state.report |= {line["name"]: LayerReport.from_dict(line) for line in decided["mixtures"]}
            return
        experts = {name: one for name, one in linear_experts(state.model).items() if one.layout.is_routed}
        self._check_experts(state, experts)
        for name, module in experts.items():
            self._check_router(name, module, self._router(state, name, module))
            if self.rescale:
                self._check_scalable(state, name, module)
        name, module = next(iter(experts.items()))
        check_fewer_experts(state, self._count(module.count, self._router(state, name, module).groups))

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Request what experts are sent and say, in the measuring pass."""
        if state.decision(self) is None:
            for name, module in self._experts(stage):
                state.request(RoutedTokens(name, module), ExpertSums())

    def measure(self, state: State, stage: Stage) -> dict[str, dict[str, list[list[float]]]]:
        """The sums of each expert, by the name of its module, and the masses of others where they matter."""
        found = {}
        for name, module in self._experts(stage):
            one = {"sums": state.require(RoutedTokens(name, module), ExpertSums()).tolist()}
            if self.rescale and self._minds(state, name, module):
                one["masses"] = self._masses(state, stage, name, module).tolist()
            found[name] = one
        return found

    def decide(self, state: State, measured: Sequence[dict[str, dict[str, list[list[float]]]]]) -> Decision:
        """The experts that stay, of every layer, and how they are scaled."""
        tables = {
            name: {kind: torch.tensor(table, dtype=torch.float64) for kind, table in one.items()}
            for stage in measured
            for name, one in stage.items()
        }
        totals = {name: one["sums"] for name, one in tables.items()}
        kept = {name: self._kept(state, name, one) for name, one in totals.items()}
        scales = {name: gate_scales(one["masses"], kept[name]) for name, one in tables.items() if "masses" in one}
        self._note(state, totals, kept, scales)
        if self.report_path is not None:
            path = Path(self.report_path).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        lines = [state.report[name].to_dict() for name in kept]
        return Decision(value={"mixtures": lines, "scales": scales}, kept_experts=kept)

    @hookimpl
    def finalize(self, state: State, stage: Stage) -> None:
        """Scale what the experts that stay say, where their router gives them more than before."""
        decided = state.decision(self)
        scales = {} if decided is None else decided["scales"]
        for layer in self.layers(stage):
            home, _, number = layer.name.removesuffix(".down_proj").rpartition(".")
            if home in scales:
                state.set_weight(layer, layer.weight.float() * scales[home][int(number)])
            else:
                state.skip(layer, "the weights that its router gives do not depend on experts that are gone")

    def _experts(self, stage: Stage) -> Iterator[tuple[str, LinearExperts]]:
        for name, module in stage.modules.items():
            if isinstance(module, LinearExperts) and module.layout.is_routed:
                yield name, module

    def _check_experts(self, state: State, experts: Mapping[str, LinearExperts]) -> None:
        """See that there are experts, that all of them can be dropped alike, and that none is quantized.

        Raises:
            ColdpressError: names the module.
        """
        fused = [line for line in state.report.values() if (line.reason or "").startswith("fused tensors")]
        if fused:
            raise ModelError(f"{fused[0].name}: {fused[0].reason}, so none of them can be dropped")
        single = [name for name, one in linear_experts(state.model).items() if "sizes" in one.layout.order]
        if single:
            raise ModelError(
                f"{single[0]}: one projection of all experts in a module, called with tokens sorted by expert: "
                "what its router gives them is not seen, so none of them can be dropped"
            )
        if not experts:
            raise TargetError(
                f"a {type(state.model).__name__} has no mixture of experts that coldpress knows: there is none to drop"
            )
        counts = sorted({module.count for module in experts.values()})
        if len(counts) > 1:
            raise TargetError(
                f"layers of a {type(state.model).__name__} have {' or '.join(map(str, counts))} experts, and a smaller "
                "configuration has one number for all: none of them can be dropped"
            )
        ignored = [name for name in experts if any(matches_name(pattern, name) for pattern in self.ignore)]
        if ignored:
            raise TargetError(
                f"ignore means {ignored[0]}, and a configuration has one number of experts for all layers: ignore none"
            )
        quantized = [name for name in state.schemes if any(name.startswith(f"{home}.") for home in experts)]
        if quantized:
            raise ModelError(f"{quantized[0]} is quantized already: drop experts first, and quantize what stays")
        beside = [line.name for line in state.report.values() if line.kind == "Tensor" and ".experts." in line.name]
        if beside:
            raise ModelError(
                f"{beside[0]} is of experts that are no part of a {type(state.model).__name__} (multi-token "
                "prediction?) and would keep their number: remove these tensors from the checkpoint first"
            )

    def _check_router(self, name: str, module: LinearExperts, router: Router) -> None:
        """See that a router can do its work with fewer experts.

        Raises:
            TargetError: says which number does not fit.
        """
        keep = self._count(module.count, router.groups)
        if router.by_token is not None:
            raise TargetError(f"{name}: {router.by_token} sends tokens to experts by their ids, so none can be dropped")
        if keep == module.count:
            raise TargetError(f"{name}: all {keep} experts would stay; raise sparsity, or lower keep")
        if router.top_k is not None and keep < router.top_k:
            raise TargetError(
                f"{name}: {keep} of {module.count} experts would stay, and a token is sent to {router.top_k}: keep more"
            )
        if keep % router.groups:
            raise TargetError(
                f"{name}: {keep} experts cannot be divided among the {router.groups} groups of its router"
            )
        if router.groups > 1 and keep // router.groups < GROUP:
            raise TargetError(
                f"{name}: {keep // router.groups} experts of each of {router.groups} groups would stay, and routers "
                f"judge a group by its best {GROUP}: keep more"
            )
        if router.top_k is not None and router.top_groups * (keep // router.groups) < router.top_k:
            raise TargetError(
                f"{name}: a token is sent to {router.top_k} experts of {router.top_groups} groups, which would have "
                f"{keep // router.groups} each: keep more"
            )

    def _check_scalable(self, state: State, name: str, module: LinearExperts) -> None:
        """See that what a router gives to all experts can be learned, and that experts can be scaled.

        Raises:
            TargetError: says why not.
        """
        minds = self._minds(state, name, module)
        if minds is False:
            return
        down: Any = next(module.experts()).down_proj
        if minds is None or not tells_all_gates(_home(state.model, name), module, down.out_features):
            raise TargetError(f"{name}: what its router gives to all experts is not known, so leave rescale out")
        if module.layout.after is not None or down.bias is not None:
            raise TargetError(
                f"{name}: its experts end in a norm or a bias, which rescale does not scale: leave it out"
            )

    def _minds(self, state: State, name: str, module: LinearExperts) -> bool | None:
        up: Any = next(module.experts()).up_proj
        return minds_others(_home(state.model, name), module, up.in_features)

    def _masses(self, state: State, stage: Stage, name: str, module: LinearExperts) -> Tensor:
        """What the router gives to each expert where another one is chosen, over all tokens, [E, E]."""
        home, total = name.rpartition(".")[0], torch.zeros(module.count, module.count, dtype=torch.float64)
        for call in state.calls(stage, home):
            found = gates_of(state.model.get_submodule(home), module, module.count, call.args, call.kwargs)
            if found is None:
                raise TargetError(f"{name}: its router does not tell what it gives to all experts: leave rescale out")
            mask = counted_tokens(found[0], state.batches[call.index])
            gates, every = found if mask is None else (one[mask.flatten().to(one.device)] for one in found)
            total += masses(gates, every).cpu()
        return total

    def _count(self, experts: int, groups: int) -> int:
        if self.keep is not None:
            return min(self.keep, experts)
        assert self.sparsity is not None
        return count_kept(experts, self.sparsity, groups)

    def _router(self, state: State, name: str, module: LinearExperts) -> Router:
        config: Any = state.model.config
        return read_router(_home(state.model, name), module, config.get_text_config().vocab_size)

    def _kept(self, state: State, name: str, totals: Tensor) -> list[int]:
        """The experts of one layer that stay.

        Raises:
            CalibrationError: the data say nothing about which of them matter.
        """
        module: Any = state.model.get_submodule(name)
        scores = saliency(totals, self.criterion)
        router = self._router(state, name, module)
        keep = self._count(len(scores), router.groups)
        seen = totals[:, 0] > 0  # [E]
        if min(int(group.sum()) for group in seen.chunk(router.groups)) < keep // router.groups:
            grouped = f", as many of each of {router.groups} groups" if router.groups > 1 else ""
            raise CalibrationError(
                f"{name}: the calibration data reach {int(seen.sum())} of {len(scores)} experts, and {keep} are to "
                f"stay{grouped}: which of the others matter is not known; calibrate with more data"
            )
        self._judge_tokens(name, module, totals[:, 0])
        if not uneven(scores.tolist()):
            log.warning("%s: all experts are worth the same on the calibration data; the first %d stay", name, keep)
        return kept_experts(scores, keep, groups=router.groups)

    def _judge_tokens(self, name: str, module: LinearExperts, tokens: Tensor) -> None:
        """Warn of experts that are judged by few tokens, or refuse them, as the run is asked to.

        Raises:
            CalibrationError: names the module and its experts.
        """
        least = module.few.least or 0
        short = [number for number, count in enumerate(tokens.tolist()) if count < least]
        if not short:
            return
        numbers = ", ".join(map(str, short[:8])) + (f" and {len(short) - 8} more" if len(short) > 8 else "")
        found = f"{name}: experts {numbers} saw fewer tokens than moe_min_tokens={least}"
        if module.few.treatment == "refuse":
            raise CalibrationError(f"{found}, so what they are worth is uncertain: calibrate with more data")
        log.warning("%s: what they are worth is uncertain", found)

    def _note(
        self,
        state: State,
        totals: Mapping[str, Tensor],
        kept: Mapping[str, Sequence[int]],
        scales: Mapping[str, Sequence[float]],
    ) -> None:
        """A line of the report for each module of experts, and a warning where routers mind experts that are gone."""
        mind = []
        for name, one in totals.items():
            module: Any = state.model.get_submodule(name)
            scores, stay = saliency(one, self.criterion), list(kept[name])
            minds = self._minds(state, name, module)
            line = LayerReport(name, "Mixture", (len(scores), len(stay)), status="changed")
            line.notes |= {
                "criterion": self.criterion,
                "kept": stay,
                "tokens_of_experts": [int(count) for count in one[:, 0]],
                "saliency": [float(f"{score:.6g}") for score in scores],
                "saliency_kept": float(scores[stay].sum() / scores.sum()) if bool(scores.any()) else None,
                "router_minds_others": minds,
            }
            if name in scales:
                line.notes["rescaled_by"] = [round(scale, 4) for scale in scales[name]]
            state.report[name] = line
            mind += [name] if minds and name not in scales else []
        if mind:
            log.warning(
                "%s: its router takes a softmax over all experts and does not renormalise, so that those which stay "
                "get larger weights than before (%d layers); evaluate the result, and compare rescale=True",
                *(mind[0], len(mind)),
            )


def _is_of(layer: str, home: str) -> bool:
    """Whether a layer is of an expert of this module, and not of one inside of another part of it."""
    return layer.startswith(home) and layer.removeprefix(home).partition(".")[0].isdigit()


def _home(model: nn.Module, name: str) -> nn.Module:
    """The module that a module of experts lies in."""
    return model.get_submodule(name.rpartition(".")[0])
