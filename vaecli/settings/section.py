"""`Section`: the strict, frozen base of every part of the configuration, and the number types they share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Unknown keys, NaN and values of another type are errors; an instance never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


PositiveInt = Annotated[int, Field(gt=0, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Latent and layer widths come from files of strangers: the bound keeps a hostile value from reaching an allocation.
Width = Annotated[int, Field(gt=0, le=65_536)]
# Of the networks' arithmetic while training; everything else is float32 (float64 where sums are long).
Precision = Literal["fp32", "bf16"]
