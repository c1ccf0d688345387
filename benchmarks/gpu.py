"""Training on one GPU: `vae train` of beta-VAEs on dSprites, one seed and ten, beside a plain PyTorch loop.

    python benchmarks/gpu.py RUNS                                  # 300,000 steps, seeds 0 and 0-9
    python benchmarks/gpu.py RUNS --steps 20000 --net burgess --precision bf16 --seeds "0;0-9"

The images are all 737,280 of dSprites, batches 64, Adam with 1e-4, beta = 4, ten latents. For each list of seeds one
process of `vae train` trains them into RUNS: how long the whole command took, with its start, its evaluation and its
checkpoint; how long the steps after the first tenth took by the run's own clock, as if of all; and the microseconds a
step of one seed that makes. `plain` is a loop as one writes it oneself on the same net, the images in the GPU's memory,
launched kernel by kernel, timed over --plain-steps steps after 200.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

IMAGES = ["--data", "dsprites", "-S", "data.holdout=0"]


def model(net: str) -> list[str]:
    return ["--model", "beta-vae", "--beta", "4", "--latent-dim", "10", "-S", f"model.net={net}"]


def ours(runs: Path, net: str, precision: str, quickest: bool, seeds: str, steps: int) -> dict:
    name = f"{net}-{precision}{'-quickest' if quickest else ''}-{seeds}"
    command = [
        *[sys.executable, "-P", "-m", "vaecli", "train", *IMAGES, *model(net), "--steps", str(steps), "--json"],
        *["--batch-size", "64", "--lr", "1e-4", "-S", f"train.precision={precision}", "--seeds", seeds],
        *(["-S", "train.deterministic=false"] if quickest else []),
        *["-S", f"train.log_every={steps // 10}", "-S", "train.keep=1", "-S", f"train.eval_every={steps}"],
        *["-S", f"train.save_every={steps}", "--device", "cuda", "--runs-dir", str(runs), "--name", name],
    ]
    before = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.monotonic() - before
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    places = [Path(run["run"]) for run in json.loads(done.stdout)["runs"]]
    losses, spans = [], []
    for place in places:
        records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        train = [r for r in records if r["kind"] == "train"]
        losses.append(train[-1]["loss"])
        spans.append((train[-1]["seconds"] - train[0]["seconds"]) / (train[-1]["step"] - train[0]["step"]))
    span = max(spans)  # they take turns: each has waited for all others
    said = [line for line in done.stderr.splitlines() if "graph" in line or "one by one" in line or "turns" in line]
    return {
        "way": "vae train", "net": net, "precision": precision, "quickest": quickest,
        "seeds": len(places), "steps": steps, "command_s": round(wall, 1),
        "steps_s": round(span * steps, 1), "us_a_step": round(1e6 * span / len(places), 1),
        "loss": [round(loss, 3) for loss in losses], "said": sorted(set(said)),
    }  # fmt: skip


def plain(net: str, precision: str, quickest: bool, steps: int) -> dict:
    import torch
    import torch.nn.functional as F
    from torch import nn

    from vaecli import data, registry
    from vaecli.nets import coders as nets

    dataset = data.load(registry.load("dataset", "dsprites").Config(name="dsprites", holdout=0))
    count = len(dataset.images)
    parts = [
        dataset.images.gather(part).to(torch.uint8).cuda()
        for part in torch.arange(count, dtype=torch.int64).split(20_000)
    ]
    images_NCHW = torch.cat(parts)
    config = {"burgess": nets.BurgessConfig, "locatello": nets.LocatelloConfig, "higgins-fc": nets.HigginsFcConfig}
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, quickest
    coders = nn.ModuleList([*nets.build(config[net](), (1, 64, 64), 20, 10)]).cuda()
    optimizer = torch.optim.Adam(coders.parameters(), lr=1e-4)

    def step() -> None:
        index = torch.randint(count, (64,), device="cuda")
        x = images_NCHW.index_select(0, index).float()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            mean, logvar = coders[0](x).float().chunk(2, dim=1)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            logits = coders[1](z).float()
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1).mean()
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(dim=1).mean()
        optimizer.zero_grad()
        (recon + 4.0 * kl).backward()
        optimizer.step()

    for _ in range(200):
        step()
    torch.cuda.synchronize()
    before = time.monotonic()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    span = (time.monotonic() - before) / steps
    return {
        "way": "plain",
        "net": net,
        "precision": precision,
        "seeds": 1,
        "steps": steps,
        "us_a_step": round(1e6 * span, 1),
    }


def machine() -> dict:
    import torch

    return {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "cpus": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--net", default="locatello", choices=["locatello", "burgess", "higgins-fc"])
    parser.add_argument("--precision", default="fp32", help="fp32 or bf16, or several with commas")
    parser.add_argument("--seeds", default="0;0-9", help="lists of seeds, with semicolons between")
    parser.add_argument(
        "--quickest", action="store_true", help="train.deterministic=false, and cuDNN's trials in the plain loop"
    )
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--plain-steps", type=int, default=3000)
    args = parser.parse_args()
    print(json.dumps(machine()), flush=True)
    for precision in args.precision.split(","):
        if args.plain_steps:
            print(json.dumps(plain(args.net, precision, args.quickest, args.plain_steps)), flush=True)
        for seeds in args.seeds.split(";"):
            print(json.dumps(ours(args.runs, args.net, precision, args.quickest, seeds, args.steps)), flush=True)


if __name__ == "__main__":
    main()
