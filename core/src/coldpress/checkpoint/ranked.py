"""The output of a run of several ranks: rank 0 writes, the others learn what is written and read it."""

from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor

from coldpress.checkpoint.companion import Origin
from coldpress.checkpoint.output import Output
from coldpress.checkpoint.writer import CheckpointWriter
from coldpress.distributed import Ranks
from coldpress.errors import RankError
from coldpress.format import Format
from coldpress.stage import Stage
from coldpress.state import State


def output_of(ranks: Ranks, writer: CheckpointWriter, form: Format, origin: Origin | None) -> Output:
    """The output of this rank.

    Args:
        ranks: of the run.
        writer: where tensors and files go.
        form: how a quantized layer becomes tensors.
        origin: where the model comes from.
    """
    if ranks.size == 1:
        return Output(writer, form, origin)
    return (LeadingOutput if ranks.leads else FollowingOutput)(writer, form, origin, ranks)


class LeadingOutput(Output):
    """That of rank 0: what it has written, the others are told of when it is on the disk."""

    def __init__(self, writer: CheckpointWriter, form: Format, origin: Origin | None, ranks: Ranks) -> None:
        super().__init__(writer, form, origin)
        self._ranks = ranks

    def __enter__(self) -> "Output":
        """Lock the folder, and say what an interrupted run has left there."""
        self._ranks.gather("the output", None)  # all are there before it is taken
        super().__enter__()
        self._ranks.broadcast("an unfinished run", dict(self.unfinished))
        return self

    def begin(self, binding: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """As of one process."""
        kept: Sequence[Mapping[str, Any]] = self._share("what is kept", super().begin(binding))
        return kept

    def note(self, record: Mapping[str, Any]) -> None:
        """As of one process."""
        super().note(record)
        self._share("a record", None)

    def note_tensors(self, record: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> None:
        """As of one process."""
        super().note_tensors(record, name, tensors)
        self._share("a record", None)

    def keep(self, stage: Stage, state: State) -> list[dict[str, str]]:
        """As of one process."""
        files: list[dict[str, str]] = self._share(f"the files of {stage.name}", super().keep(stage, state))
        return files

    def finish(self, state: State, files: Mapping[str, Any], *, left: Collection[str] = ()) -> None:
        """As of one process."""
        super().finish(state, files, left=left)
        self._share("the checkpoint", None)

    def _share(self, what: str, value: Any) -> Any:
        return self._ranks.broadcast(what, value)


class FollowingOutput(Output):
    """That of another rank: nothing is written; what is, is read from the folder that rank 0 writes to."""

    writes = False

    def __init__(self, writer: CheckpointWriter, form: Format, origin: Origin | None, ranks: Ranks) -> None:
        super().__init__(writer, form, origin)
        self._ranks = ranks
        self._left: Mapping[str, Any] = {}

    @property
    def unfinished(self) -> Mapping[str, Any]:
        """What rank 0 found."""
        return self._left

    def __enter__(self) -> "Output":
        """Wait until rank 0 has the folder."""
        self._ranks.gather("the output", None)
        self._left = self._ranks.broadcast("an unfinished run", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def begin(self, binding: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """What rank 0 keeps.

        Raises:
            RankError: this rank does not see the files of rank 0.
        """
        kept: Sequence[Mapping[str, Any]] = self._ranks.broadcast("what is kept", None)
        if not self._writer.partial.is_dir():
            raise RankError(
                f"rank {self._ranks.rank} does not see {self._writer.partial}, which rank 0 writes to: output_dir must "
                "be on a file system that all ranks share"
            )
        for record in kept:
            self._writer.learn(record["files"])
        return kept

    def note(self, record: Mapping[str, Any]) -> None:
        """Wait until it is durable."""
        self._ranks.broadcast("a record", None)

    def note_tensors(self, record: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> None:
        """Wait until they are durable."""
        self._ranks.broadcast("a record", None)

    def write(self, stage: Stage, state: State) -> None:
        """Note what rank 0 writes."""
        for name, module in stage.modules.items():
            self._written.update(full for full, _ in self._unwritten(name, module, state.model))

    def write_others(self, state: State) -> None:
        """Rank 0 does."""

    def keep(self, stage: Stage, state: State) -> list[dict[str, str]]:
        """Learn which files rank 0 has written."""
        files: list[dict[str, str]] = self._ranks.broadcast(f"the files of {stage.name}", None)
        self._writer.learn(files)
        return files

    def finish(self, state: State, files: Mapping[str, Any], *, left: Collection[str] = ()) -> None:
        """Wait until the checkpoint is complete."""
        self._ranks.broadcast("the checkpoint", None)
