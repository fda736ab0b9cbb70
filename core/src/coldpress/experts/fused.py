"""Fused weights: where a module keeps those of all of its experts.

gate_up_proj   [E, 2 M, H]     tensors of its own, of three dimensions: nearly every model
mlp.w1         [E * M, H]      matrices of its only child, expert below expert: DBRX
"""

from torch import Tensor, nn

NO_EXPERTS = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d
"""Modules whose weights have three dimensions or more, and which are of no expert."""


def expert_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that hold experts, with their biases, by name from the module."""
    child, _ = stacked(module)
    owner = module.get_submodule(child) if child else module
    prefix = f"{child}." if child else ""
    return {prefix + name: parameter for name, parameter in owner.named_parameters(recurse=False)}


def fused_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of all experts, [E, ., .] each, by the names of their parameters.

    Tensors of one expert are taken for such where the class is called so: classification tokens have that shape, too.
    """
    parameters, (child, count) = expert_parameters(module), stacked(module)
    if child:
        return {name: matrix.detach().reshape(count, -1, matrix.shape[1]) for name, matrix in parameters.items()}
    if isinstance(module, NO_EXPERTS):
        return {}
    least = 1 if "Expert" in type(module).__name__ else 2
    cubes = {name: tensor for name, tensor in parameters.items() if tensor.ndim == 3}
    return {name: one.detach() for name, one in cubes.items() if one.shape[0] >= least and min(one.shape[1:]) > 1}


def stacked(module: nn.Module) -> tuple[str, int]:
    """The only child of a module, if its matrices hold all experts, and how many experts these are; else "" and 0.

    The module itself has no weights then, and says how many experts there are.
    """
    if any(True for _ in module.parameters(recurse=False)):
        return "", 0
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
    counts = {value for key, value in vars(module).items() if "expert" in key and type(value) is int and value > 1}
    if len(children) != 1 or len(counts) != 1:
        return "", 0
    (name, child), count = children[0], counts.pop()
    matrices = list(child.parameters(recurse=False))
    whole = len(matrices) == len(list(child.parameters())) and len(matrices) in (2, 3)
    if not whole or any(matrix.ndim != 2 or matrix.shape[0] % count for matrix in matrices):
        return "", 0
    return name, count
