"""`Section`: the strict, frozen base of every part of the configuration, and the number types they share."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Unknown keys, NaN and values of another type are errors; an instance never changes.

    A section within that does not say which one it is (`name`) is of the default's kind, where it has such settings.
    `also` are keys that a section takes in place of its own.
    """

    also: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _kind_of_the_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        named = {}
        for key, value in data.items():
            default = cls.model_fields[key].default if key in cls.model_fields else None
            if isinstance(default, Section) and isinstance(value, dict) and "name" not in value:
                fields = type(default).model_fields
                if "name" in fields and value.keys() <= fields.keys():
                    named[key] = {"name": getattr(default, "name"), **value}  # noqa: B009
        return {**data, **named} if named else data


PositiveInt = Annotated[int, Field(gt=0, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
# A batch is gathered image by image: one without a bound grows until the memory is gone, and takes no signal.
BatchSize = Annotated[int, Field(gt=0, le=1_000_000)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Latent and layer widths come from files of strangers: the bound keeps a hostile value from reaching an allocation.
Width = Annotated[int, Field(gt=0, le=65_536)]
# Of the networks' arithmetic while training; everything else is float32 (float64 where sums are long).
Precision = Literal["fp32", "bf16"]
