"""The weights of a stage that was written earlier: what its codes stand for, and everything else as it is."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from coldpress.checkpoint.named import NamedWriter
from coldpress.checkpoint.tie import WrittenNames
from coldpress.errors import CheckpointError
from coldpress.format import Format
from coldpress.quantized import Quantized
from coldpress.schemes import Scheme
from coldpress.stage import class_names, oriented


def restored(
    writer: NamedWriter,
    form: Format,
    modules: Mapping[str, nn.Module],
    schemes: Mapping[str, Scheme],
    names: WrittenNames,
) -> Iterator[tuple[str, Tensor]]:
    """The parameters and saved buffers of modules whose stage is finished, one after the other.

    Args:
        writer: that has them in files.
        form: what wrote them.
        modules: by name.
        schemes: of the layers that are quantized.
        names: that tensors are written under.

    Raises:
        CheckpointError: a tensor is in no file.
    """
    there = writer.there()
    plain = not schemes or form.config(schemes, []) is None
    for name, module in modules.items():
        for part, tensor in own_tensors(module):
            full = f"{name}.{part}" if name else part
            if part == "weight" and name in schemes and schemes[name].weights is not None and not plain:
                decoded = restored_layer(writer, form, module, name, schemes[name]).weight(tensor.dtype)
                yield full, oriented(decoded, class_names(module)).contiguous()
                continue
            place = next(names.of(name, part))
            if place not in there:
                raise CheckpointError(f"no finished stage has {full!r}; begin anew with restart=True")
            yield full, writer.read(place)


def restored_layer(writer: NamedWriter, form: Format, module: nn.Module, name: str, scheme: Scheme) -> Quantized:
    """A layer that is written, as codes and scales."""
    found = writer.of_layer(name)
    for suffix in [one for one in found if one.rpartition(":")[2] == "weight"]:
        found[suffix] = oriented(found[suffix], class_names(module))
    return form.restore(found, scheme)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and saved buffers that belong to this module itself."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def refuse_extra_state(model: nn.Module) -> None:
    """Refuse modules that keep more than parameters and buffers.

    Raises:
        CheckpointError: names the module.
    """
    plain = nn.Module.get_extra_state
    for name, module in model.named_modules():
        if type(module).get_extra_state is not plain:
            raise CheckpointError(
                f"{name} ({type(module).__name__}) keeps extra state (get_extra_state), which a checkpoint of tensors "
                "has no place for: put a module without it in its place"
            )
