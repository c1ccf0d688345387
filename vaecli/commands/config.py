"""`vae config show`, `vae config validate` and `vae config schema`."""

from pathlib import Path

from vaecli import config as configs
from vaecli import output
from vaecli.commands.train import Layers, check_flags, resolve, with_default
from vaecli.errors import ConfigError


def show(layers: Layers, origin: bool, json: bool) -> None:
    """Print the resolved configuration; with `origin` one `key = value  # from` line a value."""
    layers = with_default(layers)
    tree = resolve(layers)
    check_flags(layers, tree)
    config = configs.build(tree)
    values = configs.flat(config.to_tree())
    origins = {key: tree.origin(tuple(key.split(".")), exact=True) or "default" for key, _ in values}
    if json:
        output.result_json({"schema": 1, "config": config.to_tree(), **({"origins": origins} if origin else {})})
    elif origin:
        for key, value in values:
            output.result(f"{key} = {value}  # {origins[key]}")
    else:
        output.result(*configs.dump(config).splitlines())


def schema() -> None:
    """Print the JSON Schema of a configuration file."""
    from vaecli.config.schema import schema

    output.result_json(schema())


def validate(files: list[str]) -> None:
    """Check each file as `vae train --config FILE` would; ConfigError with every mistake of every file."""
    problems = []
    for file in files:
        try:
            configs.build(resolve(Layers(config_file=file)))
            output.notice(f"{file}: valid")
        except ConfigError as error:
            named = str(Path(file)) in str(error)
            problems += [error.message if named else f"{file}: {error.message}", *error.more]
    if problems:
        raise ConfigError(problems[0], more=problems[1:])
