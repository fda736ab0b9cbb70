"""A checkpoint on disk; lets the tests of this room import `checkpoints`."""

import sys
from pathlib import Path

import pytest
import torch

from coldpress.testing.models import tiny_llama

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny Llama in bfloat16, in four files."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_llama(hidden=128).to(torch.bfloat16).save_pretrained(path, max_shard_size="200KB")
    return path
