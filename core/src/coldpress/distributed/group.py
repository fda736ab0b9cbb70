"""The ranks of a run of several processes, over a gloo group of `torch.distributed`.

Every exchange begins with a head: whether the rank is well, where it is, and how many bytes follow.  A rank that fails
sends a head that says so in place of the next one, so that no rank waits for it; one that ends closes its connections,
and the others find out by the store which of them still live.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from attrs import define, field
from torch import Tensor

from coldpress.distributed.packing import pack, unpack
from coldpress.distributed.ranks import Ranks, Transfer
from coldpress.errors import RankError

WAITS = timedelta(days=7)
"""For a rank that lives: reading a model, or solving a large layer, takes as long as it takes."""

_GRACE = 3.0  # seconds until a rank that does not answer counts as ended
_KEPT = "finished stages are kept: the same command resumes there, with as many ranks or others"


@define(eq=False)
class Group(Ranks):
    """Ranks that are connected.

    Attributes:
        device: of tensors that are on an accelerator.
        group: of gloo, of this run only.
        store: through which ranks say that they live; rank 0 keeps it.
    """

    device: torch.device = field(kw_only=True)
    group: Any = field(kw_only=True)
    store: Any = field(kw_only=True)
    _failed: bool = False

    def gather(self, what: str, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        packed = pack(value)
        sizes = self._meet(what, len(packed))
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(packed)] = packed
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._watching(what):
            dist.all_gather(found, own, group=self.group)
        others = zip(found, sizes, strict=True)
        return [value if r == self.rank else unpack(x[:size], self.device) for r, (x, size) in enumerate(others)]

    def broadcast(self, what: str, value: Any, *, source: int = 0) -> Any:
        """The value of one rank, which keeps its own."""
        packed = pack(value) if self.rank == source else None
        sizes = self._meet(what, 0 if packed is None else len(packed))
        data = torch.empty(sizes[source], dtype=torch.uint8) if packed is None else packed
        with self._watching(what):
            dist.broadcast(data, source, group=self.group)
        return value if packed is not None else unpack(data, self.device)

    def transfer(self, what: str, transfers: Sequence[Transfer]) -> list[Tensor | None]:
        """Move tensors from rank to rank, all at once; they arrive contiguous."""
        self._meet(f"{what}, {len(transfers)} tensors", 0)
        works, kept, arrived = list[Any](), list[Tensor](), list[Tensor | None]([None] * len(transfers))
        with self._watching(what):
            for number, one in enumerate(transfers):
                if one.like.numel() == 0 or self.rank not in (one.source, one.target):
                    continue
                if one.source == self.rank:
                    data = one.like.detach().cpu().contiguous().view(torch.uint8)
                    kept.append(data)
                    works.append(dist.isend(data, one.target, group=self.group, tag=number))
                else:
                    whole = torch.empty(one.like.shape, dtype=one.like.dtype)
                    arrived[number] = whole
                    works.append(dist.irecv(whole.view(torch.uint8), one.source, group=self.group, tag=number))
            for work in works:
                work.wait()
        return [None if x is None else x.to(self.device) for x in arrived]

    def fail(self, error: BaseException) -> None:
        """Send the head of a rank that fails, for as long as the others may take to come for it; once."""
        if self._failed or isinstance(error, RankError):
            self._failed = True
            return
        self._failed = True
        with suppress(Exception):
            self.store.set(f"failed {self.rank}", _in_words(error))
        sender = threading.Thread(target=self._send_failure, args=(_in_words(error),), daemon=True)
        sender.start()
        sender.join(_GRACE)

    def _send_failure(self, words: str) -> None:
        data = torch.frombuffer(bytearray(words.encode()), dtype=torch.uint8)
        with suppress(Exception):
            self._first_failure(self._heads([0, 0, len(data)]), data)

    def _first_failure(self, heads: Sequence[Sequence[int]], own: Tensor | None = None) -> str:
        """Which rank failed first in their order, and its words, which it sends to all."""
        rank = next(rank for rank, (well, _, _) in enumerate(heads) if not well)
        data = own if own is not None and rank == self.rank else torch.empty(heads[rank][2], dtype=torch.uint8)
        dist.broadcast(data, rank, group=self.group)
        return f"rank {rank} failed: {data.numpy().tobytes().decode()}; {_KEPT}"

    def _meet(self, what: str, size: int) -> list[int]:
        """How many bytes each rank is about to send, after a look whether all are well and at the same place."""
        with self._watching(what):
            heads = self._heads([1, crc32(what.encode()), size])
        if not all(well for well, _, _ in heads):
            with self._watching(what):
                words = self._first_failure(heads)
            raise RankError(words)
        elsewhere = [rank for rank, (_, place, _) in enumerate(heads) if place != heads[self.rank][1]]
        if elsewhere:
            raise RankError(
                f"rank {self.rank} is at {what}, and rank {elsewhere[0]} is not: the model runs other layers for some "
                "batches than for others, or a modifier does not do the same on every rank; use one process"
            )
        return [int(size) for _, _, size in heads]

    def _heads(self, own: list[int]) -> list[list[int]]:
        head = torch.tensor(own)
        found = [torch.empty_like(head) for _ in range(self.size)]
        dist.all_gather(found, head, group=self.group)
        return [one.tolist() for one in found]

    @contextmanager
    def _watching(self, what: str) -> Iterator[None]:
        """Inside, a connection that breaks is told as the rank that ended."""
        try:
            yield
        except RuntimeError as error:
            raise RankError(self._ended(what)) from error

    def _failure(self, failed: Sequence[int]) -> str:
        return f"rank {failed[0]} failed: {self._reason(failed[0])}; {_KEPT}"

    def _reason(self, rank: int) -> str:
        try:
            return str(self.store.get(f"failed {rank}").decode())
        except Exception:  # the rank that keeps the store is gone
            return "its own output says why"

    def _ended(self, what: str) -> str:
        """Which ranks ended, by who still answers."""
        try:
            self.store.set(f"lives {self.rank}", "yes")
            end = time.monotonic() + _GRACE
            while True:
                failed = [rank for rank in range(self.size) if self.store.check([f"failed {rank}"])]
                gone = [rank for rank in range(self.size) if not self.store.check([f"lives {rank}"])]
                if failed or len(gone) == 1 or time.monotonic() > end:
                    break
                time.sleep(0.1)
        except Exception:  # rank 0 keeps the store
            failed, gone = [], [0]
        if failed:
            return self._failure(failed)
        names = ", ".join(str(rank) for rank in gone) or "another"
        return (
            f"rank {names} ended while {what} was exchanged, and did not say why: killed, or out of memory? "
            f"Its own output and the system's log may tell; {_KEPT}"
        )


def _in_words(error: BaseException) -> str:
    return str(error) or type(error).__name__
