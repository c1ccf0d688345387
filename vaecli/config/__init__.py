"""The configuration of a run: a tree of values in, one checked, frozen `RunConfig` out.

Layers, lowest first: defaults, preset, `--config FILE`, flags, `--set a.b=c`, merged into one `Tree`. Each value
remembers where it came from, so that every mistake is reported at once, with file and line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from vaecli import paths, registry
from vaecli.config.tree import Key, Tree
from vaecli.errors import ConfigError
from vaecli.settings.optim import OPTIMS, SGD, Adagrad, Adam, AdamW, OptimConfig, RMSprop
from vaecli.settings.section import BatchSize, Count, NonNegative, PositiveInt, Precision, Section

if TYPE_CHECKING:
    from vaecli.data.base import DataConfig
    from vaecli.densities.base import DensityConfig
    from vaecli.models.base import ModelConfig

MAX_MISTAKES = 20  # of one section, that are listed

# ------------------------------------------------------------------ sections that belong to no single model or dataset


class TrainConfig(Section):
    # As a mapping from the model's stages to numbers they are trained one after the other, else all of them at once or,
    # where they cannot be, each for so many steps.
    steps: Count | dict[str, PositiveInt] = 20_000
    batch_size: BatchSize = 64
    log_every: PositiveInt = 100
    eval_every: PositiveInt = 5_000
    eval_images: PositiveInt = 10_000  # at most so many held-out images in the evaluations during training
    samples: Annotated[int, Field(ge=0, le=1024)] = 64  # drawn at every evaluation, as a picture in the run directory
    save_every: PositiveInt = 5_000
    save_minutes: NonNegative = 10  # saved also so long after the last checkpoint, however few the steps; 0: not
    keep: PositiveInt = 2  # checkpoints kept, newest first
    fast: bool = True  # the faster equivalents of vaecli.speed, where they work
    precision: Precision = "fp32"  # bf16: the networks compute in bfloat16, where the hardware does
    deterministic: bool = True  # false, on a GPU: whichever kernels are quickest, and no run is repeated to the digit
    log: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(default=[])  # told what metrics.jsonl is

    def in_stage(self, step: int) -> int:
        """`step` counted from the start of its stage, as schedules are; after the last step, of the last stage."""
        if not isinstance(self.steps, dict):
            return step
        *earlier, _ = self.steps.values()
        for count in earlier:
            if step < count:
                break
            step -= count
        return step

    @property
    def total_steps(self) -> int:
        """Of all stages together."""
        return sum(self.steps.values()) if isinstance(self.steps, dict) else self.steps


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    model: "ModelConfig"
    data: "DataConfig"
    optim: Adam | AdamW | Adagrad | RMSprop | SGD
    train: TrainConfig
    seed: int
    density: "DensityConfig | None" = None  # fitted to the codes after the last step

    def to_tree(self) -> dict[str, Any]:
        """Plain nested values, complete; `build` of it gives an equal configuration."""
        sections = {name: getattr(self, name) for name in ("model", "data", "optim", "train", "density")}
        dumped = {name: section.model_dump(mode="json") for name, section in sections.items() if section is not None}
        return {**dumped, "seed": self.seed}


# ---------------------------------------------------------------------------------------------------------- building

SECTIONS = ("model", "data", "optim", "train", "density", "seed")


def build(tree: Tree) -> RunConfig:
    """Check every section; ConfigError listing all mistakes at once, each with its place and the nearest valid name."""
    problems: list[str] = []
    sections: dict[str, Any] = {}
    values = tree.values
    unknown = [key for key in values if key not in SECTIONS]
    for key in unknown[:MAX_MISTAKES]:
        problems.append(_place(tree, (key,)) + f"{key[:60]}: no such section{registry.nearest(key, SECTIONS)}")
    if len(unknown) > MAX_MISTAKES:
        problems.append(f"and {len(unknown) - MAX_MISTAKES} more that are no sections")
    for name in SECTIONS:
        try:
            sections[name] = _section(name, values, tree)
        except ConfigError as error:
            problems.append(str(error))
        except ValidationError as error:
            problems.extend(_explain(error, name, tree, sections.get(name)))
    if not problems:
        sections["train"] = _each_stage(sections["train"], sections["model"])
    if problems:
        raise (
            ConfigError(*problems)
            if len(problems) == 1
            else ConfigError("the configuration is not usable:", more=problems)
        )
    return RunConfig(**sections)


def build_density(tree: Tree) -> "DensityConfig":
    """The section `density` of a tree that has no other; ConfigError as of `build`."""
    try:
        found: DensityConfig = _section("density", tree.values, tree)
    except ValidationError as error:
        first, *rest = _explain(error, "density", tree, None)
        raise ConfigError(first, more=rest) from None
    return found


def _each_stage(train: TrainConfig, model: "ModelConfig") -> TrainConfig:
    """One number of steps is that of each stage, for a model whose stages cannot go side by side."""
    cls = registry.load("model", model.name).Model
    if not cls.sequential or isinstance(train.steps, dict) or train.steps == 0:
        return train
    return train.model_copy(update={"steps": dict.fromkeys(cls.stages, train.steps)})


_KINDS = {"model": "model", "data": "dataset", "density": "density"}  # in the registry


def _section(name: str, values: Mapping[str, Any], tree: Tree) -> Any:
    value = values.get(name, None if name == "density" else {})
    if name == "density" and value is None:
        return None
    if name == "seed":
        return TypeAdapter(Count).validate_python(value if name in values else 0, strict=True)
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise ConfigError(_place(tree, (name,)) + f"{name}: a section is expected, not {value!r}")
    if name == "train":
        return TrainConfig.model_validate(value)
    if name == "optim":
        return TypeAdapter(OptimConfig).validate_python({"name": "adam", **value})
    kind = _KINDS[name]
    if name == "model":
        value = {"name": "vae", **value}
    if name == "data" and isinstance(value.get("name"), str):
        from vaecli import data

        value = {**value, **data.parse(value["name"])}
        if isinstance(value.get("path"), str):  # a checkpoint is used from other directories than its run's
            value["path"] = paths.portable(value["path"])
    if not isinstance(value.get("name"), str):
        raise ConfigError(
            _place(tree, (name,)) + f"{name}.name: which {kind}? There are: {', '.join(registry.names(kind))}"
        )
    try:
        module = registry.load(kind, value["name"])
    except ConfigError as error:
        raise ConfigError(_place(tree, (name, "name")) + f"{name}.name: {error}") from None
    return module.Config.model_validate({**value, "name": registry.standard(kind, value["name"])})


def _place(tree: Tree, path: Key) -> str:
    origin = tree.origin(path)
    return f"{origin}: " if origin else ""


def _explain(error: ValidationError, section: str, tree: Tree, _: Any) -> list[str]:
    lines: list[str] = []
    mistakes = error.errors(include_url=False)
    for item in mistakes[:MAX_MISTAKES]:
        loc = [str(part) for part in item["loc"]]
        if len(mistakes) > 1 and isinstance(item["input"], dict) and loc[-1:] in (["float"], ["int"]):
            continue  # a number or a section: what is wrong with the section is said
        if loc and loc[-1].startswith("tagged-union["):
            loc.pop()
        path = _tree_path((section, *loc), tree.values)
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such option" + registry.nearest(path[-1], _siblings(section, path, tree.values))
        elif item["type"] == "missing":
            message = "is required"
        elif item["type"] == "union_tag_invalid":
            known = [word.strip("' ") for word in str(item["ctx"]["expected_tags"]).split(",")]
            message = f"there is no {str(item['ctx']['tag'])[:60]!r}{registry.nearest(str(item['ctx']['tag']), known)}"
        elif item["type"] == "union_tag_not_found":
            message = _which(section, path, item, tree.values)
        elif "input" in item and not isinstance(item["input"], dict):
            message = f"{message[:1].lower()}{message[1:]} (got {str(item['input'])[:60]!r})"
        line = _place(tree, path) + f"{'.'.join(path)}: {message}"
        if line not in lines and not any(line.startswith(_place(tree, path) + ".".join(path)) for line in lines):
            lines.append(line)
    if len(mistakes) > MAX_MISTAKES:
        lines.append(f"{section}: and {len(mistakes) - MAX_MISTAKES} more mistakes")
    return lines


def _tree_path(loc: Key, values: Any) -> Key:
    """pydantic's location without the tags of unions, which are no keys of the user's file."""
    path: list[str] = []
    here: Any = values
    for i, part in enumerate(loc):
        if isinstance(here, dict) and part not in here and i < len(loc) - 1:
            continue
        if isinstance(here, (int, float, str)) or here is None:
            break
        path.append(part)
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
    return tuple(path)


def _which(section: str, path: Key, item: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What is to be said where a section does not say which of several it is: those that have the settings given."""
    tag, given = str(item["ctx"]["discriminator"]).strip("'"), item["input"]
    keys = set(given) if isinstance(given, dict) else set()
    info = _fields(section, path[:-1], values).get(path[-1])
    kinds = {name: cls for cls in _section_classes(info.annotation if info else None) for name in _tags(cls, tag)}
    fitting = sorted(name for name, cls in kinds.items() if keys <= cls.model_fields.keys())
    if not keys or not fitting:
        return f"which one? Give {tag}: {', '.join(sorted(kinds))}"
    have = "has" if len(fitting) == 1 else "have"
    return f"which one? Give {tag}: {' or '.join(fitting)}, which {have} {', '.join(sorted(keys))}"


def _tags(cls: type[Section], tag: str) -> tuple[str, ...]:
    field = cls.model_fields.get(tag)
    return () if field is None else tuple(map(str, get_args(field.annotation)))


def _siblings(section: str, path: Key, values: Mapping[str, Any]) -> list[str]:
    """The options that could have been meant at `path`, those too that stand for others."""
    return [*_fields(section, path[:-1], values), *(_config_class(section, values).also if len(path) == 2 else ())]


def _fields(section: str, path: Key, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the section at `path`, those of all kinds that it may be of."""
    fields: Any = _config_class(section, values).model_fields
    for part in path[1:]:
        field_info = fields.get(part)
        inner = _section_classes(field_info.annotation) if field_info else []
        fields = {key: info for cls in inner for key, info in cls.model_fields.items()}
    return dict(fields)


def _config_class(section: str, values: Mapping[str, Any]) -> type[Section]:
    from vaecli import data

    value = values.get(section)
    if section == "train":
        return TrainConfig
    if section == "optim":
        chosen = value.get("name", "adam") if isinstance(value, dict) else "adam"
        return next(c for c in OPTIMS if chosen in get_args(c.model_fields["name"].annotation))
    name = value.get("name", "vae") if isinstance(value, dict) else str(value)
    found: type[Section] = registry.load(
        _KINDS[section], data.parse(name)["name"] if section == "data" else name
    ).Config
    return found


def _section_classes(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [cls for arg in getattr(annotation, "__args__", ()) for cls in _section_classes(arg)]


class _Dumper(yaml.SafeDumper):
    """Each text is on one line, whatever is in it."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')

    def write_plain(self, text: str, split: bool = True) -> None:
        super().write_plain(text, split=False)

    def write_single_quoted(self, text: str, split: bool = True) -> None:
        super().write_single_quoted(text, split=False)

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        super().write_double_quoted(text, split=False)


_Dumper.add_representer(str, _Dumper.represent_str)


def dump(config: RunConfig) -> str:
    """The configuration as YAML text that `--config` reads back."""
    text: str = yaml.dump(config.to_tree(), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)
    return text


def diff(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) of every value that differs."""
    a, b = dict(flat(old.to_tree())), dict(flat(new.to_tree()))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every leaf of nested values with its dotted path."""
    if isinstance(value, dict):
        return [leaf for k, v in value.items() for leaf in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, value)]
