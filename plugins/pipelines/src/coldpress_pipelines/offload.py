"""Where activations wait between two stages: on their card while it has room, in CPU memory, and above a limit in files
that are mapped into it.
"""

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal
from weakref import WeakValueDictionary, finalize

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from coldpress.plugin import CalibrationError, State

Place = Literal["auto", "cpu", "disk"]
PLACES = ("auto", "cpu", "disk")
DEFAULT_LIMIT = 1 << 30
_FREE = 0.5  # share of a card's memory that what waits there leaves free, for solvers and their matrices

_CPU = torch.device("cpu")


@frozen(eq=False)
class _Kept:
    """Numbers that wait; tensors that share them share this.

    Attributes:
        raw: all bytes of their storage, on the CPU.
        device: where they are computed with.
        file: that `raw` is mapped from; None if it is in memory.
    """

    raw: Tensor
    device: torch.device
    file: mmap.mmap | None = None

    def forget(self) -> None:
        """Take the pages that were read out of the memory of the process; the system reads them again when needed."""
        if self.file is not None and hasattr(self.file, "madvise"):
            self.file.madvise(mmap.MADV_DONTNEED)


@define(eq=False)
class Offload:
    """A context in which tensors are put aside and taken back; their numbers stay the same, bit for bit.

    A tensor moves *in place*: it stays the same object, with its shape and strides, and gets another storage.
    So a local variable of a suspended forward that is this object does not keep the memory either.

    Only what a block is called with, and what it returns, is ever seen here.
    What a forward holds besides (a copy, a sum, a list of hidden states) is out of reach and stays where it is.
    A tensor that several batches share is moved once; those of the model and of the batches never move.

    A file loses its name as soon as it is mapped, where the system allows that, and its room with the last tensor that
    needs it; even a run that is killed leaves nothing but an empty folder.

    Attributes:
        stays: whether what is on a CUDA device waits there, while half of its memory is free.
        spills: whether there are files at all.
        limit: bytes that may wait in memory if it spills.
        held: bytes that wait in memory now; counted if it spills.
        most: the largest `held` so far.
    """

    stays: bool = False
    spills: bool = False
    limit: int = DEFAULT_LIMIT
    held: int = 0
    most: int = 0
    _staying: frozenset[int] = frozenset()
    _kept: Any = field(factory=WeakTensorKeyDictionary)  # tensor -> _Kept, while anybody holds the tensor
    _waiting: Any = field(factory=WeakValueDictionary)  # address of `raw` -> _Kept
    _folder: TemporaryDirectory[str] | None = None

    @classmethod
    def of(cls, state: State, *, place: Place, limit: int) -> "Offload":
        """Room for the activations of a run.

        Args:
            state: whose model and batches do not move.
            place: "auto" for the device while it has room, and CPU memory beyond; "cpu"; or "disk" for what is beyond
                the limit.
            limit: bytes that may wait in memory if `place` is "disk".
        """
        theirs = _tensors([*state.model.buffers(), *state.batches])
        return cls(place == "auto", place == "disk", limit, staying=frozenset(_address(x) for x in theirs))

    def __enter__(self) -> "Offload":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.take(list(self._kept))  # what still lives is referenced from elsewhere
        self._kept.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, *values: Any) -> None:
        """Put aside every tensor inside of these values (tuples, lists, dicts).

        Raises:
            CalibrationError: a file cannot be written.
        """
        fresh: dict[int, _Kept] = {}
        for x in _tensors(values):
            kept = self._kept.get(x) or self._new(x, fresh)
            if kept is not None:
                self._kept[x] = kept
                x.data = _through(x, kept.raw)
                kept.forget()

    def take(self, *values: Any) -> None:
        """Bring back, to the device where it belongs, every tensor inside of these values that was put aside."""
        fresh: dict[int, Tensor] = {}
        for x in _tensors(values):
            kept = self._kept.get(x)
            if kept is not None and x.device != kept.device:
                if id(kept) not in fresh:
                    fresh[id(kept)] = kept.raw.to(kept.device)
                x.data = _through(x, fresh[id(kept)])

    @contextmanager
    def taken(self, *values: Any) -> Iterator[None]:
        """Inside, these values are where they belong; afterwards they wait again."""
        self.take(*values)
        try:
            yield
        finally:
            self.put(*values)

    def _new(self, x: Tensor, fresh: dict[int, _Kept]) -> _Kept | None:
        """Where a tensor that was not seen before will wait; None if it stays."""
        address = _address(x)
        if address in self._staying or (x.device == _CPU and not self.spills) or (self.stays and _has_room(x)):
            return None
        kept: _Kept | None = self._waiting.get(address) or fresh.get(
            address
        )  # a tensor that shares its storage is offloaded
        if kept is None:
            kept = fresh[address] = self._put_aside(_raw(x), x.device)
            self._waiting[kept.raw.data_ptr()] = kept
        return kept

    def _put_aside(self, raw: Tensor, device: torch.device) -> _Kept:
        waiting = raw.to(_CPU)
        if self.spills and self.held + raw.nbytes > self.limit:
            return self._in_file(waiting, device)
        if self.spills:
            self.held += raw.nbytes
            self.most = max(self.most, self.held)
            finalize(waiting, self._free, raw.nbytes).atexit = False
        return _Kept(waiting, device)

    def _free(self, nbytes: int) -> None:
        self.held -= nbytes

    def _in_file(self, raw: Tensor, device: torch.device) -> _Kept:
        try:
            if self._folder is None:
                self._folder = TemporaryDirectory(prefix="coldpress-", ignore_cleanup_errors=True)
            path = Path(self._folder.name, f"{len(list(Path(self._folder.name).iterdir()))}.bin")
            with path.open("w+b") as file:
                file.write(raw.numpy().data)  # and not through the mapping, where a full disk would be a signal
                file.flush()
                mapped = mmap.mmap(file.fileno(), raw.nbytes)
        except OSError as error:
            raise CalibrationError(
                f"activations do not fit onto the disk ({error.strerror or error}): free some space, or set TMPDIR to "
                "a folder on another disk"
            ) from error
        with suppress(PermissionError):  # Windows keeps a name as long as the file is mapped
            path.unlink()
        return _Kept(torch.frombuffer(mapped, dtype=torch.uint8), device, mapped)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors with numbers in nested tuples, lists and dicts, each with the one that it is a view of."""
    if type(value) is Tensor:
        parts = [value] if value._base is None else [value, value._base]
        if all(_is_plain(part) for part in parts):
            yield from parts
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor may get another storage: not a weight, on no device without memory, not in inference mode."""
    ours = type(x) is Tensor and not isinstance(x, nn.Parameter) and not x.is_inference()
    return ours and x.layout == torch.strided and not x.is_meta and x.untyped_storage().nbytes() > 0


def _has_room(x: Tensor) -> bool:
    """Whether enough of the memory of a tensor's device is free; what the allocator holds for later counts as free."""
    if not x.is_cuda:
        return False
    free, total = torch.cuda.mem_get_info(x.device)
    if free <= _FREE * total:  # only then: to ask the allocator takes ten times as long
        free += torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
    return free > _FREE * total


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _raw(x: Tensor) -> Tensor:
    """All bytes of a tensor's storage, [bytes]."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def _through(x: Tensor, raw: Tensor) -> Tensor:
    """A tensor of the same shape and strides that reads the bytes of another storage; no view of either."""
    empty = torch.empty(0, dtype=x.dtype, device=raw.device)
    return empty.set_(raw.untyped_storage(), x.storage_offset(), x.size(), x.stride())
