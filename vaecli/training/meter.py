"""Progress of a training run on stderr."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from vaecli import output
from vaecli.config import RunConfig
from vaecli.training.state import TrainState


class Meter:
    """Progress on stderr: a bar on a terminal, else a line at a record, at most one in 10 seconds."""

    def __init__(self, config: RunConfig, state: TrainState, started: float, live: bool = True) -> None:
        self._live = live  # a terminal can show one bar, not one for each of several runs
        self._total = state.last
        self._batch = config.train.batch_size
        self._first = state.step
        self._started = started
        self._bars: Any = None
        self._clock = self._spoken = time.monotonic()
        self._first_step: float | None = None
        self._last = state.step

    def __enter__(self) -> "Meter":
        if self._live and output.interactive():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=output.stderr_console(),
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bars.add_task("starting", total=self._total, completed=self._first)
            self._draw(self._bars.start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._draw(self._bars.stop)

    def _draw(self, action: Callable[..., None], *args: Any, **settings: Any) -> None:
        """Draw; a terminal that was closed meanwhile ends the drawing, not the run."""
        try:
            action(*args, **settings)
        except (OSError, ValueError):
            self._bars = None

    def rate(self) -> float:
        """Images a second since the first step of this sitting."""
        seconds = time.monotonic() - (self._first_step or time.monotonic())
        return (self._last - self._first - 1) * self._batch / seconds if seconds > 0 else 0.0

    def summary(self) -> str:
        return (
            f"{self.rate():,.0f} images/s, first step after {(self._first_step or self._clock) - self._started:.1f} s"
        )

    def report(self, state: TrainState, means: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = now
        self._last = state.step
        if self._bars is not None:
            if now - self._clock > 0.2 or means:
                self._clock = now
                described = {"description": self._line(means)} if means else {}
                self._draw(self._bars.update, self._task, completed=state.step, **described)
        elif means and (now - self._spoken >= 10.0 or state.step >= self._total):
            self._spoken = now
            left = (self._total - state.step) * self._batch / max(self.rate(), 1e-9)
            output.notice(f"step {state.step:,}/{self._total:,}  {self._line(means)}  {left / 60:,.0f} min left")

    def _line(self, means: Mapping[str, float]) -> str:
        shown = [f"{k} {means[k]:.2f}" for k in ("elbo", "recon", "kl") if k in means]
        known = ("elbo", "recon", "kl", "loss", "grad_norm")
        others = [
            f"{k} {v:.3g}" for k, v in means.items() if k not in known and not k.endswith((".weight", "grad_norm"))
        ]
        return "  ".join(
            [
                *(shown or [f"loss {means.get('loss', float('nan')):.2f}"]),
                *(["nats"] if shown else []),
                *others,
                f"{self.rate():,.0f} images/s",
            ]
        )
