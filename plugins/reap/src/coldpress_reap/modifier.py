"""REAPPruningModifier: settings and wiring of REAP."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, optional
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
    hookimpl,
    linear_experts,
    matches_name,
)
from coldpress_reap.algorithm import CRITERIA, count_kept, kept_experts, saliency, sums, uneven
from coldpress_reap.router import Router, minds_others, read_router

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
    )

    targets: list[str] = field(factory=list, converter=list)
    sparsity: float | None = field(default=None)
    keep: int | None = field(default=None, validator=optional(ge(1)))
    criterion: Literal["reap", "man", "msan"] = field(default="reap", validator=in_(CRITERIA))
    per_layer: Literal["uniform"] = field(default="uniform", validator=in_(("uniform",)))
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
        return Needs(data=True, propagated_error=False, measuring_pass=True, measures_only=True)

    def layers(self, stage: Stage) -> list[Layer]:
        """None: it drops modules, and changes no weight."""
        return []

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
        experts = linear_experts(state.model)
        self._check_experts(state, experts)
        for name, module in experts.items():
            self._check_router(name, module, self._router(state, name, module))

    @hookimpl
    def initialize(self, state: State, stage: Stage) -> None:
        """Request what experts are sent and say, in the measuring pass."""
        if state.decision(self) is None:
            for name, module in self._experts(stage):
                state.request(RoutedTokens(name, module), ExpertSums())

    def measure(self, state: State, stage: Stage) -> dict[str, list[list[float]]]:
        """The sums of each expert, by the name of its module."""
        return {
            name: state.require(RoutedTokens(name, module), ExpertSums()).tolist()
            for name, module in self._experts(stage)
        }

    def decide(self, state: State, measured: Sequence[dict[str, list[list[float]]]]) -> Decision:
        """The experts that stay, of every layer."""
        totals = {name: torch.tensor(one, dtype=torch.float64) for stage in measured for name, one in stage.items()}
        kept = {name: self._kept(state, name, one) for name, one in totals.items()}
        self._note(state, totals, kept)
        if self.report_path is not None:
            path = Path(self.report_path).expanduser()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        lines = [state.report[name].to_dict() for name in kept]
        return Decision(value={"mixtures": lines}, kept_experts=kept)

    def _experts(self, stage: Stage) -> Iterator[tuple[str, LinearExperts]]:
        for name, module in stage.modules.items():
            if isinstance(module, LinearExperts):
                yield name, module

    def _check_experts(self, state: State, experts: Mapping[str, LinearExperts]) -> None:
        """See that there are experts, that all of them can be dropped alike, and that none is quantized.

        Raises:
            ColdpressError: names the module.
        """
        fused = [line for line in state.report.values() if (line.reason or "").startswith("fused tensors")]
        if fused:
            raise ModelError(f"{fused[0].name}: {fused[0].reason}, so none of them can be dropped")
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
        if not uneven(scores.tolist()):
            log.warning("%s: all experts are worth the same on the calibration data; the first %d stay", name, keep)
        return kept_experts(scores, keep, groups=router.groups)

    def _note(self, state: State, totals: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> None:
        """A line of the report for each module of experts, and a warning where routers mind experts that are gone."""
        mind = []
        for name, one in totals.items():
            module: Any = state.model.get_submodule(name)
            scores, stay = saliency(one, self.criterion), list(kept[name])
            minds = minds_others(_home(state.model, name), module, next(module.experts()).up_proj.weight.shape[1])
            line = LayerReport(name, "Mixture", (len(scores), len(stay)), status="changed")
            line.notes |= {
                "criterion": self.criterion,
                "kept": stay,
                "tokens_of_experts": [int(count) for count in one[:, 0]],
                "saliency": [float(f"{score:.6g}") for score in scores],
                "saliency_kept": float(scores[stay].sum() / scores.sum()) if bool(scores.any()) else None,
                "router_minds_others": minds,
            }
            state.report[name] = line
            mind += [name] if minds else []
        if mind:
            log.warning(
                "%s: its router takes a softmax over all experts and does not renormalise, so that those which stay "
                "get larger weights than before (%d layers); evaluate the result",
                *(mind[0], len(mind)),
            )


def _home(model: nn.Module, name: str) -> nn.Module:
    """The module that a module of experts lies in."""
    return model.get_submodule(name.rpartition(".")[0])
