"""The teacher of distillation: in evaluation mode, without gradients, on its own device."""

from typing import Any

from torch import nn

from coldpress.errors import ModelError


def freeze(teacher: nn.Module) -> nn.Module:
    """The teacher itself, whose parameters require no gradient from now on."""
    return teacher.requires_grad_(False).eval()


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that is the student, or whose tokens are others.

    Raises:
        ModelError: says how they differ.
    """
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ModelError("the teacher has parameters of the model that is trained: pass a copy, or the name of one")
    sizes = [_vocabulary(model) for model in (teacher, student)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ModelError(
            f"the teacher has a vocabulary of {sizes[0]} tokens and the model one of {sizes[1]}: distillation compares "
            "logits token by token, choose a teacher with the same tokenizer"
        )


def _vocabulary(model: Any) -> int | None:
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "vocab_size", None)
    return found if isinstance(found, int) else None
