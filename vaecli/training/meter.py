"""Progress of a training run on stderr."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vaecli import output
from vaecli.config import RunConfig
from vaecli.training.state import TrainState


class Meter:
    """Progress on stderr: a bar on a terminal, else a line at a record, at most one in 10 seconds."""

    def __init__(
        self, config: RunConfig, state: TrainState, started: float, live: bool = True, deadline: float | None = None
    ) -> None:
        """`deadline`, by the monotonic clock, is where a time limit ends the run: the bar goes towards what comes
        first, the last step or that."""
        self._deadline = deadline
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
            from rich.progress import BarColumn, Progress, TextColumn

            console = output.stderr_console()
            self._room = console.width
            self._bars = Progress(
                BarColumn(bar_width=24 if self._room >= 100 else 12 if self._room >= 70 else 6),
                TextColumn("{task.description}", markup=False),
                console=console,
                transient=True,
                refresh_per_second=4,
            )
            self._room -= self._bars.columns[0].bar_width + 2
            self._values: list[str] = ["starting"]
            self._task = self._bars.add_task(self._text(self._first, self._values), total=1.0)
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
                if means:
                    self._values = self._parts(means)
                text = self._text(state.step, self._values)
                self._draw(self._bars.update, self._task, completed=self._share(state.step), description=text)
        elif means and (now - self._spoken >= 10.0 or state.step >= self._total):
            self._spoken = now
            left = f"{(self._left(state.step) or 0.0) / 60:,.0f} min left"
            output.notice(f"step {state.step:,}/{self._total:,}  {'  '.join(self._parts(means))}  {left}")

    def _left(self, step: int) -> float | None:
        """Seconds to the last step or the time limit, whichever is first; None before either can be told."""
        ends = [] if self._deadline is None else [max(self._deadline - time.monotonic(), 0.0)]
        if (rate := self.rate()) > 0:
            ends.append((self._total - step) * self._batch / rate)
        return min(ends, default=None)

    def _share(self, step: int) -> float:
        """How much of the run is over, 0 to 1: of the steps, or of the time where that ends first."""
        share = (step - self._first) / max(self._total - self._first, 1)
        if self._deadline is None:
            return share
        return min(1.0, max(share, (time.monotonic() - self._started) / max(self._deadline - self._started, 1e-9)))

    def _text(self, step: int, values: Sequence[str]) -> str:
        """Step and time left, which every terminal shows, and as many of the values as fit beside them."""
        left = self._left(step)
        text = f"{step:,}/{self._total:,}  {'-:--' if left is None else clock(left)} left"
        for value in values:
            if len(text) + 2 + len(value) > self._room:
                break
            text += f"  {value}"
        return text

    def _parts(self, means: Mapping[str, float]) -> list[str]:
        shown = [f"{k} {means[k]:.2f}" for k in ("elbo", "recon", "kl") if k in means]
        known = ("elbo", "recon", "kl", "loss", "grad_norm")
        others = [
            f"{k} {v:.3g}" for k, v in means.items() if k not in known and not k.endswith((".weight", "grad_norm"))
        ]
        return [
            *(shown or [f"loss {means.get('loss', float('nan')):.2f}"]),
            *(["nats"] if shown else []),
            *others,
            f"{self.rate():,.0f} images/s",
        ]


def clock(seconds: float) -> str:
    """`4:07`, `1:04:07`."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
