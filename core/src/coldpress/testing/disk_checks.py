"""What a modifier promises of a run from a folder: streamed, and resumed after an interruption, it gives the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from coldpress.testing.interrupt import interrupted, kept_stages
from coldpress.testing.job_checks import format_for
from coldpress.testing.models import batches, tiny_tokenizer
from coldpress.testing.subject import Subject
from coldpress.testing.trace import same_bits
from coldpress.testing.trial import needs_of


def streams(subject: Subject) -> None:
    """Read stage by stage, with all other weights on the meta device, a model becomes what it becomes in memory."""
    with TemporaryDirectory() as name:
        folder = _model(subject, Path(name))
        _run(subject, folder, "memory", stream=False)
        _run(subject, folder, "streamed", stream=True)
        _check_same(folder, "memory", "streamed", "streamed from a folder")


def resumes(subject: Subject) -> None:
    """Interrupted in the middle and resumed, a run gives the tensors of one that was not."""
    with TemporaryDirectory() as name:
        folder = _model(subject, Path(name))
        stages = _run(subject, folder, "whole", stream=True)
        if len(stages) < 3:
            return  # nothing of a model that is one stage is kept
        with interrupted(len(stages) // 2):
            _run(subject, folder, "resumed", stream=True)
        _run(subject, folder, "resumed", stream=True)
        _check_same(folder, "whole", "resumed", "interrupted and resumed")


def _model(subject: Subject, folder: Path) -> Path:
    subject.build(fused=True).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


def _run(subject: Subject, folder: Path, name: str, *, stream: bool) -> Sequence[str]:
    """Compress the model of the folder; returns the stages that were kept."""
    import coldpress  # the public name, which loads transformers

    modifier = subject.make()
    needy = any(one.data for one in needs_of(modifier))
    with kept_stages() as stages:
        coldpress.oneshot(
            str(folder / "model"),
            [modifier],
            output_dir=folder / name,
            pipeline=subject.pipeline,
            format=format_for(modifier)[0],
            stream_weights=stream,
            return_model=False,
            quiet=True,
            dataset=batches(rows=4) if needy else None,
        )
    return stages


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    from coldpress.checkpoint.published import format_of, open_folder, quantization_of

    weights = open_folder(folder, format_of(quantization_of(folder)))
    return {name: weights.read(name) for name in weights.names()}


def _check_same(folder: Path, expected: str, found: str, how: str) -> None:
    one, other = _tensors(folder / expected), _tensors(folder / found)
    different = [name for name in dict.fromkeys((*one, *other)) if not same_bits(one.get(name), other.get(name))]
    assert not different, f"{how}, {len(different)} tensors are others: {', '.join(different[:4])}"
