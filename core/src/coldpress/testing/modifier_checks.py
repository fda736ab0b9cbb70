"""What a modifier promises: how it is declared and read, and that a run with it is clean and repeatable."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from coldpress import hookspecs
from coldpress.calibration.store import StatisticStore
from coldpress.errors import CalibrationError, RecipeError
from coldpress.layer_report import LayerReport
from coldpress.modifier import DROPS_EXPERTS, PRUNES, QUANTIZES, TRANSFORMS
from coldpress.planned import Sweep, no_calls
from coldpress.recipe import Recipe, read_recipe, write_recipe
from coldpress.recipe.form import HOOKS, form_problems
from coldpress.run.hooks import Hooks
from coldpress.run.preflight import claims_of, plan_of
from coldpress.stage import Stage, find_layers
from coldpress.state import State
from coldpress.testing.check import Check
from coldpress.testing.disk_checks import resumes, streams
from coldpress.testing.job_checks import does_its_job, format_absent, save_load
from coldpress.testing.lifecycle_checks import (
    training_is_repeatable,
    training_leaves_no_trace,
    training_resumes,
    training_without_steps_changes_nothing,
    trains,
)
from coldpress.testing.models import batches, logits
from coldpress.testing.order_checks import follows_a_change, follows_a_smoother, may_see_changes, undoes_after_an_error
from coldpress.testing.settings_checks import has_a_module, import_is_quiet, settings_class
from coldpress.testing.subject import Subject
from coldpress.testing.trace import Trace, changed, differences, of_what_is_left, same_bits, trace_of, weights_of
from coldpress.testing.trial import claimed, ignoring, needs_of, results_of, share_different, trial_of

_DEAD = 5  # the channel that never carries anything


def hooks(subject: Subject) -> None:
    """Every hook is marked and fits its specification, and a recipe may hold the modifier twice."""
    cls = subject.cls
    problems = list(form_problems(cls, subject.name if subject.installed else None))
    for name in HOOKS:
        options = getattr(getattr(cls, name, None), f"{hookspecs.PROJECT}_impl", None) or {}
        for word in ("tryfirst", "trylast", "wrapper", "hookwrapper"):
            if options.get(word):
                problems.append(f"{name}: {word} would change the order, which is the recipe's")
    assert not problems, "\n  ".join([f"the form of {cls.__name__}:", *problems])
    Hooks([subject.make(), subject.make()])


def recipe_round_trip(subject: Subject) -> None:
    """Settings written to a recipe and read again are the same settings."""
    text = write_recipe(Recipe(subject.make()))
    again = write_recipe(read_recipe(text, find=subject.find))
    assert text == again, f"written:\n{text}\nread and written again:\n{again}"


def typo_is_reported(subject: Subject) -> None:
    """An unknown setting stops the recipe, and its line is named."""
    text = f"modifiers:\n  - {subject.cls.__name__}:\n      targetz: [Linear]\n"
    message = ""
    try:
        read_recipe(text, find=lambda kind, name: subject.cls)
    except RecipeError as error:
        message = str(error)
    assert "targetz" in message, f"the unknown setting 'targetz' is not reported: {message or 'no error'}"
    assert ":3:" in message, f"the error does not name line 3: {message}"


def runs(subject: Subject) -> None:
    """A run ends without an error, and every claimed layer is compressed or skipped with a reason."""
    trial_of(subject)


def leaves_no_trace(subject: Subject) -> None:
    """After a run: no hooks, no scratch, and the same names, shapes, dtypes and modes as before."""
    model = subject.build()
    before = trace_of(model)
    trial = trial_of(subject, model=model)
    found = differences(_left(subject, before, model), trace_of(model))
    if trial.state.scratch:
        found.append(f"{len(trial.state.scratch)} values are left in state.scratch: pop them in finalize")
    assert not found, "left behind:\n  " + "\n  ".join(found[:8])


def touches_only_targets(subject: Subject) -> None:
    """Weights that it does not claim, or is told to ignore, keep every bit; also those tied to a claimed one."""
    for tied in (False, True):
        _check_untouched(subject, subject.make(), subject.build(tied=tied))
        layers = claimed(subject.make(), subject.build(tied=tied))
        if len(layers) > 1:
            _check_untouched(subject, ignoring(subject.make(), layers[-1].name), subject.build(tied=tied))


def deterministic(subject: Subject) -> None:
    """The same bits twice, with one instance and whatever the global random numbers are."""
    modifier, trials = subject.make(), []
    for seed in (1, 2):
        with _random_numbers(seed):
            trials.append(trial_of(subject, modifier))
    first, second = (results_of(trial) for trial in trials)
    different = [name for name, tensor in first.items() if not same_bits(tensor, second.get(name))]
    assert not different, f"not the same in a second run: {', '.join(different[:4])}"


def batching_does_not_matter(subject: Subject) -> None:
    """One batch of eight rows gives what eight batches of one row give."""
    one = results_of(trial_of(subject, data=batches(batch_size=8)))
    eight = results_of(trial_of(subject, data=batches(batch_size=1)))
    for name, tensor in one.items():
        share = share_different(tensor, eight[name])
        assert share <= 0.01, f"{name}: {share:.1%} of its values depend on how the rows are batched"


def dtypes(subject: Subject) -> None:
    """A model in bfloat16 or float16 stays in it, with finite weights, and still runs."""
    for dtype in (torch.bfloat16, torch.float16):
        model = subject.build(dtype=dtype)
        before = trace_of(model).tensors
        trial_of(subject, model=model)
        wrong = [name for name, (_, now) in trace_of(model).tensors.items() if now != before[name][1]]
        assert not wrong, f"no longer {dtype}: {', '.join(wrong[:4])}"
        _check_finite(model)


def dead_input(subject: Subject) -> None:
    """Channels that are always zero, rows of zero weights and a single token give finite weights."""
    model = subject.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[_DEAD] = 0  # an input of q, k, v, gate, up and the head
            elif "v_proj" in name or "gate_proj" in name:
                parameter[_DEAD] = 0  # an input of o and down
    trial_of(subject, model=model, data=batches(rows=1, length=1))
    _check_finite(model)


def no_data(subject: Subject) -> None:
    """Without a token it works if it needs none, or else it refuses, or reports each layer, and changes nothing."""
    modifier, model = subject.make(), subject.build()
    before = weights_of(model)
    if not modifier.needs().data:
        trial_of(subject, modifier, model=model, data=[])
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
    model = subject.build()
    traced = trace_of(model)
    with torch.enable_grad():
        trial = trial_of(subject, model=model)
    before, after = _left(subject, traced, model).wants_gradient, trace_of(model).wants_gradient
    assert before == after, f"requires a gradient or no longer does: {', '.join(sorted(before ^ after)[:4])}"
    graphs = [name for name, tensor in results_of(trial).items() if tensor.grad_fn is not None]
    graphs += [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert not graphs, f"holds a gradient or a graph: {', '.join(graphs[:4])}"


def _left(subject: Subject, before: Trace, model: nn.Module) -> Trace:
    """What a model looked like before, as far as it still has the same parts."""
    return of_what_is_left(before, trace_of(model)) if DROPS_EXPERTS in subject.cls.traits else before


def _check_untouched(subject: Subject, modifier: Any, model: nn.Module) -> None:
    allowed = {f"{layer.name}.weight" for layer in claimed(modifier, model)}
    trial = trial_of(subject, modifier, model=model)
    wrong = [name for name in changed(trial.before, model) if name not in allowed]
    assert not wrong, f"changed, and not claimed: {', '.join(wrong[:4])}; use self.layers(stage), which honours ignore"


def _check_finite(model: nn.Module) -> None:
    wrong = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    assert not wrong, f"not finite: {', '.join(wrong[:4])}"
    assert torch.isfinite(logits(model, batches(rows=1))).all(), "what the model says is not finite"


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
    return _runs(subject) and not set(subject.cls.traits) & {
        TRANSFORMS,
        DROPS_EXPERTS,
    }  # an equivalent transformation changes the neighbours too


def _follows(subject: Subject) -> bool:
    """Whether it acts after a smoother: no measuring pass saw the model before, no transformation in `initialize`."""
    modifier = subject.make()
    if not _runs(subject):
        return False
    needs, early = needs_of(modifier), TRANSFORMS in subject.cls.traits and hasattr(subject.cls, "initialize")
    if early and (not any(one.data for one in needs) or modifier.attachments(Stage.whole(subject.build()))):
        return False
    return not any(one.measuring_pass or one.loss_gradients for one in needs)


def _runs(subject: Subject) -> bool:
    return not subject.make().needs().training


def _acts_in_training(subject: Subject) -> bool:
    return any(step.training() is not None for step in subject.make().expand())


_RUNS, _TRAINS = ("hooks", "runs"), ("hooks", "trains")

CHECKS = (
    Check(settings_class),
    Check(hooks),
    Check(recipe_round_trip, after=("hooks",)),
    Check(typo_is_reported, after=("hooks",)),
    Check(import_is_quiet, applies=has_a_module),
    Check(runs, after=("hooks", "recipe_round_trip"), applies=_runs),
    Check(does_its_job, after=_RUNS, applies=_has_a_job),
    Check(leaves_no_trace, after=_RUNS, applies=_runs),
    Check(touches_only_targets, after=_RUNS, applies=_changes_targets_only),
    Check(deterministic, after=_RUNS, applies=_runs),
    Check(batching_does_not_matter, after=(*_RUNS, "deterministic"), applies=_runs),
    Check(dtypes, after=(*_RUNS, "leaves_no_trace"), applies=_runs),
    Check(dead_input, after=_RUNS, applies=_runs),
    Check(no_data, after=_RUNS, applies=_runs),
    Check(grad_free, after=_RUNS, applies=_runs),
    Check(undoes_after_an_error, after=(*_RUNS, "leaves_no_trace"), applies=_runs),
    Check(follows_a_smoother, after=(*_RUNS, "deterministic"), applies=_follows),
    Check(
        follows_a_change,
        after=(*_RUNS, "deterministic"),
        applies=lambda subject: _runs(subject) and may_see_changes(subject),
    ),
    Check(save_load, after=(*_RUNS, "leaves_no_trace"), applies=_runs, absent=format_absent),
    Check(streams, after=(*_RUNS, "deterministic", "save_load"), applies=_runs, absent=format_absent),
    Check(resumes, after=("streams",), applies=_runs, absent=format_absent),
    Check(trains, after=("hooks", "recipe_round_trip"), applies=_acts_in_training),
    Check(training_leaves_no_trace, after=_TRAINS, applies=_acts_in_training),
    Check(training_without_steps_changes_nothing, after=_TRAINS, applies=_acts_in_training),
    Check(training_is_repeatable, after=_TRAINS, applies=_acts_in_training),
    Check(training_resumes, after=_TRAINS, applies=_acts_in_training),
)
