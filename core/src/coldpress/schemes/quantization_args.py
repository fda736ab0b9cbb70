"""How one tensor becomes numbers of a grid: the field's `QuantizationArgs`, validated as the field validates them."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from attrs import Attribute, Converter, field, fields, frozen

from coldpress.arguments.settings import short_repr
from coldpress.errors import SchemeError
from coldpress.spelling import suggest

STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
DYNAMIC_STRATEGIES = ("token", "tensor", "tensor_group", "group")
GROUPED = ("group", "tensor_group")
SUPER_BLOCK = 256
"""Columns whose scales are multiples of one number, where scales have bits of their own."""


def _integer(name: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SchemeError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _to_num_bits(value: Any) -> int:
    return _integer("num_bits", value, least=1)


def _to_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    lowered = value.lower() if isinstance(value, str) else None
    if lowered not in choices:
        hint = suggest(value, choices) if isinstance(value, str) else ""
        raise SchemeError(f"{name} must be one of {', '.join(choices)}; got {value!r}{hint}")
    return lowered


def _to_type(value: Any) -> Literal["int", "float"]:
    return cast(Literal["int", "float"], _to_choice("type", value, ("int", "float")))


def _to_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SchemeError(f"{name} must be true or false, got {value!r}")
    return value


def _to_symmetric(value: Any) -> bool:
    return _to_bool("symmetric", value)


def _to_group_size(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise SchemeError(f"group_size must be a positive integer, or -1 for one scale a channel; got {value!r}")
    return value


def _to_strategy(value: Any, args: "QuantizationArgs") -> str:
    if value is not None:
        return _to_choice("strategy", value, STRATEGIES)
    if args.group_size is None:
        return "tensor"
    if args.group_size == 0:
        raise SchemeError("group_size must be a positive integer, or -1 for one scale a channel; got 0")
    return "group" if args.group_size > 0 else "channel"


def _to_block_structure(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides: Any = value.split("x") if isinstance(value, str) else value
    if isinstance(value, str) and all(side.strip().isdecimal() for side in sides):
        sides = [int(side) for side in sides]
    if isinstance(sides, (list, tuple)) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
        return sides[0], sides[1]
    raise SchemeError(
        f"block_structure must be [rows, columns], two positive integers such as [128, 128]; got {value!r}"
    )


def _to_dynamic(value: Any) -> "bool | Literal['local']":
    if isinstance(value, str) and value.lower() == "local":
        return "local"
    if isinstance(value, bool):
        return value
    raise SchemeError(f"dynamic must be true, false or 'local'; got {value!r}")


def _to_actorder(value: Any) -> "Literal['weight'] | None":
    if value is None or value is False:
        return None
    if isinstance(value, str) and value.lower() in ("weight", "static"):
        return "weight"
    if value is True or (isinstance(value, str) and value.lower() in ("group", "dynamic")):
        raise SchemeError(
            f"actorder={value!r} reorders the stored columns, which the field has given up; "
            "use actorder='weight' (the same order while rounding, the usual order on disk)"
        )
    raise SchemeError(f"actorder must be 'weight' (also called 'static') or null, got {value!r}")


def _to_dtype(name: str, value: Any) -> torch.dtype | None:
    if value is None or isinstance(value, torch.dtype):
        return value
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    if not isinstance(found, torch.dtype):
        raise SchemeError(f"{name} must be the name of a torch dtype such as 'torch.uint8', got {value!r}")
    return found


def _to_scale_dtype(value: Any, args: "QuantizationArgs") -> torch.dtype | None:
    two_levels = args.strategy == "tensor_group" and (args.type, args.num_bits) == ("float", 4)
    return _to_dtype("scale_dtype", torch.float8_e4m3fn if value is None and two_levels else value)


def _to_zp_dtype(value: Any, args: "QuantizationArgs") -> torch.dtype | None:
    fractions = args.scale_bits is not None and not args.symmetric
    return _to_dtype("zp_dtype", torch.float32 if value is None and fractions else value)


def _to_scale_bits(value: Any) -> int | None:
    return None if value is None else _integer("scale_bits", value, least=2)


def _to_signed_scales(value: Any) -> bool:
    return _to_bool("signed_scales", value)


def _to_observer(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise SchemeError(f"observer must be the name of an observer, such as 'minmax'; got {value!r}")


def _to_observer_kwargs(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise SchemeError(f"observer_kwargs must map names of settings to values, got {value!r}")


@frozen(kw_only=True)
class QuantizationArgs:
    """How one tensor is quantized.

    Attributes:
        num_bits: bits of one number.
        type: the grid is of integers or of floating-point numbers.
        symmetric: zero is in the middle of the range, so there is no zero point.
        group_size: columns that share a scale, for the strategies group and tensor_group; -1 means channel.
        strategy: what shares a scale: tensor, channel, group, block, token, tensor_group or attn_head.
            Left out, it follows from `group_size`: none is tensor, positive is group, -1 is channel.
        block_structure: (rows, columns) that share a scale, for the strategy block; "128x128" is understood.
        dynamic: scales are computed as the model runs; "local" computes the scales of groups so and the global
            scale from calibration data.
        actorder: "weight" rounds columns in the order of their activations; "static" is another word for it.
        scale_dtype: what scales are rounded to; left out, they keep the dtype of the tensor, and those of NVFP4 are
            float8_e4m3fn, which is the format.
        scale_bits: bits of a scale, which is a multiple of one float16 for each 256 columns, and of a minimum, which
            has a float16 of its own; where weights are asymmetric, a zero point is a minimum over a scale, and no whole
            number.  ggml's K-quants are these.  Left out, scales are as `scale_dtype` says.
        zp_dtype: what zero points are rounded to; left out, it follows from the grid.
        signed_scales: of symmetric integers, which reach one step further below zero than above: scales are negative
            where the larger end of a range is above zero, so that it, too, lies at the further end of the grid.
        observer: how a range becomes a scale, a plugin's name; left out, the caller's default.
        observer_kwargs: settings of the observer.

    Raises:
        SchemeError: a value is not understood, or two contradict each other.
    """

    num_bits: int = field(default=8, converter=_to_num_bits)
    type: Literal["int", "float"] = field(default="int", converter=_to_type)
    symmetric: bool = field(default=True, converter=_to_symmetric)
    group_size: int | None = field(default=None, converter=_to_group_size)
    strategy: str = field(default=None, converter=Converter(_to_strategy, takes_self=True))  # type: ignore[call-overload, misc]
    block_structure: tuple[int, int] | None = field(default=None, converter=_to_block_structure)
    dynamic: bool | Literal["local"] = field(default=False, converter=_to_dynamic)
    actorder: Literal["weight"] | None = field(default=None, converter=_to_actorder)
    scale_dtype: torch.dtype | None = field(default=None, converter=Converter(_to_scale_dtype, takes_self=True))  # type: ignore[call-overload, misc]
    scale_bits: int | None = field(default=None, converter=_to_scale_bits)
    zp_dtype: torch.dtype | None = field(default=None, converter=Converter(_to_zp_dtype, takes_self=True))  # type: ignore[call-overload, misc]
    signed_scales: bool = field(default=False, converter=_to_signed_scales)
    observer: str | None = field(default=None, converter=_to_observer)
    observer_kwargs: dict[str, Any] = field(factory=dict, converter=_to_observer_kwargs, hash=False)

    def __repr__(self) -> str:
        return short_repr(self, always=("num_bits", "type"))

    @strategy.validator
    def _check_relations(self, attribute: "Attribute[str]", strategy: str) -> None:
        if strategy == "token" and not self.dynamic:
            raise SchemeError("strategy 'token' has no static scales; set dynamic=true")
        if strategy in GROUPED and (self.group_size is None or self.group_size <= 0):
            raise SchemeError(f"strategy {strategy!r} needs a positive group_size, got {self.group_size}; 128 is usual")
        if strategy not in GROUPED and self.group_size is not None and self.group_size > 0:
            raise SchemeError(
                f"group_size={self.group_size} contradicts strategy {strategy!r}; "
                "use strategy 'group' or drop group_size"
            )
        if strategy == "block" and self.block_structure is None:
            raise SchemeError("strategy 'block' needs block_structure, for example [128, 128]")
        if strategy != "block" and self.block_structure is not None:
            raise SchemeError(f"block_structure contradicts strategy {strategy!r}; use strategy 'block' or drop it")
        if self.dynamic and strategy not in DYNAMIC_STRATEGIES:
            raise SchemeError(
                f"dynamic={self.dynamic!r} contradicts strategy {strategy!r}; "
                f"scales are dynamic for {', '.join(DYNAMIC_STRATEGIES)} only"
            )
        if self.dynamic == "local" and strategy != "tensor_group":
            raise SchemeError(f"dynamic='local' needs strategy 'tensor_group', got {strategy!r}")

    @scale_bits.validator
    def _check_super_blocks(self, attribute: "Attribute[int | None]", bits: int | None) -> None:
        if bits is None:
            return
        if self.type != "int" or self.strategy != "group" or self.scale_dtype is not None:
            raise SchemeError("scale_bits is for int weights in groups, without scale_dtype")
        if not self.group_size or SUPER_BLOCK % self.group_size:
            raise SchemeError(f"scale_bits needs a group_size that divides {SUPER_BLOCK}, got {self.group_size}")

    @signed_scales.validator
    def _check_signs(self, attribute: "Attribute[bool]", signed: bool) -> None:
        if signed and not may_be_signed(self):
            raise SchemeError("signed_scales is for symmetric integers with scales of one level, which do not change")

    @classmethod
    def from_dict(cls, data: Any) -> "QuantizationArgs":
        """Read what `to_dict` or the library compressed-tensors wrote, nulls included, or an object of that library.

        Raises:
            SchemeError: a field is unknown, or its value is.
        """
        data = dumped(data)
        check_fields(cls, data)
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that the library compressed-tensors (0.20) writes: what says nothing is left out."""
        data: dict[str, Any] = {
            "num_bits": self.num_bits,
            "type": self.type,
            "symmetric": self.symmetric,
            "group_size": self.group_size,
            "strategy": self.strategy,
            "dynamic": self.dynamic,
            "actorder": self.actorder,
            "block_structure": list(self.block_structure) if self.block_structure else None,
            "scale_dtype": str(self.scale_dtype) if self.scale_dtype else None,
            "scale_bits": self.scale_bits,
            "zp_dtype": str(self.zp_dtype) if self.zp_dtype and not self.symmetric else None,
            "signed_scales": self.signed_scales or None,
            "observer": self.observer,
            "observer_kwargs": dict(self.observer_kwargs) or None,
        }
        return {name: value for name, value in data.items() if value is not None or name == "group_size"}


def may_be_signed(args: QuantizationArgs) -> bool:
    """Whether `signed_scales` means something: zero is in the middle, and the grid reaches further below it."""
    return args.type == "int" and args.symmetric and args.scale_bits is None and not args.dynamic


def is_microscaled(args: QuantizationArgs) -> bool:
    """Whether scales are powers of two that are stored as bare exponents (E8M0), as in MXFP4, MXFP6 and MXFP8."""
    return args.type == "float" and args.scale_dtype == torch.uint8


def dumped(data: Any) -> Any:
    """The fields of an object of the library compressed-tensors, by its own `model_dump`; other data as they are."""
    dump = getattr(data, "model_dump", None)
    return dump() if callable(dump) else data


def check_fields(cls: type, data: Any) -> None:
    """Refuse what is not a mapping, and keys that `cls` has no field for.

    Raises:
        SchemeError: so it is; the nearest field is suggested.
    """
    if not isinstance(data, Mapping):
        raise SchemeError(f"expected the fields of {cls.__name__}, got {data!r}")
    known = [attribute.name for attribute in fields(cls)]
    for name in data:
        if name not in known:
            raise SchemeError(f"{name!r} is not a field of {cls.__name__}{suggest(str(name), known)}")
