"""What a plug-in is to the files that people write: the bases of options classes, and tables in general.

A plug-in (data set, model, strategy, optimizer, logger, selection) is an options class that derives from one of the ``*Options`` here,
owns its fields and knows how to build the thing they describe. The classes live beside the plug-ins and are looked up by
name at run time (see ``plugins``), so this room imports nothing heavy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Index = Annotated[int, Field(ge=0)]
Degrees = Annotated[float, Field(ge=-360.0, le=360.0)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

PluginT = TypeVar("PluginT", bound="PluginOptions")


@dataclass(frozen=True)
class Traced:
    """Marks a hyperparameter as a traced value of the compiled program: trials that differ only in it share a program.

    Attributes:
        absent: the value that means "not there at all" and changes the program's structure (no momentum, say).
    """

    absent: float | None = None


class Erased:
    """Stands in ``structure()`` for a traced value. Any use of it as a number says where the value is instead."""

    def _refuse(self, *args: Any) -> Any:
        raise TypeError("this hyperparameter is a traced value: take it from the hyper argument, not from the options")

    __float__ = __int__ = __bool__ = __neg__ = __abs__ = __jax_array__ = __array__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __repr__(self) -> str:
        return "<traced>"


ERASED = Erased()


class Table(BaseModel):
    """A table of a file: every key validated, immutable, hashable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    not_in_identity: ClassVar[frozenset[str]] = frozenset()

    def canonical(self) -> dict[str, Any]:
        """The table as plain data with values equal to their default left out; equal meaning gives equal output."""
        out: dict[str, Any] = {}
        for key, has_default, default in _identity_fields(type(self)):
            value = getattr(self, key)
            if has_default and (value is default or value == default):
                continue
            plain = _plain(value)
            if plain != {}:
                out[key] = plain
        return out

    def plain(self) -> dict[str, Any]:
        """The whole table, defaults included, as data that YAML and JSON can hold."""
        out = _lists(self.model_dump(serialize_as_any=True))
        assert isinstance(out, dict)
        return out

    def structure(self: TableT) -> TableT:
        """The table with traced values erased: what is left decides the compiled program."""
        erased: dict[str, Any] = {}
        for key, marker in traced_fields(type(self)).items():
            if getattr(self, key) != marker.absent:
                erased[key] = ERASED
        return self.model_copy(update=erased)

    def traced(self) -> dict[str, float]:
        """Values of the traced hyperparameters, by field name."""
        return {key: float(getattr(self, key)) for key in traced_fields(type(self))}


TableT = TypeVar("TableT", bound=Table)


def traced_fields(table: type[Table]) -> dict[str, Traced]:
    """The fields of ``table`` that carry a ``Traced`` marker."""
    return {key: marker for key, field in table.model_fields.items() for marker in field.metadata if isinstance(marker, Traced)}


@functools.cache
def _identity_fields(table: type[Table]) -> tuple[tuple[str, bool, Any], ...]:
    """Key, whether there is a default, and the default, of the fields that are part of the identity. Made once a class: pydantic copies a
    default whenever it is asked for, which was most of what the identities of many trials took."""
    return tuple(
        (key, not field.is_required(), None if field.is_required() else field.get_default(call_default_factory=True))
        for key, field in table.model_fields.items()
        if key not in table.not_in_identity
    )


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Table):
        return value.canonical()
    if value is ERASED:
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class PluginOptions(Table):
    """Base of all plug-in options. ``name`` is the name in clray's table or ``package.module:attribute``."""

    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for key, field in cls.model_fields.items():
            if "list[" in repr(field.annotation) or field.annotation is list:
                raise TypeError(f"{cls.__name__}.{key} is a list, but options cannot change: make it a tuple")
            if "dict[" in repr(field.annotation) or field.annotation is dict:
                raise TypeError(f"{cls.__name__}.{key} is a dict, but options cannot change: make it a tuple of pairs, or one field a key")


class DatasetOptions(PluginOptions):
    """Options that every data set has. Subclasses say how to read the source (see ``clray.data``)."""

    not_in_identity: ClassVar[frozenset[str]] = frozenset({"root"})

    root: str | None = Field(None, description="folder with the source files; default $CLRAY_DATA_DIR or ~/.cache/clray/data")
    resize: tuple[Pixels, Pixels] | Pixels | None = Field(None, description="[height, width] or one number for both, pixels")
    pad: Annotated[int, Field(ge=0, le=4096)] = Field(0, description="zero pixels added at each side, after resize")
    grayscale: bool = False
    normalize: Literal["none", "standard"] = Field(
        "none", description="standard: subtract mean and divide by deviation of the training split, per channel"
    )
    train_per_class: Count | Literal["all"] | None = Field(None, description="default: the size of the smallest class")
    test_per_class: Count | None = Field(None, description="default: the size of the smallest class")
    validation_fraction: Fraction = Field(0.0, description="the end of each class's training samples, held out")

    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels asked for with ``resize``, or None."""
        if self.resize is None:
            return None
        return (self.resize, self.resize) if isinstance(self.resize, int) else (self.resize[0], self.resize[1])


class ModelOptions(PluginOptions):
    """Options that every model has. Subclasses implement ``build``."""

    init: Literal["flax", "pytorch"] = Field("flax", description="initialisers: flax's (lecun normal) or PyTorch's (uniform)")
    takes_images: ClassVar[bool] = False  # False: inputs arrive flattened, (B, D)

    def build(self, shape: tuple[int, ...], n_outputs: int, rngs: Any) -> Any:
        """A flax.nnx module whose call ``(x, train, rngs)`` returns ``(logits (B, n_outputs), hidden (B, H))``."""
        raise NotImplementedError


class Schedule(Table):
    """Learning rate over the batches of a task or of the whole sequence, as a factor of ``learning_rate``."""

    name: Literal["constant", "cosine", "warmup_cosine"] = "constant"
    per: Literal["task", "sequence"] = "task"
    warmup_fraction: Fraction = Field(0.1, description="part of the batches with linear warmup (warmup_cosine)")
    final: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.0, description="factor reached at the end")


class OptimizerOptions(PluginOptions):
    """Options that every optimizer has. Subclasses implement ``build``.

    Attributes:
        keeps_finite: whether a finite gradient always gives a finite update. Then the gradient alone is checked for divergence,
            which costs nothing; otherwise every update is, which costs a tenth of a step.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "learning_rate" not in traced_fields(cls):
            raise TypeError(f"{cls.__name__}.learning_rate must be traced: Annotated[float, Field(gt=0.0), Traced()], or leave it out")

    keeps_finite: ClassVar[bool] = False
    learning_rate: Annotated[float, Field(gt=0.0), Traced()] = 0.1
    schedule: Schedule = Schedule()

    def build(self, hyper: dict[str, Any], learning_rate: Any) -> Any:
        """An ``optax.GradientTransformation`` from traced values ``hyper`` and the scheduled ``learning_rate`` (both scalars)."""
        raise NotImplementedError


class HookMemory(NamedTuple):
    """What one lane holds on the device while hooks of its strategy work, beside its batch, its state and one gradient."""

    rows: int = 0  # samples whose activations are there with those of the batch
    gradients: int = 0  # arrays as large as all parameters
    data: int = 0  # copies of a task's training images


class StrategyOptions(PluginOptions):
    """Options that every strategy has (none). Subclasses implement ``build``."""

    trains_on: ClassVar[Literal["task", "all_so_far"]] = "task"  # where batches come from
    keeps_samples: ClassVar[bool] = False  # has a memory of training samples

    def needs_boundaries(self) -> str | None:
        """Why it must be told where a task ends; None where the hook ``boundary`` is all it needs (``boundaries: detected``)."""
        return "its class does not say that it can do without (needs_boundaries)"

    def build(self) -> Any:
        """A ``clray.strategies.base.Strategy``: a NamedTuple of pure functions."""
        raise NotImplementedError

    def misfit(self, sizes: Any) -> str | None:
        """What does not fit the sizes of the experiment (``clray.sizes.Sizes``), as ``key: reason``; None where all fits."""
        del sizes
        return None

    def hook_memory(self, sizes: Any, on_gpu: bool) -> HookMemory:
        """What its hooks hold at most, for the estimate of memory; rows that ``batch`` appends above all.

        Args:
            sizes: of the experiment (``clray.sizes.Sizes``).
            on_gpu: whether the program is for a GPU, where XLA works in other orders.
        """
        del sizes, on_gpu
        return HookMemory()


class LoggerOptions(PluginOptions):
    """Options that every logger has. Subclasses implement ``build``."""

    needs: ClassVar[tuple[str, ...]] = ()  # modules that have to be installed; of clray's own loggers by the extra of their name

    tags: tuple[str, ...] = Field((), description="words on the run, to find it by")

    def build(self) -> Any:
        """A ``clray.loggers.base.Logger``: one trial in one backend, not begun yet."""
        raise NotImplementedError


class SelectionOptions(PluginOptions):
    """Options that every selection of memory samples has. Subclasses implement ``select`` (see ``clray.selection.base``)."""

    label: Name | None = Field(None, description="name of its results, where a study has the same selection twice; default: its name")

    @property
    def shown(self) -> str:
        """What results are called after."""
        return self.label or self.name.rpartition(":")[2]

    def misfit(self, per_class: int) -> str | None:
        """What does not fit ``per_class`` training samples of a class, as ``key: reason``; None where all fits."""
        del per_class
        return None
