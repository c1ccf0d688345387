"""The data sources, one file each. A new file here is a new source: it defines `Config` and `load(config)`."""

import os
import re
from typing import TYPE_CHECKING, Any

from vaecli import output, registry
from vaecli.errors import ConfigError, InputError
from vaecli.paths import cache_dir, data_dir

if TYPE_CHECKING:
    from vaecli.batch import DataInfo
    from vaecli.data.base import DataConfig, Dataset

ARRAYS = (".npz", ".npy", ".h5", ".hdf5", ".csv", ".tsv")  # endings of files that hold a set
SHARDS = (".tar", ".parquet")

__all__ = ["cache_dir", "data_dir", "load", "parse"]


def parse(spec: str) -> dict[str, str]:
    """The `data` section that a word on the command line stands for: `dsprites`, `folder:PATH`, `array:FILE`, or the
    path alone of a folder or a NumPy file.

    ConfigError where there is no such source, or where it takes no path.
    """
    name, colon, path = spec.partition(":")
    known = registry.names("dataset")
    if name not in known and (there := _source_of(spec)):
        return {"name": there, "path": spec}
    if name not in known:
        raise ConfigError(f"no dataset is called {name[:80]!r}{registry.nearest(name, known)}")
    if not colon:
        return {"name": name}
    if "path" not in registry.load("dataset", name).Config.model_fields:
        raise ConfigError(f"the dataset {name!r} takes no path, but {spec[:200]!r} was given", f"write {name!r} alone")
    if not path:
        raise ConfigError(f"the path after {spec!r} is missing", f"write {name}:PATH")
    return {"name": name, "path": path}


def is_set(path: str) -> bool:
    """Whether a path is a whole data set, and no image file."""
    return os.path.isdir(path) or path.lower().endswith((*ARRAYS, *SHARDS))


def _source_of(path: str) -> str | None:
    """`folder`, `array` or `shards` for a path at which there is one."""
    if os.path.isdir(path):
        return "folder"
    ending = path.lower()
    kind = "array" if ending.endswith(ARRAYS) else "shards" if ending.endswith(SHARDS) else None
    return kind if os.path.isfile(path) else None


def range_of(info: "DataInfo", before: str = "dtype") -> Any:
    """The range of values by which a model's images were read, as `data.range` has it; `before` where none is kept.

    InputError where what is stored is none: it is a stranger's.
    """
    from pydantic import TypeAdapter, ValidationError

    from vaecli.data import _range

    try:
        wanted = TypeAdapter(_range.Wanted).validate_python(info.source.get("range", before))
        _range.check(wanted)
    except (ValidationError, ValueError, ConfigError):
        raise InputError("the range of values stored with the model is damaged") from None
    return wanted


def fit_of(info: "DataInfo") -> Any:
    """How a model's images of other proportions were fitted, as `data.fit` has it.

    InputError where what is stored is no way to do so: it is a stranger's.
    """
    stored = info.source.get("fit", {"how": "crop"})
    if not isinstance(stored, dict) or stored.get("how") not in ("crop", "pad", "stretch"):
        raise InputError("the fit of the images stored with the model is damaged")
    return stored["how"]


def division_of(info: "DataInfo") -> str:
    """How the images of a model were divided into those to train on and those held out, as `assemble` asks for it.

    InputError where what is stored is none: it is a stranger's.
    """
    from vaecli.data.base import BY_POSITION, DIVISION

    stored = info.source.get(DIVISION, BY_POSITION)
    if stored != BY_POSITION and not (isinstance(stored, str) and re.fullmatch(r"[0-9a-f]{16}", stored)):
        raise InputError("the division of the data stored with the model is damaged")
    return str(stored)


def elsewhere(config: "DataConfig", info: "DataInfo", spec: str) -> "DataConfig":
    """The data set at `spec` in place of a model's own, read as the model's own images were.

    ConfigError where `spec` is no data set.
    """
    values = parse(spec)
    module = registry.load("dataset", values["name"])
    fields, (channels, height, width) = module.Config.model_fields, info.shape
    kept = config.model_dump() if values["name"] == config.name else {"holdout": config.holdout}
    if "image_size" in fields:
        kept |= {"image_size": [height, width], "channels": channels if channels in (1, 3) else None}
        kept.setdefault("fit", fit_of(info))
    found: DataConfig = module.Config.model_validate({**kept, **values})
    return found


def load(config: "DataConfig", trained_on: "DataInfo | None" = None) -> "Dataset":
    """The data set that a checked configuration describes, in memory.

    `trained_on`: what a model was trained on, by whose range of values files and arrays are read again, and divided by
    its bound; InputError if the images now have another shape, a warning if they are others.

    ConfigError for options that do not fit the data, InputError for files that cannot be used, MachineError for want
    of memory, disk or network.
    """
    if trained_on is not None and "range" in type(config).model_fields:
        # Before the range was kept, folders were read by the whole range of a type.
        before = "dtype" if config.name == "folder" else "auto"
        config = config.model_copy(update={"range": range_of(trained_on, before)})
        config._division = division_of(trained_on)
    dataset: Dataset = registry.load("dataset", config.name).load(config)
    if trained_on is not None:
        if dataset.info.shape != trained_on.shape:
            now, then = ("x".join(map(str, info.shape)) for info in (dataset.info, trained_on))
            raise InputError(f"{config.name}: the images are {now} now, the model was trained on {then}")
        if dataset.info.source.get("sha256") != trained_on.source.get("sha256"):
            output.warning(f"{config.name}: the images are not those the model was trained on")
    return dataset
