"""Every value of a model looked at before the work begins, so that damage is not found hours later."""

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from coldpress.errors import NumericsError
from coldpress.numerics.finite import DAMAGED, check_finite
from coldpress.report import Progress
from coldpress.run.job import Job
from coldpress.run.preflight import shortened
from coldpress.source import Weights

log = logging.getLogger(__name__)


def check_every_tensor(job: Job) -> None:
    """Refuse a model that has NaN or Inf; its files are read once, where its weights are not in memory.

    Raises:
        NumericsError: names the tensors.
        CheckpointError: a file is damaged.
    """
    if job.weights is None:
        _refuse(one for _, one in _problems(job.state.model.named_parameters()))
    else:
        check_files(job.weights.reader, job.progress, extra=job.weights.extra)


def check_files(weights: Weights, progress: Progress, *, extra: Collection[str] = ()) -> None:
    """Read every tensor of a checkpoint once, and refuse NaN and Inf.

    Args:
        weights: of the checkpoint.
        progress: what a person sees meanwhile.
        extra: tensors that are no part of the model; they may be masks, and are warned of only.

    Raises:
        NumericsError: names the tensors.
        CheckpointError: a file is damaged.
    """
    names = progress.track(weights.names(), description="checking tensors")
    found = list(_problems((name, weights.read(name)) for name in names))
    for name, problem in found:
        if name in extra:
            log.warning("%s; it is no part of the model, and comes along as it is", problem)
    _refuse(problem for name, problem in found if name not in extra)


@contextmanager
def saying_where(job: Job) -> Iterator[None]:
    """Add to the message about damaged weights how far the run was, and how it could have been known before.

    Raises:
        NumericsError: with that, where one is raised inside and weights are read stage by stage.
    """
    try:
        yield
    except NumericsError as error:
        if job.weights is None or DAMAGED not in str(error):
            raise
        done, count = sum("stage" in entry for entry in job.state.log), job.pipeline.count(job.state)
        of = "" if count is None else f" of {count * len(job.passes())}"
        raise NumericsError(
            f"{error}\nfound after {done}{of} stages were compressed; check_tensors=True looks at "
            "every tensor before the first"
        ) from error


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise NumericsError(shortened(found))


def _problems(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, str]]:
    """Name and message of every tensor that is not finite."""
    for name, tensor in tensors:
        try:
            if not tensor.is_meta:
                check_finite(name, tensor)
        except NumericsError as error:
            yield name, str(error)
