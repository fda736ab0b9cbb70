"""Training on two processes, which talk over gloo: data-parallel by the Trainer, and sharded by FSDP2."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import coldpress
from coldpress.registry import find
from coldpress.testing.models import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.slow

PARALLEL = """
import sys, torch, coldpress
from coldpress.modifiers import ConstantPruningModifier, OutputDistillationModifier
texts = [f"{word} is a stone, and oil is pressed." for word in ("this", "that", "one", "no", "each", "a", "my", "his")]
model = coldpress.train(
    sys.argv[1], [ConstantPruningModifier(ignore=["lm_head"]), OutputDistillationModifier()],
    distill_teacher=sys.argv[2], dataset=texts, max_seq_length=24, output_dir=sys.argv[3], format="dense",
    max_steps=3, device="cpu", quiet=True,
    per_device_train_batch_size=int(sys.argv[4]), learning_rate=1e-2, measure=False, save_strategy="no",
    max_grad_norm=0.0, optim="sgd", lr_scheduler_type="constant", shuffle_calibration_samples=False,
)
total = sum(parameter.double().sum() for parameter in model.parameters())
print("sum", repr(total.item()))
"""

SHARDED = """
import gc, os, torch, coldpress, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from coldpress.testing.models import batches, tiny_llama
from coldpress.training import CompressionCallback
from coldpress.modifiers import ConstantPruningModifier, MagnitudePruningModifier, QuantizationModifier
dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))

def trained(model, recipe, sharded):
    callback = CompressionCallback(recipe)
    callback.attach(model, num_steps=3, num_epochs=1)
    if sharded:
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for batch in batches(rows=3):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        callback.step()
        optimizer.zero_grad()
    callback.detach()
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.state_dict().items()}

prune = lambda: coldpress.oneshot(tiny_llama(), MagnitudePruningModifier(mask_structure="2:4", ignore=["lm_head"]))
keep = ConstantPruningModifier(ignore=["lm_head"])
one, other = trained(prune(), keep, False), trained(prune(), keep, True)
zeros = all(torch.equal(one[n] == 0, other[n] == 0) for n in one)
near = all(torch.allclose(one[n], other[n], atol=1e-5) for n in one)
scheme = QuantizationModifier(scheme="W4A16", group_size=32, ignore=["lm_head"])
rounded = lambda: coldpress.oneshot(tiny_llama(), scheme)
plain, shards = trained(rounded(), [], False), trained(rounded(), [], True)
grids = all(torch.allclose(plain[n], shards[n], atol=1e-5) for n in plain)
try:
    trained(tiny_llama(), MagnitudePruningModifier(sparsity=0.5, ignore=["lm_head"]), True)
    refused = ""
except coldpress.SchemeError as error:
    refused = str(error)
if rank == 0:
    print("zeros", zeros, "near", near, "grids", grids)
    print("refused:", refused, flush=True)
del one, other, plain, shards, mesh
gc.collect()  # the mesh keeps threads of gloo alive, of which one may abort a process that ends
dist.destroy_process_group()
"""


def on_two(program: str, *arguments: object, processes: int = 2) -> str:
    """What the first of some processes prints."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=240) for process in running]
    assert all(process.returncode == 0 for process in running), said[0][1][-2000:] + said[-1][1][-2000:]
    return said[0][0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny Llama and the same, pruned to 2:4."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llama().save_pretrained(folder / "dense")
    tiny_tokenizer().save_pretrained(folder / "dense")
    prune = find("modifiers", "MagnitudePruningModifier")(mask_structure="2:4", ignore=["lm_head"])
    coldpress.oneshot(str(folder / "dense"), prune, output_dir=folder / "pruned", format="dense")
    return folder / "dense", folder / "pruned"


def test_two_processes_train_as_one_with_batches_twice_as_large(folders, tmp_path):
    dense, pruned = folders

    on_two(PARALLEL, pruned, dense, tmp_path / "two", 2)
    on_two(PARALLEL, pruned, dense, tmp_path / "one", 4, processes=1)

    before, one, two = (
        load_file(folder / "model.safetensors") for folder in (pruned, tmp_path / "one", tmp_path / "two")
    )
    masked = [name for name in before if name.endswith("proj.weight")]
    assert len(masked) == 14
    assert all(torch.equal(before[name] == 0, two[name] == 0) for name in masked)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert not torch.equal(before["model.norm.weight"], two["model.norm.weight"])


def test_masks_and_grids_follow_shards_and_what_needs_whole_weights_is_refused():
    said = on_two(SHARDED)

    assert "zeros True near True grids True" in said
    assert "q_proj is sharded (FSDP2)" in said
