"""`vae config show` and `vae config validate`."""

from pathlib import Path

from vaecli import config as configs
from vaecli import output
from vaecli.commands.train import Layers, resolve, with_default
from vaecli.errors import ConfigError


def show(preset: str | None, config_file: str | None, sets: list[str], origin: bool, json: bool) -> None:
    """Print the resolved configuration; with `origin` one `key = value  # from` line a value."""
    tree = resolve(with_default(Layers(preset, config_file, {}, sets)))
    config = configs.build(tree)
    if json:
        output.result_json({"schema": 1, "config": config.to_tree()})
    elif origin:
        for key, value in configs.flat(config.to_tree()):
            output.result(f"{key} = {value}  # {tree.origin(tuple(key.split('.')), exact=True) or 'default'}")
    else:
        output.result(*configs.dump(config).splitlines())


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
