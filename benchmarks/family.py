"""What each of several runs comes to over its held-out images, as a table: terms of the ELBO, active latents, their KL.

python benchmarks/family.py NAME...       reads NAME.json, which `vae analyze NAME --split val --json` wrote
"""

import json
import sys
from pathlib import Path


def main() -> None:
    print("| model | steps | ELBO | reconstruction | KL | active | KL of each latent, largest first | verdict |")
    print("|---|---:|---:|---:|---:|---:|---|---|")
    for name in sys.argv[1:]:
        found = json.loads(Path(f"{name}.json").read_text())
        totals = found["totals"]
        each = sorted((latent["kl"] for latent in found["latents"]), reverse=True)
        print(
            f"| {name} | {found['step']:,} | {totals['elbo']:.2f} | {totals['recon']:.2f} | {totals['kl']:.2f} "
            f"| {totals['active_units']} of {len(each)} | {' '.join(f'{kl:.2f}' for kl in each)} "
            f"| {found['verdict']['name']} |"
        )


if __name__ == "__main__":
    main()
