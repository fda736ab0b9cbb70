"""Observer: how what was seen of a tensor becomes the range that its scale covers."""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from attrs import Attribute, field, fields, frozen
from torch import Tensor

from coldpress.errors import BrokenPluginError, SchemeError, must_implement
from coldpress.registry import find
from coldpress.schemes import QuantizationArgs
from coldpress.spelling import suggest


def _check_args(observer: "Observer", attribute: "Attribute[QuantizationArgs]", value: Any) -> None:
    if not isinstance(value, QuantizationArgs):
        raise TypeError(f"args must be a QuantizationArgs, got {value!r}")


@frozen(kw_only=True)
class Observer:
    """Base of observers.  An observer is settings; what it has seen is a statistic that the caller keeps.

        statistic = None
        for x in batches:
            statistic = observer.update(statistic, group(x, args))
        scale, zero_point = calculate_qparams(*observer.range(statistic), args)

    A subclass is frozen; its fields beside `args` are the `observer_kwargs` of a scheme.

    Attributes:
        args: how the tensor is quantized.
    """

    order_matters: ClassVar[bool] = False
    """The range depends on the order of the batches and on where one ends; so a moving average."""

    merges_batches: ClassVar[bool] = False
    """`update(statistic, x)` is `merge(statistic, update(None, x))`, bit for bit; several ranks then send no tokens."""

    weighs_columns: ClassVar[bool] = False
    """`weight_range` looks at `importance`: what the mean squares of the inputs of a layer are."""

    whole_range: ClassVar[bool] = False
    """The range of a weight is that from its smallest to its largest element; another modifier may choose less."""

    args: QuantizationArgs = field(validator=_check_args)

    def update(self, statistic: Any | None, x: Tensor) -> Any:
        """See one batch, or a whole weight.

        Args:
            statistic: of what was seen before; None at first.  It is not changed.
            x: as `numerics.group` gives it, [*scale_shape, n], n at least 1.

        Returns:
            The statistic of all that was seen.
        """
        raise must_implement(self, "update(statistic, x)")

    def merge(self, a: Any, b: Any) -> Any:
        """The statistic of two sets of batches, seen apart; which is first does not matter."""
        raise must_implement(self, "merge(a, b)")

    def range(self, statistic: Any) -> tuple[Tensor, Tensor]:
        """The smallest and the largest number that the scale shall cover, [*scale_shape] each, in the dtype of `x`."""
        raise must_implement(self, "range(statistic)")

    def weight_range(
        self, x: Tensor, *, global_scale: Tensor | None = None, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The range of a weight, which is seen once and whole; observers that search look at more than the weight.

        Args:
            x: the weight as `numerics.group` gives it, [*scale_shape, n].
            global_scale: [1], by which scales are multiplied before they are rounded; None for most schemes.
            importance: what an error costs, [*scale_shape, n] float32, not negative; None where all cost the same.

        Returns:
            As `range`.
        """
        return self.range(self.update(None, x))


def checked_range(observer: Observer, found: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What an observer found, after a look at its form.

    Args:
        observer: whose range it is.
        found: the smallest and the largest number.
        shape: of the scale that is made of them.

    Raises:
        BrokenPluginError: it is no pair of finite tensors of this shape.
    """
    who = f"the observer {type(observer).__name__} gives"
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(end, Tensor) for end in found)):
        raise BrokenPluginError(f"{who} a {type(found).__name__}, not a pair of tensors: smallest and largest")
    for end in found:
        if tuple(end.shape) != tuple(shape):
            raise BrokenPluginError(f"{who} a range of the shape {tuple(end.shape)}, and must give {tuple(shape)}")
        if not bool(end.float().isfinite().all()):
            raise BrokenPluginError(f"{who} a range that is not finite")
    return found


def observer_for(args: QuantizationArgs, default: str) -> Observer:
    """The observer that a scheme names, with its `observer_kwargs`.

    Args:
        args: names the observer, or does not.
        default: the observer's name where `args` has none.

    Raises:
        PluginError: the observer is not installed or cannot be used.
        SchemeError: `observer_kwargs` has what the observer does not know or allow.
    """
    name = args.observer or default
    kind = find("observers", name)
    if not (isinstance(kind, type) and issubclass(kind, Observer)):
        raise BrokenPluginError(f"the observer {name!r} is {kind!r}, not a subclass of coldpress.Observer")
    _check_settings(name, kind, args.observer_kwargs)
    try:
        return kind(args=args, **args.observer_kwargs)
    except (TypeError, ValueError) as error:  # attrs validators put more than the message into args
        raise SchemeError(f"observer_kwargs of {name!r}: {error.args[0]}", place=("observer_kwargs",)) from error


def check_observer(args: QuantizationArgs | None, default: str, *, place: tuple[str, ...]) -> None:
    """Refuse `observer_kwargs` that the observer does not take.

    Args:
        args: of one part of a scheme, if it has that.
        default: the observer's name where `args` has none.
        place: of `args` in the settings of a modifier, which the error says.

    Raises:
        SchemeError: the observer does not know them, or allow their values.
    """
    if args is None or not args.observer_kwargs:
        return
    try:
        observer_for(args, default)
    except SchemeError as error:
        raise SchemeError(str(error), place=(*place, *error.place)) from error


def _check_settings(name: str, kind: type[Observer], settings: Mapping[str, Any]) -> None:
    known = [attribute.name for attribute in fields(cast(Any, kind)) if attribute.name != "args"]
    for setting in settings:
        if setting not in known:
            has = f"it has {', '.join(known)}" if known else "it has no settings"
            raise SchemeError(
                f"observer_kwargs: {name!r} has no {setting!r}{suggest(setting, known)}; {has}",
                place=("observer_kwargs", setting),
            )
