"""`vae info`: what a checkpoint holds, read from its header alone."""

import math

from vaecli import output
from vaecli.commands.datasets import text
from vaecli.training import checkpoint


def run(path: str, json: bool) -> None:
    """Print model, data, step, sizes and the stored configuration."""
    file = checkpoint.resolve(path)
    metadata, tensors, size = checkpoint.read_header(file)
    config, info, step = checkpoint.read_config(file, metadata)
    facts = {
        "checkpoint": str(file),
        "model": config.model.name,
        "step": step,
        "data": info.name,
        "shape": list(info.shape),
        "source": info.source,
        "tensors": len(tensors),
        "values": sum(math.prod(shape) for _, shape in tensors.values()),
        "bytes": size,
        "init_from": checkpoint.read_origin(file, metadata),
    }
    if json:
        output.result_json({"schema": 1, **facts, "config": config.to_tree()})
        return
    output.table(
        ["key", "value"],
        [(key, str(value) if isinstance(value, int) else text(value)) for key, value in facts.items()],
        left=2,
    )
    from vaecli.config import dump

    output.result(*dump(config).splitlines())
