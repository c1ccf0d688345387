"""Every preset tried for a while: that it trains, what it has reached by then, and what all of its steps would take.

    python benchmarks/presets.py DIR [PRESET ...] [--time 60] [--write]

Runs, and what `vae analyze` says of them, are found again. With --write both go into the headers of presets that say
"not measured yet"; without names, those are the presets that are tried.
"""

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from mnist_family import PRESETS, whole
from semafo import vae

UNMEASURED = "not measured yet"
LIMIT = 5000  # images that `vae analyze` is asked for


def unmeasured() -> list[str]:
    return [path.stem for path in sorted(PRESETS.glob("*.yaml")) if UNMEASURED in path.read_text()]


def tried(name: str, folder: Path, seconds: int) -> tuple[dict[str, Any], float]:
    """What `vae analyze` says of it after so many seconds, and the seconds that a step took."""
    kept, run = folder / f"{name}.json", folder / name
    if not (run / "run.json").exists():
        asked = ("--seed", 0, "--max-time", f"{seconds}s", "-S", "train.log_every=5")
        vae("train", "-p", name, *asked, "--runs-dir", folder, "--name", name)
    if not kept.exists():
        kept.write_text(vae("analyze", run, "--limit", LIMIT, "--json"))
    return json.loads(kept.read_text()), step_time(run)


def step_time(run: Path) -> float:
    """Seconds of a step, between the first line logged and the last; of all of the run where there are not two."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    timed = [(one["step"], one["seconds"]) for one in lines if one["kind"] == "train"]
    if len(timed) < 2:
        record = json.loads((run / "run.json").read_text())
        timed = [(0, 0.0), (record["step"], record["seconds"])]
    (first, begun), (last, ended) = timed[0], timed[-1]
    return float(ended - begun) / (last - first)


def reached(found: dict[str, Any]) -> str:
    totals, parts = found["totals"], []
    for key, label in (("elbo", "ELBO"), ("recon", "reconstruction"), ("kl", "KL")):
        if totals.get(key) is not None:
            parts.append(f"{label} {totals[key]:.1f}")
    text = f"{', '.join(parts)} nats" if parts else ""
    if totals.get("active_units") is not None:
        active, of = totals["active_units"], totals["latents"]
        text += (", " if text else "") + (
            f"all {of} latents active" if active == of else f"{active} of {of} latents active"
        )
    return text


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def headed(text: str, expect: str, time: str) -> str:
    """A preset's text, with these in place of what its header says was not measured."""
    for label, said in (("Expect", expect), ("Time", time)):
        match = re.search(rf"# {label}: {UNMEASURED}(.*\n(?:#   .*\n)*)", text)
        if match is None:
            continue
        rest = " ".join(line.removeprefix("#").strip() for line in match.group(1).splitlines()).strip(" .;")
        line = f"{label}: {said}" + (f" {rest[0].upper()}{rest[1:]}." if rest else "")
        wrapped = textwrap.wrap(line, 118, initial_indent="# ", subsequent_indent="#   ")
        text = text[: match.start()] + "\n".join(wrapped) + "\n" + text[match.end() :]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--time", type=int, default=60, help="seconds of training each")
    parser.add_argument("--machine", default="one CPU core", help="how --write calls it")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print("| preset | steps | seconds a step | all steps | reached |\n|---|---:|---:|---:|---|", flush=True)
    for name in given.presets or unmeasured():
        try:
            found, step = tried(name, given.folder, given.time)
        except SystemExit as failed:  # data that is not here
            print(f"| {name} | | | | {str(failed).splitlines()[-1]} |", flush=True)
            continue
        steps, text = whole(name), reached(found)
        print(
            f"| {name} | {found['step']:,} of {steps:,} | {step:.3f} | {duration(step * steps)} | {text} |", flush=True
        )
        if given.write:
            path = PRESETS / f"{name}.yaml"
            expect = f"not measured at this length. After {found['step']:,} steps (one seed, {found['split']}): {text}."
            time = f"{1 / step:.1f} steps/s on {given.machine}: {duration(step * steps)} for all of them."
            path.write_text(headed(path.read_text(), expect, time))


if __name__ == "__main__":
    main()
