"""The `vae` command: arguments and help only. Each command imports what it needs when it runs, so that help, listings
and completion need no torch; this is also the one place that turns errors into messages and exit codes.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from vaecli import __version__, output, presets, registry
from vaecli.errors import ConfigError, VaeError

_MAIN = os.getpid()
_POSIX = ("fcntl", "resource")  # modules of Python that other systems lack

EPILOG = (
    "Exit codes: 0 done; 1 a bug in vae; 2 bad usage or configuration, nothing was started; 3 an input could not be "
    "used; 4 training diverged; 5 the machine said no (disk, memory, device, lock, network); 6 the verdict is one that "
    "--fail-if names; 129/130/143 stopped by SIGHUP/SIGINT/SIGTERM after saving; 141 the reader of stdout went away."
)


class _Commands(TyperGroup):
    """The commands; what the command line's own errors repeat of it, names of files among it, is escaped."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _escaped():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        with _escaped():
            return super().invoke(*args, **kwargs)


@contextmanager
def _escaped() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # A command without arguments is told its usage, which is of several lines and our own.
        ours = type(error).__name__ == "NoArgsIsHelpError"
        if hasattr(error, "format_message") and hasattr(error, "message") and not ours:
            error.message = output.safe(error.message)
        raise


app = typer.Typer(
    cls=_Commands,
    name="vae",
    help="Train, sample, traverse, reconstruct and analyze variational autoencoders.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Show or check configurations.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")


def _pictures(channels: str | None) -> None:
    from vaecli.report import figures

    figures.show(channels)


def _complete(names: list[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed) and name.isprintable()]


def _presets(incomplete: str) -> list[str]:
    return _complete(list(presets.paths()), incomplete)


def _models(incomplete: str) -> list[str]:
    return _complete(registry.names("model"), incomplete)


def _datasets(incomplete: str) -> list[str]:
    return _complete(registry.names("dataset"), incomplete)


def _metrics(incomplete: str) -> list[str]:
    done, comma, typed = incomplete.rpartition(",")
    return [done + comma + name for name in _complete(["all", *registry.names("metric")], typed)]


def _runs(incomplete: str) -> list[str]:
    from pathlib import Path

    root = Path(os.environ.get("VAE_RUNS_DIR") or "runs")
    return _complete([str(p.parent) for p in sorted(root.glob("*/run.json"))], incomplete)


def _splits(incomplete: str) -> list[str]:
    return _complete(["train", "val", "test", "all"], incomplete)


def _densities(incomplete: str) -> list[str]:
    return _complete(registry.names("density"), incomplete)


def _rows(incomplete: str) -> list[str]:
    from vaecli.presets import rows

    return _complete(list(rows.names()), incomplete)


def _devices(incomplete: str) -> list[str]:
    return _complete(["auto", "cuda", "mps", "cpu"], incomplete)


Checkpoint = Annotated[
    str,
    typer.Argument(help="A run or step directory, a .safetensors file, or hf://owner/name.", autocompletion=_runs),
]
Preset = Annotated[
    str | None, typer.Option("--preset", "-p", help="A named setting (`vae presets`).", autocompletion=_presets)
]
ConfigFile = Annotated[str | None, typer.Option("--config", "-c", help="A YAML file of settings.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", "-S", metavar="KEY=VALUE", help="Set one value, e.g. model.beta=8.")
]
Split = Annotated[str | None, typer.Option(help="train, val, test or all; default: test.", autocompletion=_splits)]
Device = Annotated[str, typer.Option("--device", help="auto, cuda, mps or cpu.", autocompletion=_devices)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notices, no progress.")]
DataAt = Annotated[
    str | None,
    typer.Option(
        "--data", "-d", help="Data in place of the model's own: where its images are now, or others.",
        autocompletion=_datasets,
    ),
]  # fmt: skip
DataName = Annotated[
    str | None,
    typer.Option("--data", "-d", help="Data set: a name, folder:PATH or array:FILE.", autocompletion=_datasets),
]
ModelName = Annotated[str | None, typer.Option("--model", "-m", help="Model (`vae models`).", autocompletion=_models)]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", "-l", metavar="FACTOR=VALUE,...",
        help="Images of these labels: a|b for several values, lo:hi for a range, * for all; others are drawn.",
    ),
]  # fmt: skip
Channels = Annotated[
    str | None, typer.Option("--channels", metavar="A,B,C", help="Channels that pictures show: one, or three as RGB.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Out = Annotated[str | None, typer.Option("--output", "-o", help="Where to write; `-` is stdout.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics", metavar="NAMES", help="all, none, or names with commas (`vae metrics`).", autocompletion=_metrics
    ),
]
Protocol = Annotated[
    str | None, typer.Option(metavar="NAME", help="z_diff as of higgins, converged or dlib (metric beta-vae).")
]


Steps = Annotated[int | None, typer.Option(help="Training steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate.")]
Beta = Annotated[float | None, typer.Option(help="Weight of the KL (beta-vae).")]
LatentDim = Annotated[int | None, typer.Option(help="Number of latents.")]
RunSeed = Annotated[int | None, typer.Option(help="Seed of weights, order and noise.")]


def _flags(
    data: str | None,
    model: str | None,
    steps: int | None,
    batch_size: int | None = None,
    lr: float | None = None,
    beta: float | None = None,
    latent_dim: int | None = None,
    seed: int | None = None,
) -> dict[str, tuple[str, Any]]:
    """The settings that have a flag of their own, as far as they are given: the key of each, with flag and value."""
    flags = {
        "data.name": ("--data", data),
        "model.name": ("--model", model),
        "train.steps": ("--steps", steps),
        "train.batch_size": ("--batch-size", batch_size),
        "optim.lr": ("--lr", lr),
        "model.beta": ("--beta", beta),
        "model.latent_dim": ("--latent-dim", latent_dim),
        "seed": ("--seed", seed),
    }
    return {key: pair for key, pair in flags.items() if pair[1] is not None}


def _version(value: bool) -> None:
    if value:
        output.result(f"vae {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing: no data, no model ($VAE_OFFLINE=1).")
    ] = False,
) -> None:
    if offline:
        os.environ["VAE_OFFLINE"] = "1"


@app.command(no_args_is_help=True)
def train(
    preset: Preset = None,
    config: ConfigFile = None,
    data: DataName = None,
    model: ModelName = None,
    sets: Sets = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    beta: Beta = None,
    latent_dim: LatentDim = None,
    seed: RunSeed = None,
    seeds: Annotated[
        str | None, typer.Option(help="Train one run for each: 0-9 or 0,2,5; the directories on stdout.")
    ] = None,
    device: Device = "auto",
    max_time: Annotated[str | None, typer.Option(help="Stop and save a run after this long: 90s, 2m, 1h30m.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run directory; otherwise one is made up.")] = None,
    runs_dir: Annotated[str | None, typer.Option(help="Where runs are kept ($VAE_RUNS_DIR, else ./runs).")] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Continue this run in place; `auto`: the run of --name, if any.", autocompletion=_runs),
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(help="Start a new run from a checkpoint's weights.", autocompletion=_runs)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; write nothing.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a model. stdout carries the run directory alone: run=$(vae train --preset vae-mnist)."""
    output.configure(quiet)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a run outlives whoever was reading its messages
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # asks to save: before training begins, there is nothing yet
        signal.signal(signal.SIGUSR1, lambda *_: None)
    from vaecli.commands import train as command

    _pictures(None)
    given = _flags(data, model, steps, batch_size, lr, beta, latent_dim, seed)
    layers = command.Layers(preset, config, given, sets or [])
    command.run(layers, name, runs_dir, resume, init_from, max_time, seeds, device, dry_run, force, json)


@app.command()
def suggest(
    data: Annotated[str, typer.Argument(help="Data set: a name, folder:PATH or array:FILE.", autocompletion=_datasets)],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", metavar="KEY=VALUE", help="How the data is read, e.g. data.image_size=128."),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(min=1e-4, help="Standard deviation of a pixel that the decoder is taken to leave."),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Look at data: what is in it, net, latents, likelihood, steps and time, and the command to type."""
    output.configure(quiet)
    from vaecli.commands import suggest as command

    command.run(data, sets or [], sigma, device, json)


@app.command(no_args_is_help=True)
def sweep(
    preset: Preset = None,
    config: ConfigFile = None,
    data: DataName = None,
    model: ModelName = None,
    sets: Sets = None,
    steps: Steps = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=VALUES", help="model.beta=1,4,16; for a search also 1..16 or 1..16:log."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of each setting: 0-4 or 0,2,5.")] = "0",
    search: Annotated[str | None, typer.Option(metavar="optuna", help="Search in place of the whole grid.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="What a search makes larger: elbo (the default) or a metric.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Settings that a search tries, in all; default: 40.")] = None,
    on: Annotated[str, typer.Option("--on", metavar="ENGINE", help="local, slurm or ray.")] = "local",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Of the engine: slurm_partition=gpu, num_gpus=1, ..."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; default: the cores, or all there are.")] = None,
    device: Device = "auto",
    max_time: Annotated[str | None, typer.Option(help="Stop and save each run after this long.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep's folder; the same one goes on.")] = None,
    runs_dir: Annotated[str | None, typer.Option(help="Where it is kept ($VAE_RUNS_DIR, else ./runs).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="The command lines; write nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a grid of settings with several seeds, or search; what is finished is not run again. stdout: the folder."""
    output.configure(quiet)
    from vaecli.commands import sweep as command
    from vaecli.commands.train import Layers

    given = _flags(data, model, steps)
    words = {"--preset": preset, "--config": config, "--data": data, "--model": model, "--steps": steps}
    base = [word for flag, value in words.items() if value is not None for word in (flag, str(value))]
    base += [word for text in sets or [] for word in ("--set", text)]
    how = [] if device == "auto" else ["--device", device]
    how += [] if max_time is None else ["--max-time", max_time]
    idle = [flag for flag, value in (("--objective", objective), ("--trials", trials)) if value is not None]
    if search is None and idle:
        raise ConfigError(f"{idle[0]} is for a search, and the whole grid is run", "--search optuna searches")
    wanted = None if search is None else command.Search(search, objective or "elbo", 40 if trials is None else trials)
    layers = Layers(preset, config, given, sets or [])
    command.run(
        layers, base, how, grid or [], seeds, wanted, on, option or [], jobs, name, runs_dir, dry_run, json
    )  # fmt: skip


@app.command()
def sample(
    checkpoint: Checkpoint,
    label: Labels = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1_000_000, help="How many images.")] = 64,
    out: Out = None,
    seed: Seed = 0,
    temperature: Annotated[float, typer.Option(min=0.0, help="Scale of the prior's standard deviation.")] = 1.0,
    density: Annotated[
        str,
        typer.Option(help="stored: the density of the codes, if fitted; none: the model's prior; or a stage's name."),
    ] = "stored",
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Draw images from the prior, or of given labels: a grid (PNG), a directory of PNGs, an .npz, or `-` for stdout."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.commands import sample as command

    command.run(checkpoint, n, out, seed, temperature, device, force, json, density, label or [], data)


@app.command()
def traverse(
    checkpoint: Checkpoint,
    dim: Annotated[
        list[str] | None, typer.Option("--dim", help="Latent to vary (repeatable); default all, by KL.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option("--level", metavar="NAME", help="Only the latents of this level, or of several: z0,z1."),
    ] = None,
    label: Labels = None,
    value_range: Annotated[float, typer.Option("--range", min=0.0, help="From -RANGE to RANGE.")] = 3.0,
    steps: Annotated[int, typer.Option(min=2, max=1_000, help="Values a latent takes.")] = 11,
    center: Annotated[
        str | None,
        typer.Option(help="Where the others stay: typical (an image near the mean), prior, an image file, an index."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=0, help="Rows of the picture; 0: all, dead ones left out.")] = None,
    out: Out = None,
    seed: Seed = 0,
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show what each latent does: one labelled row of images a latent (PNG, or GIF by the name's ending)."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.commands import traverse as command

    command.run(
        checkpoint,
        dim or [],
        value_range,
        steps,
        center,
        out,
        seed,
        device,
        force,
        json,
        level,
        data,
        label or [],
        rows,
    )


@app.command()
def intervene(
    checkpoint: Checkpoint,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-S",
            metavar="WHAT=VALUE",
            help="y:shape=heart sets a label, z0.3=-3:3:7 a latent, in deviations of its prior; a|b: several values.",
        ),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="LEVEL", help="A level below that stays as it is.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="An image file, or an index into the data (repeatable).")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", min=1, max=100_000, help="How many generated images; 8.")] = None,
    out: Annotated[str | None, typer.Option("--output", "-o", help="Where to draw the images; `-` is stdout.")] = None,
    seed: Seed = 0,
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Set a level to another value, what is below following: which factors change, and pictures of it."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.commands import intervene as command

    command.run(checkpoint, sets or [], keep or [], image or [], n, out, seed, device, force, json, data)


@app.command()
def mix(
    checkpoint: Checkpoint,
    row: Annotated[
        list[str] | None, typer.Option("--row", help="An image file, or an index into the data (repeatable).")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="An image whose levels are taken (repeatable).")
    ] = None,
    take: Annotated[
        list[str] | None, typer.Option("--take", metavar="LEVEL", help="A level to take; default: the lowest.")
    ] = None,
    out: Out = None,
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Images with levels of other images: a grid (PNG)."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.commands import mix as command

    command.run(checkpoint, row or [], column or [], take or [], out, device, force, json, data)


@app.command()
def reconstruct(
    checkpoint: Checkpoint,
    images: Annotated[
        list[str] | None, typer.Argument(help="Image files, or a folder, .npz or .npy; default: images of --split.")
    ] = None,
    split: Split = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, max=100_000, help="How many images of the split or set; default: 16.")
    ] = None,
    out: Out = None,
    seed: Seed = 0,
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encode and decode images: inputs above outputs, with negative log-likelihood, KL and MSE of each."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.commands import reconstruct as command

    command.run(checkpoint, images or [], split, n, out, seed, device, force, json, data_at=data)


@app.command()
def analyze(
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, or codes of any encoder (.npz).", autocompletion=_runs)
    ],
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only LIMIT images of the split.")] = None,
    metrics: Metrics = None,
    protocol: Protocol = None,
    diagnosis: Annotated[
        bool, typer.Option("--diagnosis", help="Also q(z) against p(z), information, gains, IWAE bound (minutes).")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control", help="Also how far labels control what is made: read back, changed, kept.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also judge N samples: FCD, precision, recall (labelled data)."),
    ] = None,
    fid: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Judge samples by Inception, weights in FILE.safetensors: FID (extra fid)."),
    ] = None,
    density: Annotated[
        str | None,
        typer.Option(help="What samples are of: stored (a fitted density, if any; the default), none, a stage's name."),
    ] = None,
    nll: Annotated[
        int | None, typer.Option(metavar="K", help="Also log p(x) by importance sampling, K draws an image.")
    ] = None,
    nll_images: Annotated[
        int | None, typer.Option("--nll-images", help="Images that --nll takes; default: 1000.")
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option("--fail-if", metavar="VERDICTS", help="Exit 6 on one of these verdicts, e.g. collapsed."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=100_000, help="Images encoded at once.")] = None,
    seed: Seed = 0,
    data: DataAt = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="The table as CSV.")] = False,
) -> None:
    """Per-latent mean, variance and KL, totals in nats, a verdict in words; metrics and a full diagnosis on demand."""
    output.configure(quiet)
    if json and csv:
        raise ConfigError("--json and --csv: give one of them")
    from vaecli.analysis.metrics import by_protocol
    from vaecli.analysis.quality import Request
    from vaecli.commands import analyze as command

    metrics = by_protocol(metrics, protocol)
    if nll_images is not None and nll is None:
        raise ConfigError("--nll-images says how many images --nll takes", "give --nll K, too")
    if density is not None and samples is None and not control and not diagnosis:
        raise ConfigError("--density says what --samples, --control or --diagnosis draw from", "give one of them, too")
    asked = Request(samples, nll, 1000 if nll_images is None else nll_images, density or "stored", fid)
    command.run(
        checkpoint, split, limit, metrics, diagnosis, fail_if, batch_size, seed, device, json, csv, data, asked, control
    )


app.command("evaluate", hidden=True)(analyze)  # as other programs call it


@app.command()
def report(
    checkpoint: Checkpoint,
    out: Out = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only LIMIT images of the split.")] = None,
    metrics: Metrics = "all",
    full: Annotated[
        bool, typer.Option("--full", help="All images of the split, all metrics and rows: minutes.")
    ] = False,
    protocol: Protocol = None,
    seed: Seed = 0,
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write the whole analysis as one self-contained HTML page with pictures."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.analysis.metrics import by_protocol
    from vaecli.commands import report as command

    metrics = by_protocol(metrics, protocol)
    command.run(checkpoint, out, split, limit, metrics, seed, device, force, json, data_at=data, full=full)


@app.command()
def explore(
    checkpoint: Checkpoint,
    out: Annotated[
        str | None, typer.Option("--output", "-o", help="Write one page that needs neither network nor vae.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Of the local server; 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    seed: Seed = 0,
    data: DataAt = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """A slider a latent, in the browser: a page served on this machine alone, or written as one file."""
    output.configure(quiet)
    from vaecli.commands import explore as command

    command.run(checkpoint, out, port, browser, seed, device, force, json, data_at=data)


@app.command()
def compare(
    checkpoints: Annotated[list[str], typer.Argument(help="Runs or checkpoints.", autocompletion=_runs)],
    split: Split = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only LIMIT images of the split.")] = None,
    metrics: Metrics = None,
    protocol: Protocol = None,
    seed: Seed = 0,
    data: DataAt = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="The table as CSV.")] = False,
    form: Annotated[str | None, typer.Option("--format", help="latex, markdown or csv, on stdout.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.svg", help="Also draw the columns against what differs.")
    ] = None,
    force: Force = False,
) -> None:
    """Several runs side by side, seeds of one setting as mean and standard deviation, the best marked."""
    output.configure(quiet)
    if json and csv:
        raise ConfigError("--json and --csv: give one of them")
    from vaecli.analysis.metrics import by_protocol
    from vaecli.commands import compare as command

    metrics = by_protocol(metrics, protocol)
    command.run(
        checkpoints, split, limit, metrics, seed, device, json, csv, data_at=data, form=form, plot=plot, force=force
    )


@app.command()
def density(
    checkpoint: Checkpoint,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="normal, mixture, vae or class-normal; default: tell which.", autocompletion=_densities
        ),
    ] = None,
    components: Annotated[int | None, typer.Option(min=1, help="Of a mixture; default: 10.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-S", metavar="KEY=VALUE", help="A setting of the density, e.g. labelled=220."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.", autocompletion=_splits)] = "train",
    limit: Annotated[int | None, typer.Option(min=2, help="Only LIMIT images of the split.")] = None,
    max_time: Annotated[str | None, typer.Option("--max-time", metavar="90s", help="Ends a long fit.")] = None,
    seed: Seed = 0,
    data: DataAt = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fit a density to a model's codes, which `vae sample` then draws from; or tell which there is."""
    output.configure(quiet)
    from vaecli.commands import density as command

    command.run(
        checkpoint, fit, components, settings or [], split, limit, max_time, seed, device, force, json, data_at=data
    )


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="ROW...", help="Rows; --list shows them.", autocompletion=_rows)
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="The rows that there are.")] = False,
    published: Annotated[bool, typer.Option("--published", help="With --list: published numbers alone.")] = False,
    seeds: Annotated[str | None, typer.Option(metavar="0-4", help="Seeds in place of the row's own.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Longest time of a training: 10m; cut short it is not judged.")
    ] = None,
    directory: Annotated[str | None, typer.Option("--out", "-o", metavar="DIR", help="Where the runs go.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Numbers with a known answer, obtained beside expected; exit code 6 where a judged one falls short."""
    output.configure(quiet)
    from vaecli.commands import reproduce as command

    if listing or published:
        command.show(published, json)
    else:
        command.run(names or [], seeds, budget, directory, json)


@app.command()
def encode(
    checkpoint: Checkpoint,
    images: Annotated[
        list[str] | None, typer.Argument(help="Image files, or a folder, .npz or .npy; default: images of --split.")
    ] = None,
    split: Split = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Only the first N images of the split.")] = None,
    out: Out = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=100_000, help="Images encoded at once.")] = None,
    data: DataAt = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Images to codes: means, log-variances, true factors, names of files and classes; `-` is CSV on stdout."""
    output.configure(quiet)
    from vaecli.commands import encode as command

    command.run(checkpoint, images or [], split, n, out, batch_size, device, force, json, data_at=data)


@app.command()
def decode(
    checkpoint: Checkpoint,
    codes: Annotated[str, typer.Argument(help="Codes: .npz (`codes`), .npy, .csv, or `-` for CSV on stdin.")],
    out: Out = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=100_000, help="Codes decoded at once.")] = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Codes to images: a grid (PNG), a directory of PNGs, an .npz, or `-` for PNG bytes on stdout."""
    output.configure(quiet)
    from vaecli.commands import decode as command

    command.run(checkpoint, codes, out, batch_size, device, force, json)


@app.command()
def interpolate(
    checkpoint: Checkpoint,
    a: Annotated[str, typer.Argument(metavar="A", help="An image file, or an index into the data.")],
    b: Annotated[str, typer.Argument(metavar="B", help="An image file, or an index into the data.")],
    steps: Annotated[int, typer.Option(min=2, max=1_000, help="Images, with both ends.")] = 11,
    spherical: Annotated[bool, typer.Option("--spherical/--linear", help="Along a great circle, or straight.")] = False,
    out: Out = None,
    data: DataAt = None,
    channels: Channels = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """The way from one image to another through the latent space (PNG, or GIF by the name's ending)."""
    output.configure(quiet)
    _pictures(channels)
    from vaecli.commands import interpolate as command

    command.run(checkpoint, a, b, steps, spherical, out, device, force, json, data_at=data)


@app.command()
def export(
    checkpoint: Checkpoint,
    kind: Annotated[str, typer.Option("--format", metavar="NAME", help="onnx, torch (programs without vae) or hub.")],
    out: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")],
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encoder and decoder for other programs (ONNX, torch.export), or weights and model card for the hub."""
    output.configure(quiet)
    from vaecli.commands import export as command

    command.run(checkpoint, kind, out, force, json)


@app.command()
def push(
    checkpoint: Checkpoint,
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make it for your eyes alone.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Upload a model to the Hugging Face hub; `hf://owner/name` is then a checkpoint of every command."""
    output.configure(quiet)
    from vaecli.commands import export as command

    command.push(checkpoint, name, private, json)


@app.command()
def info(checkpoint: Checkpoint, json: Json = False) -> None:
    """What a checkpoint holds: configuration, step, sizes. No tensor is loaded."""
    output.configure(False)
    from vaecli.commands import info as command

    command.run(checkpoint, json)


def _listing(kind: str, entries: list[tuple[str, str]], quiet: bool, json: bool) -> None:
    if json:
        output.result_json({"schema": 1, kind: [{"name": name, "summary": summary} for name, summary in entries]})
    elif quiet:
        for name, _ in entries:
            output.result(name)
    else:
        output.table(["name", "summary"], entries, left=2)


@app.command("presets")
def list_presets(
    copy: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--copy", metavar="NAME FILE", help="Write a preset to a file, to be edited.", autocompletion=_presets
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List the presets; or write one to a file."""
    if copy is not None:
        output.configure(quiet)
        from vaecli.commands import settings as command

        command.copy_preset(*copy, force)
        return
    _listing("presets", [(name, presets.summary(path)) for name, path in presets.paths().items()], quiet, json)


@app.command("models")
def list_models(
    name: Annotated[str | None, typer.Argument(help="A model.", autocompletion=_models)] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List the models; or tell one's settings, with their types and defaults."""
    if name is not None:
        output.configure(quiet)
        from vaecli.commands import settings as command

        command.show_model(name, json)
        return
    _listing("models", [(name, registry.summary("model", name)) for name in registry.names("model")], quiet, json)


@app.command("datasets")
def list_datasets(
    name: Annotated[
        str | None, typer.Argument(help="A name, folder:PATH or array:FILE.", autocompletion=_datasets)
    ] = None,
    sets: Sets = None,
    options: Annotated[bool, typer.Option("--options", help="Its settings, types and defaults, unread.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List the data sets; or look through one: settings, images, factors, mean pixel, variance, a hash of all."""
    if options and name is None:
        raise ConfigError("--options is for a data set", "vae datasets NAME --options")
    if name is not None:
        output.configure(quiet)
        if options:
            from vaecli.commands import settings

            settings.show_dataset(name, json)
            return
        from vaecli.commands import datasets as command

        command.show(name, sets or [], json)
        return
    if sets:
        raise ConfigError("--set is for a data set", "vae datasets NAME --set data.KEY=VALUE")
    _listing("datasets", [(name, registry.summary("dataset", name)) for name in registry.names("dataset")], quiet, json)


@app.command("metrics")
def list_metrics(quiet: Quiet = False, json: Json = False) -> None:
    """List the disentanglement metrics."""
    _listing("metrics", [(name, registry.summary("metric", name)) for name in registry.names("metric")], quiet, json)


@app.command("runs")
def list_runs(
    folder: Annotated[str | None, typer.Argument(help="Where runs are kept ($VAE_RUNS_DIR, else ./runs).")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List runs: model, data, what differs, step, held-out ELBO, age, how they ended; with -q their paths alone."""
    output.configure(quiet)
    from vaecli.commands import runs as command

    command.run(folder, json, quiet)


@app.command()
def doctor(quiet: Quiet = False, json: Json = False) -> None:
    """Versions, device, folders and disk; exit code 5 where something would stop a training."""
    output.configure(quiet)
    from vaecli.commands import doctor as command

    command.run(json)


@config_app.command("show")
def config_show(
    preset: Preset = None,
    config: ConfigFile = None,
    data: DataName = None,
    model: ModelName = None,
    sets: Sets = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    beta: Beta = None,
    latent_dim: LatentDim = None,
    seed: RunSeed = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    json: Json = False,
) -> None:
    """Print the configuration that `vae train` would have of the same flags, as YAML."""
    output.configure(False)
    from vaecli.commands import config as command
    from vaecli.commands.train import Layers

    given = _flags(data, model, steps, batch_size, lr, beta, latent_dim, seed)
    command.show(Layers(preset, config, given, sets or []), origin, json)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of configuration files, by which editors complete and check them."""
    output.configure(False)
    from vaecli.commands import config as command

    command.schema()


@config_app.command("validate")
def config_validate(files: Annotated[list[str], typer.Argument(help="YAML files.")]) -> None:
    """Check configuration files; all mistakes at once, with file and line."""
    output.configure(False)
    from vaecli.commands import config as command

    command.validate(files)


def main() -> None:
    """Run the command; the only place where errors become messages and exit codes."""
    output.ensure_streams()
    # As any Unix producer: end quietly (141 to the shell) when the reader of a pipe goes away.
    if not hasattr(signal, "SIGPIPE"):
        output.error("vae runs on Linux and macOS: this system has no SIGPIPE", "on Windows, use it within WSL")
        sys.exit(5)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    # Read by OpenMP when torch is loaded: on a busy machine threads that spin for long wait for each other.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Read by every Python that is started from here, by multiprocessing too: it would look for modules in the current
    # directory first, which may be a stranger's.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        app(prog_name="vae")
    except VaeError as error:
        output.error(error.message, error.hint, error.more)
        sys.exit(error.exit_code)
    except Exception as error:
        sys.exit(_unexpected(error))


def _terminated(number: int, _: Any) -> NoReturn:
    """An exit on which half-written files are removed, as after Ctrl-C; a training run has a handler of its own."""
    if os.getpid() != _MAIN:  # a reader of images, which started as a copy
        os._exit(128 + number)
    sys.exit(128 + number)


def _unexpected(error: Exception) -> int:
    """Exit code of an error nobody foresaw: the machine's limits are 5, the rest is a bug."""
    if output.is_out_of_memory(error):
        output.error("out of memory", "take smaller batches, fewer images, or another --device")
        return 5
    limits = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
    if isinstance(error, OSError) and error.errno in limits:
        output.error(f"{error.filename or 'writing'}: {error.strerror}", "free some space, or write elsewhere")
        return 5
    if isinstance(error, ModuleNotFoundError) and error.name in _POSIX:
        output.error(f"vae runs on Linux and macOS: this system has no {error.name}", "on Windows, use it within WSL")
        return 5
    if os.environ.get("VAE_DEBUG"):
        for line in traceback.format_exc().splitlines():
            output.relay(line)
    output.error(
        f"unexpected {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}",
        "this is a bug in vae: please report it with the output of VAE_DEBUG=1 vae ...",
    )
    return 1
