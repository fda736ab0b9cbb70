"""Buffers that attachments of many modules share: kept once, and the same tensors wherever they come back."""

import torch
from torch import nn

from coldpress.attachment import attach
from coldpress.bases.online_rotation import InputRotation
from coldpress.checkpoint.attachments import SharedBuffers, recall_attachments, record_attachments


def rotated(*matrices):
    """Layers whose inputs are rotated by stored matrices."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in matrices))
    online = InputRotation(group="R4", stored=True)
    for layer, matrix in zip(model, matrices, strict=True):
        attach(layer, online, {"R4_input": matrix})
    return model


def test_each_is_kept_once_and_recalled_as_one_tensor():
    first, second = torch.ones(4, 4), -torch.ones(4, 4)
    model, files = rotated(first, first.clone(), second), {}
    modules, shared = dict(model.named_modules()), SharedBuffers(files.get)

    files.update(shared.added(modules))
    records = record_attachments(modules, shared)
    plain = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    recall_attachments(records, dict(plain.named_modules()), plain, SharedBuffers(files.get))

    assert list(files) == ["shared-0", "shared-1"]
    assert list(shared.added(modules)) == []
    assert [record["shared"] for record in records] == ["shared-0", "shared-0", "shared-1"]
    assert plain[0].R4_input is plain[1].R4_input
    assert torch.equal(plain[2].R4_input, second)


def test_they_are_no_part_of_the_state_of_their_modules():
    assert sorted(rotated(torch.ones(4, 4)).state_dict()) == ["0.bias", "0.weight"]
