"""What a modifier promises: how it is declared and read, and that a run with it is clean and repeatable."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coldpress import hookspecs
from coldpress.calibration.store import StatisticStore
from coldpress.errors import CalibrationError, RecipeError
from coldpress.layer_report import LayerReport
from coldpress.modifier import PRUNES, QUANTIZES, TRAITS, TRANSFORMS
from coldpress.planned import Sweep, no_calls
from coldpress.recipe import Recipe, read_recipe, write_recipe
from coldpress.run.hooks import Hooks
from coldpress.run.preflight import claims_of, plan_of
from coldpress.stage import Stage, find_layers
from coldpress.state import State
from coldpress.testing.check import Check
from coldpress.testing.job_checks import does_its_job, format_absent, save_load
from coldpress.testing.models import batches, logits, tiny_llama
from coldpress.testing.settings_checks import import_is_quiet, settings_class
from coldpress.testing.subject import Subject
from coldpress.testing.trace import changed, differences, same_bits, trace_of, weights_of
from coldpress.testing.trial import Trial, claimed, ignoring, run_trial

HOOKS = ("initialize", "calibrate_batch", "finalize", "save")
_DEAD = 5  # the channel that never carries anything


def hooks(subject: Subject) -> None:
    """Every hook fits its specification, and a recipe may hold the modifier twice."""
    cls, marker = subject.cls, f"{hookspecs.PROJECT}_impl"
    options = {name: getattr(getattr(cls, name, None), marker, None) for name in dir(cls)}
    unmarked = [name for name in HOOKS if hasattr(cls, name) and options[name] is None]
    assert not unmarked, f"{', '.join(unmarked)}: put @hookimpl above it, else it is never called"
    marked = {name: option for name, option in options.items() if option is not None}
    assert marked, f"{cls.__name__} implements no hook"
    for name, option in marked.items():
        for word in ("tryfirst", "trylast", "wrapper", "hookwrapper"):
            assert not option.get(word), f"{name}: {word} would change the order, which is the recipe's"
    unknown = set(cls.traits) - TRAITS
    assert not unknown, f"{', '.join(map(repr, unknown))} is not a trait; there are {', '.join(sorted(TRAITS))}"
    Hooks([subject.make(), subject.make()])


def recipe_round_trip(subject: Subject) -> None:
    """Settings written to a recipe and read again are the same settings."""
    text = write_recipe(Recipe(subject.make()))
    again = write_recipe(read_recipe(text, find=subject.find))
    assert text == again, f"written:\n{text}\nread and written again:\n{again}"


def typo_is_reported(subject: Subject) -> None:
    """An unknown setting stops the recipe, and its line is named."""
    text = f"modifiers:\n  - {subject.cls.__name__}:\n      targetz: [Linear]\n"
    said = ""
    try:
        read_recipe(text, find=lambda kind, name: subject.cls)
    except RecipeError as error:
        said = str(error)
    assert "targetz" in said, f"the unknown setting 'targetz' is not reported: {said or 'no error'}"
    assert ":3:" in said, f"the error does not name line 3: {said}"


def runs(subject: Subject) -> None:
    """A run ends without an error, and every claimed layer is compressed or skipped with a reason."""
    run_trial(subject.make())


def leaves_no_trace(subject: Subject) -> None:
    """After a run: no hooks, no scratch, and the same names, shapes, dtypes and modes as before."""
    model = tiny_llama()
    before = trace_of(model)
    trial = run_trial(subject.make(), model=model)
    found = differences(before, trace_of(model))
    if trial.state.scratch:
        found.append(f"{len(trial.state.scratch)} values are left in state.scratch: pop them in finalize")
    assert not found, "left behind:\n  " + "\n  ".join(found[:8])


def touches_only_targets(subject: Subject) -> None:
    """Weights that it does not claim, or is told to ignore, keep every bit; also those tied to a claimed one."""
    for tied in (False, True):
        _check_untouched(subject.make(), tiny_llama(tied=tied))
        layers = claimed(subject.make(), tiny_llama(tied=tied))
        if len(layers) > 1:
            _check_untouched(ignoring(subject.make(), layers[-1].name), tiny_llama(tied=tied))


def deterministic(subject: Subject) -> None:
    """The same bits twice, with one instance and whatever the global random numbers are."""
    modifier, trials = subject.make(), []
    for seed in (1, 2):
        with _random_numbers(seed):
            trials.append(run_trial(modifier))
    first, second = (_results(trial) for trial in trials)
    different = [name for name, tensor in first.items() if not same_bits(tensor, second.get(name))]
    assert not different, f"not the same in a second run: {', '.join(different[:4])}"


def batching_does_not_matter(subject: Subject) -> None:
    """One batch of eight rows gives what eight batches of one row give."""
    one = _results(run_trial(subject.make(), data=batches(batch_size=8)))
    eight = _results(run_trial(subject.make(), data=batches(batch_size=1)))
    for name, tensor in one.items():
        share = _share_different(tensor, eight[name])
        assert share <= 0.01, f"{name}: {share:.1%} of its values depend on how the rows are batched"


def dtypes(subject: Subject) -> None:
    """A model in bfloat16 or float16 stays in it, with finite weights, and still runs."""
    for dtype in (torch.bfloat16, torch.float16):
        model = tiny_llama(dtype=dtype)
        before = trace_of(model).tensors
        run_trial(subject.make(), model=model)
        wrong = [name for name, (_, now) in trace_of(model).tensors.items() if now != before[name][1]]
        assert not wrong, f"no longer {dtype}: {', '.join(wrong[:4])}"
        _check_finite(model)


def dead_input(subject: Subject) -> None:
    """Channels that are always zero, rows of zero weights and a single token give finite weights."""
    model = tiny_llama()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[_DEAD] = 0  # an input of q, k, v, gate, up and the head
            elif "v_proj" in name or "gate_proj" in name:
                parameter[_DEAD] = 0  # an input of o and down
    run_trial(subject.make(), model=model, data=batches(rows=1, length=1))
    _check_finite(model)


def no_data(subject: Subject) -> None:
    """Without a token it works if it needs none, or else it refuses, or reports each layer, and changes nothing."""
    modifier, model = subject.make(), tiny_llama()
    before = weights_of(model)
    if not modifier.needs().data:
        run_trial(modifier, model=model, data=[])
        _check_finite(model)
        return
    state = State(model=model, batches=[])
    for layer in find_layers(model.named_modules()):
        rows, columns = layer.weight.shape
        state.report[layer.name] = LayerReport(layer.name, "Linear", (rows, columns))
    steps, stage = modifier.expand(), Stage.whole(model)
    hooks = Hooks(steps)
    state.plan = plan_of(claims_of(steps, model))
    state.begin_pass(Sweep(), StatisticStore(), no_calls)
    try:
        with torch.no_grad():
            for hook in ("initialize", "finalize"):
                for step in steps:
                    hooks.fire(hook, step, state, stage)
    except CalibrationError:
        touched = changed(before, model)
        assert not touched, f"changed before it refused: {', '.join(touched[:4])}"
        return
    lines = [state.report[layer.name] for layer in claimed(modifier, model)]
    silent = [line.name for line in lines if line.reason is None and "not_smoothed" not in line.notes]
    assert not silent, (
        f"{', '.join(silent[:4])}: no token reached it, and it was compressed as if; raise CalibrationError, "
        "call state.skip(layer, reason), or fall back and call state.fall_back(layer, reason)"
    )


def grad_free(subject: Subject) -> None:
    """It works where gradients are recorded, and leaves none: no graph, no gradient, no new requirement of one."""
    model = tiny_llama()
    before = trace_of(model).wants_gradient
    with torch.enable_grad():
        trial = run_trial(subject.make(), model=model)
    after = trace_of(model).wants_gradient
    assert before == after, f"requires a gradient or no longer does: {', '.join(sorted(before ^ after)[:4])}"
    graphs = [name for name, tensor in _results(trial).items() if tensor.grad_fn is not None]
    graphs += [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not graphs, f"holds a gradient or a graph: {', '.join(graphs[:4])}"


def _check_untouched(modifier: Any, model: nn.Module) -> None:
    allowed = {f"{layer.name}.weight" for layer in claimed(modifier, model)}
    trial = run_trial(modifier, model=model)
    wrong = [name for name in changed(trial.before, model) if name not in allowed]
    assert not wrong, f"changed, and not claimed: {', '.join(wrong[:4])}; use self.layers(stage), which honours ignore"


def _check_finite(model: nn.Module) -> None:
    wrong = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    assert not wrong, f"not finite: {', '.join(wrong[:4])}"
    assert torch.isfinite(logits(model, batches(rows=1))).all(), "what the model says is not finite"


def _results(trial: Trial) -> dict[str, Tensor]:
    """Everything that a run made: parameters, and codes and scales of quantized layers."""
    tensors: dict[str, Tensor] = dict(trial.model.named_parameters())
    for name, quantized in trial.state.quantized.items():
        for part in ("codes", "scale", "zero_point", "global_scale", "input_scale", "input_zero_point"):
            tensor = getattr(quantized, part)
            if tensor is not None:
                tensors[f"{name}: {part}"] = tensor
    return tensors


def _share_different(a: Tensor, b: Tensor) -> float:
    """Share of elements that differ by more than sums in another order do."""
    x, y = a.detach().double(), b.detach().double()
    largest = float(x.abs().max()) if x.numel() else 0.0
    return 1 - torch.isclose(x, y, rtol=1e-3, atol=1e-4 * largest).double().mean().item()


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Other global random numbers inside, and those from before afterwards."""
    python = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)


def _has_a_job(subject: Subject) -> bool:
    return bool(set(subject.cls.traits) & {QUANTIZES, PRUNES, TRANSFORMS})


def _changes_targets_only(subject: Subject) -> bool:
    return TRANSFORMS not in subject.cls.traits  # moving the signal changes the neighbours too


_RUNS = ("hooks", "runs")

CHECKS = (
    Check(settings_class),
    Check(hooks),
    Check(recipe_round_trip),
    Check(typo_is_reported),
    Check(import_is_quiet),
    Check(runs, after=("hooks", "recipe_round_trip")),
    Check(does_its_job, after=_RUNS, applies=_has_a_job),
    Check(leaves_no_trace, after=_RUNS),
    Check(touches_only_targets, after=_RUNS, applies=_changes_targets_only),
    Check(deterministic, after=_RUNS),
    Check(batching_does_not_matter, after=(*_RUNS, "deterministic")),
    Check(dtypes, after=(*_RUNS, "leaves_no_trace")),
    Check(dead_input, after=_RUNS),
    Check(no_data, after=_RUNS),
    Check(grad_free, after=_RUNS),
    Check(save_load, after=(*_RUNS, "leaves_no_trace"), absent=format_absent),
)
