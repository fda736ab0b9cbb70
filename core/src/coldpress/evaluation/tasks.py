"""Tasks of lm-evaluation-harness (EleutherAI, the extra `lm-eval`), run on a model in memory."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attrs import frozen

from coldpress.errors import ArgumentError
from coldpress.foreign import reading
from coldpress.models.evaluating import evaluating
from coldpress.spelling import suggest

_NAME = re.compile(r"^(?:task|group):\s*[\"']?([^\s\"'#]+)", re.MULTILINE)
_YAML = (".yaml", ".yml")


@frozen
class Score:
    """One metric of a task.

    Attributes:
        value: as lm-eval gives it, accuracies as shares.
        standard_error: over documents; None where lm-eval gives none.
    """

    value: float
    standard_error: float | None


@frozen
class TaskResult:
    """What a model reached in a task.

    Attributes:
        metrics: name, with its filter where that is not `none`, to the score.
        samples: documents that were used; 0 for a group of tasks.
        num_fewshot: examples in the prompt; None for a group of tasks.
        version: of the task; empty where it has none.
    """

    metrics: Mapping[str, Score]
    samples: int
    num_fewshot: int | None
    version: str


@frozen
class Tasks:
    """What was measured.

    Attributes:
        results: name of each task, or group of them, to what was reached.
        lm_eval: version of lm-eval.
        limit: documents of each task that were used at most; None for all.
    """

    results: Mapping[str, TaskResult]
    lm_eval: str
    limit: int | None


def check_tasks(tasks: Sequence[str]) -> None:
    """See before a model is read that tasks can be run: lm-eval is installed, and files are there.

    Raises:
        ArgumentError: they cannot.
    """
    if find_spec("lm_eval") is None:
        raise ArgumentError("tasks are run by lm-eval, which is not installed: pip install 'coldpress[lm-eval]'")
    if not tasks:
        raise ArgumentError("no task is named; name some, such as hellaswag, or a YAML file of one")
    for task in tasks:
        if task.endswith(_YAML):
            _named_in(Path(task))


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None, batch_size: int = 1
) -> Tasks:
    """Run tasks of lm-eval.

    Its own tasks download their data; a task in a YAML file may have them beside it (`dataset_path: json`), and then
    nothing is downloaded.  lm-eval seeds the generators of Python, NumPy and torch.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        tasks: names of tasks, groups or tags, and YAML files.
        limit: documents of each task that are used; None uses all.
        batch_size: requests that are run together.

    Raises:
        ArgumentError: lm-eval is not installed, a task is not known, or it cannot be run.
    """
    check_tasks(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if task.endswith(_YAML)]
    names = [_named_in(Path(task)) if task.endswith(_YAML) else task for task in tasks]
    with reading("lm-eval cannot read its tasks", ArgumentError):
        folders = sorted({str(file.resolve().parent) for file in files})
        manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
    known = manager.all_tasks
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise ArgumentError(f"lm-eval {version('lm_eval')} has no task {unknown!r}{suggest(unknown, known)}")
    device = str(next(model.parameters()).device)
    with evaluating(model), reading(f"lm-eval cannot run {', '.join(names)}", ArgumentError):
        engine = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=device)
        found = simple_evaluate(model=engine, tasks=names, task_manager=manager, limit=limit, log_samples=False)
    return Tasks({name: _result(name, found) for name in found["results"]}, version("lm_eval"), limit)


def _named_in(file: Path) -> str:
    """What a YAML file calls its task.

    Raises:
        ArgumentError: there is no such file, or it names none.
    """
    try:
        name = _NAME.search(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"tasks: cannot read {str(file)!r}: {error}") from error
    if name is None:
        raise ArgumentError(f"tasks: {str(file)!r} has no line `task: NAME`")
    return name[1]


def _result(name: str, found: Mapping[str, Any]) -> TaskResult:
    """What lm-eval says of a task; its keys are `metric,filter` and `metric_stderr,filter`."""
    content, metrics = found["results"][name], {}
    for key, value in content.items():
        metric, comma, rule = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = content.get(f"{metric}_stderr,{rule}")
            kept = float(error) if isinstance(error, int | float) else None
            metrics[metric if rule == "none" else f"{metric} ({rule})"] = Score(float(value), kept)
    samples = found.get("n-samples", {}).get(name, {}).get("effective", 0)
    return TaskResult(metrics, int(samples), found.get("n-shot", {}).get(name), str(found["versions"].get(name, "")))
