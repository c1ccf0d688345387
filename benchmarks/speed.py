"""Training speed side by side: `vae train` against a plain PyTorch loop, a bare tuned loop and, if installed, pythae.

    python benchmarks/speed.py                       # the table of the README: minutes for each net
    python benchmarks/speed.py --net burgess --batch-size 256 --rounds 6
    python benchmarks/speed.py --peer-python ~/pythae/bin/python

Every contender is a process of its own that trains a beta-VAE (beta = 4, 10 latents, Bernoulli likelihood, Adam) on the
same images of dSprites in memory. The processes are stopped and continued in turn, A B C A B C, so that each has the
whole machine for its slice, and what the machine does otherwise falls on all alike. Reported are medians over the
rounds of images a second and of the ratio to the plain loop of the same round, and the lowest and highest ratio.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LR = 1e-4
IMAGES = 100_000
WAYS = {
    "vae": "`vae train`",
    "vae-bf16": "`vae train`, bf16",
    "tuned": "bare loop, our kernels",
    "tuned-bf16": "bare loop, our kernels, bf16",
    "plain": "plain loop",
    "loader": "plain loop, DataLoader",
    "pythae": "pythae 0.1.2",
}
START, END = "<!-- speed: written by benchmarks/speed.py -->", "<!-- end of speed -->"


# ----------------------------------------------------------------------------------------------------------- contenders


class Counter:
    """Steps made so far, in a file that the driver reads."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self.file.seek(0)
        self.file.write(struct.pack("<q", self.steps))


def images():
    """uint8 (N, 1, 64, 64), a fixed random part of dSprites."""
    import torch

    from vaecli import data, registry

    dataset = data.load(registry.load("dataset", "dsprites").Config(name="dsprites", holdout=0))
    index = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))[:IMAGES]
    parts = [dataset.images.gather(part).to(torch.uint8) for part in index.split(10_000)]
    return torch.cat(parts)


def loop(way: str, net: str, batch_size: int, counter: Counter) -> None:
    """A training loop as one writes it oneself, on the tool's nets, so that the arithmetic is the same."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from vaecli.nets import coders as nets
    from vaecli.objectives import likelihoods
    from vaecli.speed import fast, optimizers

    tuned = way.startswith("tuned")
    if tuned:
        fast.tune_allocator()
    data_NCHW = images()
    config = {"burgess": nets.BurgessConfig, "locatello": nets.LocatelloConfig, "higgins-fc": nets.HigginsFcConfig}
    torch.manual_seed(0)
    model = nn.ModuleList([*nets.build(config[net](), (1, 64, 64), 20, 10), likelihoods.Bernoulli()])
    if tuned:
        fast.accelerate(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, **({"fused": True} if tuned else {}))
    if tuned:
        optimizers.quicken(optimizer)

    def batches():
        if way == "loader":
            from torch.utils.data import DataLoader, Dataset
            from torchvision.transforms import ToTensor

            class Images(Dataset):
                arrays = data_NCHW.squeeze(1).numpy() * 255
                to_tensor = ToTensor()

                def __len__(self) -> int:
                    return len(self.arrays)

                def __getitem__(self, i: int):
                    return self.to_tensor(self.arrays[i][:, :, None]), 0

            while True:
                for x, _ in DataLoader(Images(), batch_size=batch_size, shuffle=True, drop_last=True):
                    yield x
        while True:
            order = torch.randperm(len(data_NCHW))
            for i in range(0, len(order) - batch_size + 1, batch_size):
                yield data_NCHW.index_select(0, order[i : i + batch_size]).float()

    for x in batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=way.endswith("bf16")):
            mean, logvar = model[0](x).chunk(2, dim=1)
        mean, logvar = mean.float(), logvar.float()
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        with torch.autocast("cpu", torch.bfloat16, enabled=way.endswith("bf16")):
            logits = model[1](z)
        if tuned:
            recon = -model[2].log_prob(x, logits.float(), {}).mean()
        else:
            recon = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none").flatten(1).sum(1).mean()
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(dim=1).mean()
        optimizer.zero_grad()
        (recon + 4.0 * kl).backward()
        optimizer.step()
        counter.step()


def ours(way: str, net: str, batch_size: int, counter: Counter, folder: str) -> None:
    """The command itself, with all that it does: logging, finite check, signals, progress."""
    from vaecli import cli
    from vaecli.training import trainer

    step = trainer.update

    def counted(*args, **settings):
        found = step(*args, **settings)
        counter.step()
        return found

    trainer.update = counted
    precision = "bf16" if way.endswith("bf16") else "fp32"
    sys.argv = [
        "vae", "train", "--data", "dsprites", "--model", "beta-vae", "--beta", "4", "--runs-dir", folder, "--name", way,
        "--device", "cpu",
        "-S", f"model.net={net}", "-S", "data.holdout=0", "-S", f"data.limit={IMAGES}", "-S", f"optim.lr={LR}",
        "-S", "model.output_bias=default", "-S", f"train.precision={precision}", "--batch-size", str(batch_size),
        "--steps", "100000000", "-S", "train.eval_every=100000000", "-S", "train.save_every=100000000",
    ]  # fmt: skip
    cli.main()


def pythae(net: str, batch_size: int, counter: Counter, folder: str) -> None:
    """pythae's own trainer and BetaVAE, with the same net."""
    import numpy as np
    from pythae.models import BetaVAE, BetaVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig

    from vaecli.nets import coders as nets

    config = {"burgess": nets.BurgessConfig, "locatello": nets.LocatelloConfig, "higgins-fc": nets.HigginsFcConfig}
    encoder, decoder = nets.build(config[net](), (1, 64, 64), 20, 10)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder

        def forward(self, x):
            mean, logvar = self.net(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = decoder

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    class Counted(BetaVAE):
        def forward(self, *args, **settings):
            counter.step()
            return super().forward(*args, **settings)

    settings = BetaVAEConfig(input_dim=(1, 64, 64), latent_dim=10, beta=4.0, reconstruction_loss="bce")
    trainer = BaseTrainerConfig(
        output_dir=folder, learning_rate=LR, per_device_train_batch_size=batch_size, num_epochs=1000, no_cuda=True
    )
    pipeline = TrainingPipeline(Counted(settings, Encoder(), Decoder()), trainer)
    pipeline(train_data=images().numpy().astype(np.float32))


# --------------------------------------------------------------------------------------------------------------- driver


class Contender:
    """A process that is stopped but for its slices."""

    def __init__(self, way: str, arguments: argparse.Namespace, folder: Path) -> None:
        self.way, self.batch_size = way, arguments.batch_size
        self.counter = folder / f"{way}.steps"
        self.counter.write_bytes(struct.pack("<q", 0))
        self.log = folder / f"{way}.log"
        python = arguments.peer_python if way == "pythae" else sys.executable
        command = [python, __file__, "--worker", way, "--net", arguments.net, "--batch-size", str(self.batch_size)]
        with self.log.open("wb") as log:
            here = str(Path(__file__).resolve().parent.parent)
            self.process = subprocess.Popen(
                [*command, "--folder", str(folder)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": here},
            )
        self.start = time.perf_counter()
        while self.steps() < 5 and self.process.poll() is None:
            time.sleep(0.01)
        self.first = time.perf_counter() - self.start
        if self.process.poll() is not None:
            raise SystemExit(f"{way} did not start:\n{self.log.read_text(errors='replace')[-2000:]}")
        self.pause()

    def steps(self) -> int:
        return struct.unpack("<q", self.counter.read_bytes())[0]

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def slice(self, seconds: float) -> float:
        """Images a second over a slice, the first steps after waking left out."""
        self.process.send_signal(signal.SIGCONT)
        time.sleep(min(1.0, seconds / 4))
        started, before = time.perf_counter(), self.steps()
        time.sleep(seconds)
        made, elapsed = self.steps() - before, time.perf_counter() - started
        self.pause()
        return made * self.batch_size / elapsed

    def peak(self) -> float:
        """Peak memory in GB, where the system tells."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6
        except (OSError, StopIteration):
            return float("nan")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(ways: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as name:
        contenders = []
        try:
            for way in ways:
                contenders.append(Contender(way, arguments, Path(name)))
            rounds = []
            for number in range(arguments.rounds):
                rounds.append({c.way: c.slice(arguments.seconds) for c in contenders})
                print(f"round {number + 1}: " + ", ".join(f"{w} {v:,.0f}" for w, v in rounds[-1].items()), flush=True)
            found = {}
            for c in contenders:
                ratios = [r[c.way] / r["plain"] for r in rounds]
                found[c.way] = {
                    "images_per_second": statistics.median(r[c.way] for r in rounds),
                    "ratio": statistics.median(ratios),
                    "lowest": min(ratios),
                    "highest": max(ratios),
                    "peak_gb": c.peak(),
                    "first_steps_s": c.first,
                }
            return found
        finally:
            for c in contenders:
                c.end()


def machine() -> str:
    """Processor, cores, versions, commit."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}, commit {commit or 'unknown'}"


def table(results: dict[str, dict[str, dict[str, float]]], arguments: argparse.Namespace) -> str:
    lines = ["| net | loop | images/s | times the plain loop | peak memory |", "|---|---|---:|---:|---:|"]
    for net, found in results.items():
        for way, r in found.items():
            spread = f"{r['ratio']:.2f} ({r['lowest']:.2f} to {r['highest']:.2f})"
            lines.append(f"| {net} | {WAYS[way]} | {r['images_per_second']:,.0f} | {spread} | {r['peak_gb']:.2f} GB |")
    about = f"Batches of {arguments.batch_size}, medians of {arguments.rounds} rounds (lowest to highest ratio). "
    return "\n".join([*lines, "", about + machine() + "."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", help="burgess, locatello or higgins-fc; default: all three")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a slice")
    parser.add_argument("--loops", default="vae,vae-bf16,tuned,plain,loader", help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--peer-python", help="an interpreter that has pythae, torch and this package")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        counter = Counter(f"{arguments.folder}/{arguments.worker}.steps")
        if arguments.worker == "pythae":
            pythae(arguments.net, arguments.batch_size, counter, arguments.folder)
        elif arguments.worker.startswith("vae"):
            ours(arguments.worker, arguments.net, arguments.batch_size, counter, arguments.folder)
        else:
            loop(arguments.worker, arguments.net, arguments.batch_size, counter)
        return
    ways = [way.strip() for way in arguments.loops.split(",")]
    if arguments.peer_python:
        ways.append("pythae")
    if unknown := set(ways) - WAYS.keys() or {"plain"} - set(ways):
        raise SystemExit(f"--loops: {', '.join(unknown)}: choose from {', '.join(WAYS)}, with plain among them")
    results = {}
    for net in [arguments.net] if arguments.net else ["burgess", "locatello", "higgins-fc"]:
        print(net, flush=True)
        arguments.net = net
        results[net] = measure(ways, arguments)
    text = table(results, arguments)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    if arguments.readme:
        readme = Path(__file__).parent.parent / "README.md"
        before, _, rest = readme.read_text().partition(START)
        readme.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
