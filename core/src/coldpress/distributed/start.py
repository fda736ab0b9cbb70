"""Joining the other processes of a run: a process group that is there is used, one is made under torchrun."""

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from coldpress.distributed.group import WAITS, Group
from coldpress.distributed.ranks import ALONE, Ranks
from coldpress.errors import ArgumentError, RankError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_START = "start every process with torchrun --nproc-per-node N, or none of them"


@contextmanager
def joined(environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Inside, the ranks of this run; a rank that leaves with an error tells the others.

    Args:
        environment: that torchrun makes; None for that of this process.

    Raises:
        ArgumentError: the environment says that there are other processes, and not how to reach them.
        RankError: the others cannot be reached.
    """
    if not _is_several(os.environ if environment is None else environment):
        yield ALONE
        return
    ranks = _connected()
    try:
        yield ranks
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        with suppress(Exception):
            dist.destroy_process_group(ranks.group)


@lru_cache
def leave_at_exit() -> None:
    """Have the process group destroyed when the interpreter ends, if it is there by then.

    Without that some 5 % of processes abort at their end, after all of their work, and torchrun calls the run a failure
    (torch 2.13: threads of gloo that are not joined).  Not sooner: a script may call a door again.
    """
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        with suppress(Exception):  # another rank may be gone
            dist.destroy_process_group()


def refuse_several(what: str) -> None:
    """Refuse to do in several processes what each of them would do.

    Raises:
        ArgumentError: there are several.
    """
    if _is_several(os.environ):
        raise ArgumentError(f"{what} runs in one process: start it without torchrun")


def local_device(device: torch.device) -> torch.device:
    """The device of this process, where each of several has one: that of its number on this machine.

    Raises:
        ArgumentError: there are fewer devices than processes.
    """
    if device.type == "cpu" or device.index is not None or not _is_several(os.environ):
        return device
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if number >= count:
        raise ArgumentError(f"LOCAL_RANK={number} in the environment, and there are {count} devices here; {_START}")
    return torch.device(device.type, number)


def _is_several(environment: Mapping[str, str]) -> bool:
    """Whether there are other processes.

    Raises:
        ArgumentError: the environment contradicts itself, or is incomplete.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    if "WORLD_SIZE" not in environment:
        return False
    size = _number(environment, "WORLD_SIZE")
    if size < 1:
        raise ArgumentError(f"WORLD_SIZE={size} in the environment: there is at least one process; {_START}")
    if size == 1:
        return False
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        raise ArgumentError(f"WORLD_SIZE={size} is in the environment, and {', '.join(missing)} is not; {_START}")
    rank = _number(environment, "RANK")
    if not 0 <= rank < size:
        raise ArgumentError(f"RANK={rank} in the environment: ranks are from 0 to {size - 1}; {_START}")
    if not dist.is_available():
        raise ArgumentError(f"WORLD_SIZE={size} is in the environment, and this torch has no torch.distributed")
    return True


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ArgumentError(f"{name}={environment[name]!r} in the environment is no whole number; {_START}") from None


def _connected() -> Group:
    try:
        if not dist.is_initialized():
            leave_at_exit()
            dist.init_process_group("gloo")
        rank, size = dist.get_rank(), dist.get_world_size()
        group = dist.new_group(backend="gloo", timeout=WAITS)
        return Group(rank, size, device=_device(), group=group, store=_store(rank, group))
    except (RuntimeError, ValueError, OSError) as error:
        raise RankError(f"the other processes of the run cannot be reached: {error}") from error


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else local_device(torch.device(accelerator.type))


def _store(rank: int, group: Any) -> Any:
    """A store of this run; rank 0 keeps it on a port that is free."""
    store: Any = dist.TCPStore  # type: ignore[attr-defined]  # public, and not exported
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    wait = timedelta(seconds=20)
    own = store(host, 0, is_master=True, wait_for_workers=False, timeout=wait) if rank == 0 else None
    place = [(host, own.port)] if own is not None else [None]
    dist.broadcast_object_list(place, src=0, group=group)
    (address,) = place
    assert address is not None
    return own or store(address[0], address[1], is_master=False, timeout=wait)
