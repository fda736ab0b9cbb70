"""Activations that wait on disk: the same bytes, no file left, no more memory than allowed."""

import gc
import tempfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from attrs import frozen
from loose import Loose, straight, untouched, vectors, watch
from torch import Tensor, nn

from coldpress import CalibrationError, oneshot
from coldpress.errors import BrokenPluginError
from coldpress.plugin import Batch, Modifier, Needs, Stage, State, hookimpl
from coldpress.recipe import Recipe
from coldpress.report.histogram import Histogram
from coldpress.run.job import Job
from coldpress.testing.models import batches, tiny_conv1d, tiny_llama
from coldpress_pipelines import Independent, LayerSequential, Sequential
from coldpress_pipelines.offload import Offload, _has_room

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks the system where memory is")
BLOCKWISE = pytest.mark.parametrize("pipeline", [Sequential, LayerSequential])
WHOLE = {Sequential: {"true_sequential": False}}  # nobody waits inside of a block
STATIC = (
    "QuantizationModifier: {ignore: [lm_head], config_groups: {all: {targets: [Linear], "
    "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8, strategy: tensor}}}}"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The only place for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def in_file(x: Tensor) -> bool:
    """What the system says of the memory that a tensor's numbers are in."""
    address = x.untyped_storage().data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(bound, 16) for bound in line.split()[0].split("-"))
        if first <= address < last:
            return "coldpress-" in line
    raise AssertionError("nowhere")


# --- one tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_tensor_stays_the_same_object_with_the_same_bits_and_strides(folder, dtype):
    x = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype).transpose(1, 2)
    same, before, strides = x, x.clone(), x.stride()

    with Offload(spills=True, limit=0) as room:
        room.put({"deep": [(x,)]})

        assert in_file(same)
        assert torch.equal(same, before)
        assert same.stride() == strides
        room.take(x)
        assert torch.equal(same, before)


def test_tensors_that_share_memory_go_on_to_share_it(folder):
    x = torch.arange(12.0)
    part, wide = x[3:6], x[:1].expand(5)

    with Offload(spills=True, limit=0) as room:
        room.put(part, wide, x)
        x[4] = 100

        assert part.tolist() == [3, 100, 5]
        assert wide.untyped_storage().nbytes() == x.untyped_storage().nbytes() == 48
        assert room.held == 0


def test_what_is_in_memory_never_exceeds_the_limit_and_is_free_again_when_nobody_needs_it(folder):
    with Offload(spills=True, limit=1000) as room:
        tensors = [torch.ones(100) for _ in range(5)]  # 400 bytes each
        room.put(tensors)

        assert [in_file(x) for x in tensors] == [False, False, True, True, True]
        assert room.held == room.most == 800
        del tensors[0]
        more = torch.ones(100)
        room.put(more)
        assert not in_file(more)
        assert room.held == 800


def test_a_tensor_that_several_batches_share_is_moved_once(folder):
    shared = torch.ones(100)

    with Offload(spills=True, limit=1000) as room:
        for _ in range(9):
            room.put(shared, torch.ones(1))

        assert room.held == 400


def test_weights_buffers_and_batches_are_never_moved(folder):
    model = nn.BatchNorm1d(4)
    batch = {"x": torch.ones(2, 4)}
    state = type("State", (), {"model": model, "batches": [batch]})

    with Offload.of(state, place="disk", limit=0) as room:
        room.put(batch["x"], batch["x"][0], *model.buffers(), *model.parameters(), model.weight[:2])

        assert not any(in_file(x) for x in (batch["x"], *model.buffers(), *model.parameters()))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("spills", [False, True])
def test_what_waits_takes_no_memory_of_the_accelerator_and_comes_back(folder, spills):
    device = torch.accelerator.current_accelerator()
    x = torch.arange(12.0, device=device).reshape(3, 4).t()
    part, before = x[1:], x.cpu()

    with Offload(spills=spills, limit=0) as room:
        room.put(x, part)
        assert (x.device.type, part.device.type) == ("cpu", "cpu")
        with room.taken(x):
            assert x.device.type == device.type
        assert x.device.type == "cpu"

    assert (x.device.type, part.device.type) == (device.type, device.type)
    assert torch.equal(x.cpu(), before)
    assert torch.equal(part.cpu(), before[1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_waits_stays_on_a_card_while_half_of_it_is_free(monkeypatch):
    x = torch.arange(12.0, device="cuda")

    with Offload(stays=True) as room:
        room.put(x)
        assert x.is_cuda
        monkeypatch.setattr("coldpress_pipelines.offload._FREE", 1.1)
        room.put(x)
        assert not x.is_cuda
    assert x.is_cuda


def test_what_the_allocator_holds_counts_as_free(monkeypatch):
    sizes = {"mem_get_info": (100, 1000), "memory_reserved": 800, "memory_allocated": 300}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, size=size: size)

    assert _has_room(SimpleNamespace(is_cuda=True, device="cuda:0"))
    assert not _has_room(torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 400)
    assert not _has_room(SimpleNamespace(is_cuda=True, device="cuda:0"))


# --- whole runs


@BLOCKWISE
@pytest.mark.parametrize("propagate_error", [True, False])
def test_layers_see_the_same_bits(folder, pipeline, propagate_error):
    model, seen = Loose(straight), []
    for settings in ({}, {"offload_activations": "disk", "offload_limit": 0}):
        one = pipeline(propagate_error=propagate_error, **settings)
        seen.append(watch(deepcopy(model), vectors(), one, halves=True)[0])

    assert seen[0].keys() == seen[1].keys()
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("make", [tiny_llama, tiny_conv1d])
@pytest.mark.parametrize("pipeline", ["sequential", "layer_sequential", "independent"])
def test_checkpoints_are_the_same_bytes(folder, tmp_path, make, pipeline):
    for place in ("cpu", "disk"):
        oneshot(
            make(),
            STATIC,
            dataset=batches(rows=5, batch_size=2),
            pipeline=pipeline,
            offload_activations=place,
            offload_limit=3000,
            output_dir=tmp_path / place,
        )

    one, other = ((tmp_path / place / "model.safetensors").read_bytes() for place in ("cpu", "disk"))
    assert one == other
    assert list(folder.iterdir()) == []


@frozen(kw_only=True, eq=False)
class Glance(Modifier):
    """Looks at every batch and remembers nothing."""

    def needs(self):
        return Needs(data=True)

    @hookimpl
    def calibrate_batch(self, state: State, stage: Stage, batch: Batch) -> None: ...


@BLOCKWISE
@pytest.mark.parametrize("limit", [0, 20_000])
def test_what_waits_in_memory_stays_below_the_limit(folder, pipeline, limit):
    """Counted without asking the pipeline: every tensor that lives in front of a stage, but for weights and batches."""
    waiting = []

    class Counting(pipeline):
        def sweep(self, state, stage):
            if "layers" in stage.name:
                theirs = {id(x) for x in (*state.model.parameters(), *state.model.buffers())}
                theirs |= {id(x) for batch in state.batches for x in batch.values()}
                ours = [x for x in living_tensors() if id(x) not in theirs | others]
                storages = {
                    x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in ours if not in_file(x)
                }
                others_too = torch.get_rng_state().nbytes  # the caller's random numbers, which the run keeps
                kept = Histogram.of(torch.ones(1, 1))  # of the inputs of the layer, for its report
                others_too += kept.sums.nbytes + kept.largest.nbytes
                waiting.append((sum(storages.values()) - others_too, state.pipeline_state.room.most))
            yield from super().sweep(state, stage)

    state = State(model=tiny_llama(layers=3), batches=batches(rows=6))
    before = living_tensors()  # kept, so that no id is given again
    others = {id(x) for x in before}
    counting = Counting(offload_activations="disk", offload_limit=limit, **WHOLE.get(pipeline, {}))
    Job(recipe=Recipe(Glance(targets=["re:.*down_proj"])), state=state, pipeline=counting).run()

    row = 16 * 128 * 4  # tokens, width, bytes; six rows wait, and as many positions
    assert len(waiting) == 3
    assert all(most <= limit for _, most in waiting)
    assert all(0 <= memory <= limit for memory, _ in waiting)
    assert limit < row or any(memory >= row for memory, _ in waiting)  # the limit is made use of


def test_a_frame_does_not_keep_the_memory_of_what_it_handed_over(folder):
    """The local variable of the suspended forward is the tensor that was moved."""
    held = []

    def path(blocks, x):
        for block in blocks:
            held.append(x)
            x = block(x)
        return x

    class Looking(Sequential):
        def sweep(self, state, stage):
            if stage.name == "blocks.1":
                held_now.extend(in_file(x) for x in held[-len(state.batches) :])
            yield from super().sweep(state, stage)

    held_now = []
    watch(Loose(path), vectors(), Looking(offload_activations="disk", offload_limit=0, **WHOLE[Sequential]))

    assert held_now == [True] * 4


@BLOCKWISE
def test_nothing_is_left_after_an_error(folder, pipeline):
    model = Loose(straight)
    handle = model.blocks[2].second.register_forward_pre_hook(lambda *_: 1 / 0)
    seen = []

    class Looking(pipeline):
        def sweep(self, state, stage):
            seen.append(len(list(folder.iterdir())))
            yield from super().sweep(state, stage)

    with pytest.raises(BrokenPluginError, match="Looking.sweep at .*: ZeroDivisionError"):
        watch(model, vectors(), Looking(offload_activations="disk", offload_limit=0))

    assert 1 in seen
    handle.remove()
    assert list(folder.iterdir()) == []
    assert untouched(model)


@BLOCKWISE
def test_a_disk_without_room_is_told(folder, pipeline):
    folder.rmdir()

    with pytest.raises(CalibrationError, match="activations do not fit onto the disk.*TMPDIR"):
        watch(Loose(straight), vectors(), pipeline(offload_activations="disk", offload_limit=0))


def test_files_have_no_name_while_they_are_used(folder):
    with Offload(spills=True, limit=0) as room:
        room.put(torch.ones(9), torch.ones(9))

        assert [list(Path(one).iterdir()) for one in folder.iterdir()] == [[]]


@pytest.mark.parametrize("pipeline", [Sequential, LayerSequential, Independent])
def test_a_place_that_is_none_is_refused(pipeline):
    with pytest.raises(ValueError, match="offload_activations"):
        pipeline(offload_activations="tape")
    with pytest.raises(ValueError, match="offload_limit"):
        pipeline(offload_limit=-1)


def living_tensors() -> list[Tensor]:
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided]
    return [x for x in found if x.untyped_storage().nbytes()]
