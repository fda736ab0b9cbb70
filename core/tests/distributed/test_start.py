"""Which environment means several processes, and which is refused."""

import pytest
import torch.distributed as dist

from coldpress.distributed import ALONE
from coldpress.distributed.start import joined, leave_at_exit
from coldpress.errors import ArgumentError

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environment", [{}, {"RANK": "3"}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_others_there_is_one_process(environment):
    with joined(environment) as ranks:
        assert ranks is ALONE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": ""}, "RANK is not"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR, MASTER_PORT is not"),
        ({"RANK": "2"}, "ranks are from 0 to 1"),
        ({"RANK": "-1"}, "ranks are from 0 to 1"),
        ({"RANK": "one"}, "RANK='one' .* no whole number"),
        ({"WORLD_SIZE": "0"}, "at least one process"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' .* no whole number"),
    ],
)
def test_an_environment_that_says_half_is_refused(change, message):
    with pytest.raises(ArgumentError, match=message), joined({**WHOLE, **change}):
        pass


def test_what_runs_in_one_process_says_so(monkeypatch):
    from coldpress import model_free_ptq

    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match="without the model runs in one process"):
        model_free_ptq("somewhere", "elsewhere", scheme="FP8_DYNAMIC", ignore=["lm_head"])


def test_a_group_that_nobody_has_destroyed_is_gone_when_the_interpreter_ends(monkeypatch):
    registered = []
    monkeypatch.setattr("atexit.register", registered.append)
    leave_at_exit.__wrapped__()
    (leave,) = registered

    leave()  # where there is none
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    leave()

    assert not dist.is_initialized()
