"""The page of what holds: rows of `vae reproduce` run, their records kept as JSON, and docs/reproduce.md made of them.

    python benchmarks/reproduce.py ROW...           # run these, one after the other, and write the page
    python benchmarks/reproduce.py                  # write the page from the records that there are
    python benchmarks/reproduce.py --record FILE    # take in what `vae reproduce ROW --json` printed

A record is `docs/reproduce/ROW.json`, with the machine and the commit that it is of.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vaecli.commands import reproduce
from vaecli.presets import rows

ROOT = Path(__file__).parent.parent
KINDS = {
    "exact": "Exact: closed forms, counts and hashes",
    "re-run": "Re-runs: numbers that a public program prints for the same setting",
    "direction": "Directions: what a paper claims, between runs of our own",
    "published": "Published numbers: printed, never judged",
}
SHORT_OF = 6  # exit code
# The papers that the tool set out from, and the rows of what they claim; then what all of it rests on.
CLAIMS = {
    "beta-VAE (Higgins et al. 2017)": (
        "dsprites-pca", "zdiff-factors", "zdiff-pixels", "zdiff-pca", "zdiff-untrained", "higgins-table", "dc-ign",
        "infogan", "beta-vae-dsprites-net",
    ),
    "Balancing reconstruction error and KL (Asperti & Trentin 2020)": (
        "linear-vae-variance-law", "asperti-law", "asperti-sigma", "asperti-gmm", "two-stage", "rae-gmm",
    ),
    "SemafoVAE (Trung Ngo Trong et al. 2022)": ("semafo-control", "semafo-few-labels", "semafo-labels"),
    "linear VAEs, where the optimum is known": (
        "linear-vae-digits", "linear-vae-mnist", "linear-vae-fashion", "linear-vae-collapse", "pca-linear-vae-axes",
        "linear-vae-digits-sampled", "linear-vae-mnist-sampled", "linear-vae-collapse-sampled",
    ),
}  # fmt: skip


def machine() -> str:
    """Processor and cores."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}"


def commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return said.stdout.strip() or "unknown"


def run(names: Sequence[str], runs: str) -> dict[str, Any]:
    """What the command prints; falling short is a result like another."""
    command = [sys.executable, "-m", "vaecli", "reproduce", *names, "-o", runs, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, SHORT_OF):
        raise SystemExit(done.returncode)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def keep(printed: Mapping[str, Any], folder: Path, of: str, where: str) -> None:
    """A file a row."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in printed["rows"]:
        stored = {**record, "machine": where, "commit": of}
        path = folder / f"{record['row']}.json"
        path.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


def page(folder: Path) -> str:
    """Markdown: in short, a table of verdicts for each kind, and below the numbers of each row."""
    known = {name: rows.load(name) for name in rows.names()}
    records = {name: json.loads((folder / f"{name}.json").read_text()) for name in known if _there(folder, name)}
    count = {verdict: 0 for verdict in (reproduce.HOLDS, reproduce.SHORT, reproduce.OPEN)}
    for record in records.values():
        count[record["verdict"]] += 1
    lines = [
        "# What holds",
        "",
        "<!-- written by benchmarks/reproduce.py from the records in docs/reproduce -->",
        "",
        f"Of {len(known)} rows {len(records)} were run: {count[reproduce.HOLDS]} hold, {count[reproduce.SHORT]} fall "
        f"short, {count[reproduce.OPEN]} {'is' if count[reproduce.OPEN] == 1 else 'are'} not judged. "
        "Each is repeated by `vae reproduce ROW`, or by hand by the "
        "commands that `presets/reproduce/ROW.yaml` names. A tolerance is the row's own, whatever time there was. "
        "Seconds are with all trainings; there are none where runs of before were found again.",
        "",
    ]
    lines += ["| of | holds | falls short | not judged | not run |", "|---|---|---|---|---|"]
    for of, names in CLAIMS.items():
        cells = {verdict: [] for verdict in (*count, None)}
        for name in names:
            verdict = records[name]["verdict"] if name in records else None
            cells[verdict].append(f"[{name}](#{name})" if verdict else name)
        lines.append(f"| {of} | {' | '.join(', '.join(found) for found in cells.values())} |")
    lines.append("")
    for kind, title in KINDS.items():
        names = [name for name, row in known.items() if row.kind == kind]
        if not names:
            continue
        lines += [f"## {title}", "", "| row | what | verdict | seeds | seconds |", "|---|---|---|---|---:|"]
        for name in names:
            record = records.get(name)
            row = known[name]
            link = f"[{name}](#{name})" if record else name
            verdict = "not run (" + row.time + ")" if record is None else f"**{record['verdict']}**"
            if record is None and kind == "published":
                verdict = f"{len(row.published)} numbers: `vae reproduce --list --published`"
            seeds = "" if record is None else len(record["seeds"])
            seconds = "" if record is None or record.get("found_again") else f"{record['seconds']:,.0f}"
            lines.append(f"| {link} | {row.summary} | {verdict} | {seeds} | {seconds} |")
        lines.append("")
    lines += ["## The numbers", ""]
    for name, record in records.items():
        lines += _section(known[name], record)
    return "\n".join(lines)


def _there(folder: Path, name: str) -> bool:
    return (folder / f"{name}.json").is_file()


def _section(row: rows.Row, record: Mapping[str, Any]) -> list[str]:
    why = f": {row.found}" if row.found and record["verdict"] == reproduce.SHORT else "."
    lines = [f"### {row.name}", "", f"{row.summary} **{record['verdict'].capitalize()}**{why}", ""]
    lines += ["| value | expected | tolerance | obtained | verdict |", "|---|---|---|---|---|"]
    for _, value, expected, tolerance, obtained, verdict in reproduce.table_rows(record):
        lines.append(f"| {value} | {expected[:16]} | {tolerance} | {obtained[:40]} | {verdict} |")
    data = ", ".join(f"{one['name']} ({one['source'].get('kind', '?')})" for one in record["data"])
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    seeds = ", ".join(map(str, record["seeds"]))
    about = f"Source: {record['source']}. Seeds {seeds}; {data + '; ' if data else ''}{record['machine']}; {versions}; "
    return [*lines, "", f"{about}commit {record['commit']}.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--record", action="append", default=[], metavar="FILE")
    parser.add_argument("--commit", default=None, help="what --record was made with, where it is not what is here")
    parser.add_argument("--machine", default=None, help="the same: processor, cores, GPU")
    parser.add_argument("--runs", default="runs/reproduce")
    parser.add_argument("--records", default=str(ROOT / "docs" / "reproduce"))
    parser.add_argument("-o", "--output", default=str(ROOT / "docs" / "reproduce.md"))
    arguments = parser.parse_args()
    if arguments.rows and (arguments.machine or arguments.commit):
        parser.error("--machine and --commit are of --record; rows are run here and now")
    folder = Path(arguments.records)
    for name in arguments.rows:
        keep(run([name], arguments.runs), folder, commit(), machine())
    for file in arguments.record:
        keep(json.loads(Path(file).read_text()), folder, arguments.commit or commit(), arguments.machine or machine())
    text = page(folder)
    if arguments.output == "-":
        print(text)
    else:
        Path(arguments.output).write_text(text)


if __name__ == "__main__":
    main()
