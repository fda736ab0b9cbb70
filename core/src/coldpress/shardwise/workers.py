"""Workers: units of layers, compressed and written by several threads; a file that is whole is made durable.

    worker    read, compress, write a unit            unit 0    unit 2    unit 5 ...
    worker                                            unit 1    unit 3    unit 4 ...
    finisher  fsync, checksum, journal                          file 0              file 1

Reading, arithmetic and writing of different units overlap, and what is in memory are the units that are worked on.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from coldpress.checkpoint import CheckpointWriter
from coldpress.checkpoint.placed import PlacedFile
from coldpress.checkpoint.shard import data_start
from coldpress.layer_report import LayerReport
from coldpress.models.heap import trim_heap
from coldpress.numerics.finite import check_finite, check_no_nan
from coldpress.report import Progress
from coldpress.run.blame import blaming
from coldpress.shardwise.kinds import Kinds
from coldpress.shardwise.outline import is_decoded, is_parameter
from coldpress.shardwise.plan import Shard, Unit
from coldpress.shardwise.unit import UnitRun

_PIECE = 1 << 22  # bytes of a tensor that is copied

Note = Callable[[Sequence[LayerReport], Mapping[str, Any]], None]
"""Takes the lines of a finished file's layers, and its entry of the log."""


@define(eq=False)
class _Open:
    """A file of the output that is being written.

    Attributes:
        shard: what it holds.
        file: itself.
        left: tasks that are not done.
        start: when the first began.
        lines: of its layers.
    """

    shard: Shard
    file: PlacedFile
    left: int
    start: float
    lines: list[LayerReport] = field(factory=list)


@frozen(kw_only=True, eq=False)
class Workers:
    """What writes the files of the output.

    Attributes:
        run: compresses units.
        writer: of the checkpoint.
        max_workers: how many units at the same time.
        progress: what a person sees.
        lock: on what files have in common.
    """

    run: UnitRun
    writer: CheckpointWriter
    max_workers: int
    progress: Progress
    lock: Lock

    def work(self, shards: Sequence[Shard], *, total: int, note: Note) -> None:
        """Write files.

        Args:
            shards: that are not there yet.
            total: how many there will be, with those that are.
            note: is called for each that is finished.

        Raises:
            ColdpressError: one of its kinds; files that are finished are kept.
        """
        kinds = Kinds(self.run)
        threads = torch.get_num_threads()
        with ExitStack() as stack:
            stack.callback(torch.set_num_threads, threads)
            each = max(1, threads // self.max_workers)
            pool = stack.enter_context(
                ThreadPoolExecutor(self.max_workers, initializer=torch.set_num_threads, initargs=(each,))
            )
            finisher = stack.enter_context(ThreadPoolExecutor(1))
            finished = self._finished(shards, kinds, pool, finisher, note)
            for _ in self.progress.track(finished, description="compressing", total=len(shards)):
                pass

    def _finished(
        self, shards: Sequence[Shard], kinds: Kinds, pool: ThreadPoolExecutor, finisher: ThreadPoolExecutor, note: Note
    ) -> Iterator[None]:
        """One item for each file that is finished; no more tasks wait than keep the workers busy."""
        running: dict[Future[Any], _Open] = {}
        finishing: dict[Future[None], _Open] = {}
        tasks = self._tasks(shards, kinds)
        opened: list[_Open] = []
        try:
            more = True
            while more or running or finishing:
                while more and len(running) < 2 * self.max_workers:
                    try:
                        one, task = next(tasks)
                    except StopIteration:
                        more = False
                        break
                    if one not in opened:
                        opened.append(one)
                    running[pool.submit(task)] = one
                if not (running or finishing):
                    break
                done, _ = wait([*running, *finishing], return_when=FIRST_COMPLETED)
                for future in done:
                    if future in finishing:
                        one = finishing.pop(future)
                        future.result()
                        opened.remove(one)
                        yield None
                        continue
                    one = running.pop(future)
                    future.result()
                    one.left -= 1
                    if not one.left:
                        finishing[finisher.submit(self._finish, one, note)] = one
        finally:
            for future in (*running, *finishing):
                future.cancel()
            wait([*running, *finishing])
            for one in opened:
                one.file.close()

    def _tasks(self, shards: Sequence[Shard], kinds: Kinds) -> Iterator[tuple[_Open, Callable[[], None]]]:
        for shard in shards:
            file = PlacedFile(self.writer.part(shard.number), kinds.of(shard)).__enter__()
            one = _Open(shard, file, len(shard.units) + 1, perf_counter())
            for unit in shard.units:
                yield one, partial(self._unit, one, unit)
            yield one, partial(self._copies, one, kinds)

    def _unit(self, one: _Open, unit: Unit) -> None:
        with blaming():
            tensors, lines = self.run.run(unit)
        for name, tensor in tensors.items():
            one.file.write(name, tensor)
        with self.lock:
            one.lines += lines

    def _copies(self, one: _Open, kinds: Kinds) -> None:
        weights = self.run.reader.weights
        for name in one.shard.copied:
            if is_decoded(weights, name):
                dtype, _ = kinds.of_copy(name)
                tensor = weights.read(name)
                check_finite(name, tensor)
                one.file.write(name, tensor.to(dtype))
            else:
                self._copy(one.file, name)
        for name, part in one.shard.parts.items():
            one.file.write(name, part.of(weights.get(part.tensor)))

    def _copy(self, file: PlacedFile, name: str) -> None:
        """Copy the bytes of a tensor, and see that they are numbers; those of a parameter finite ones."""
        check = check_finite if is_parameter(self.run.reader.outline, name) else check_no_nan
        stored: Any = self.run.reader.stored
        entry, path = stored.entry(name), stored.homes()[name]
        size, position = entry.end - entry.begin, 0
        content = bytearray(min(size, _PIECE))
        with path.open("rb", buffering=0) as source:
            source.seek(data_start(source) + entry.begin)
            while position < size:
                count = source.readinto(memoryview(content)[: size - position])
                assert count, f"{path} has become shorter"
                piece = memoryview(content)[:count]
                if entry.dtype.is_floating_point:
                    whole = count - count % entry.dtype.itemsize
                    values: Tensor = torch.frombuffer(piece, dtype=torch.uint8)[:whole].view(entry.dtype)
                    check(name, values)
                file.write_bytes(name, position, piece)
                position += count
        file.note_whole(name)

    def _finish(self, one: _Open, note: Note) -> None:
        """Make a file durable, and say so in the journal."""
        digest = one.file.finish()
        trim_heap()  # not after each unit: the next would have the pages cleared again
        order = {name: number for number, unit in enumerate(one.shard.units) for name in unit.layers}
        lines = sorted(one.lines, key=lambda line: order[line.name])
        entry = {"stage": one.shard.name, "seconds": round(perf_counter() - one.start, 3)}
        record = {"stage": one.shard.name, "report": [line.to_dict() for line in lines], "log": entry}
        with self.lock:
            self.writer.adopt(one.shard.number, digest, record)
            note(lines, entry)


def workers_by_default() -> int:
    """How many units at the same time: as many as cores, and not more than four."""
    return min(4, os.cpu_count() or 1)
