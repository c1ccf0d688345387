"""`vae explore`: a page with a slider a latent; a local server decodes, or the page itself."""

import base64
import json as json_format
import math
import secrets
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaecli import device as devices
from vaecli import label_expressions
from vaecli import output as streams
from vaecli.analysis import traversal
from vaecli.analysis.gathering import latent_statistics, limited
from vaecli.analysis.statistics import Statistics
from vaecli.analysis.traversal import Mover
from vaecli.batch import at_once
from vaecli.commands import _artifact, traverse
from vaecli.data.base import Dataset
from vaecli.errors import ConfigError, InputError, MachineError
from vaecli.models.base import Model, Values
from vaecli.report import explorer, figures, offline
from vaecli.training.checkpoint import Loaded

HOST = "127.0.0.1"
IMAGES = 24  # to start from
MEASURED = 2_000  # held-out images over which latents are ordered
WIDE = 3.5  # standard deviations to both sides
LARGEST_QUESTION = 1 << 20  # bytes
LARGEST_REFUSED = 64 << 20  # bytes of a question that are read only to be answered with a refusal


def run(
    checkpoint: str,
    output: str | None,
    port: int,
    open_browser: bool,
    seed: int,
    device: str,
    force: bool,
    json: bool,
    data_at: str | None = None,
) -> None:
    """Serve the page on 127.0.0.1 under a random token until Ctrl-C, its address on stdout; or with `output` write it
    with the decoder inside. ConfigError, before anything is written, for a decoder that a page cannot hold or a model
    without one; MachineError for a port in use."""
    path = (
        None if output is None else _artifact.check(output, output, force, json, text=True, endings=(".html", ".htm"))
    )
    loaded = _artifact.load(checkpoint, devices.pick(device), data_at)
    net = None if path is None else offline.layers_of(loaded.model)
    server = None if path is not None else _Server(port)
    devices.seed(seed, "explore")
    with torch.inference_mode():
        dataset, missing = traverse._dataset(loaded)
        if missing is not None:
            streams.notice(f"without images and in index order: the data set is not available ({missing})")
        explored = Explored(loaded, dataset)
        page = explorer.render(explored.page(net)).encode()
    if path is not None:
        path = _artifact.write(output, path, page, force)
        _artifact.report(path, {"checkpoint": str(loaded.path), "step": loaded.step, "bytes": len(page)}, json)
        return
    assert server is not None
    with server:
        server.ask(explored, page)
        if json:
            streams.result_json({"schema": 1, "url": server.url})
        else:
            streams.result(server.url)
        streams.notice("Ctrl-C ends it")
        if open_browser and sys.stdout.isatty():
            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.2)


class Explored:
    """A model behind sliders: what there is to move, and the image of any setting. Without a data set the latents stand
    in index order, and there are no images to start from; `stats` are taken over held-out images unless given."""

    def __init__(self, loaded: Loaded, dataset: Dataset | None, stats: Statistics | None = None) -> None:
        self.loaded = loaded
        self.model: Model = loaded.model
        self.movers = traversal.movers(self.model, self.model.levels)
        self.stats = self._statistics(dataset) if stats is None else stats
        if self.stats is not None:
            self.movers = traverse.ordered(self.movers, self.stats)
        self.middle, _ = traverse.centre(loaded, "prior", dataset, None, self.stats)
        inferred = bool(self.model.inferred)
        coded = None if dataset is None or not inferred else traverse._codes(loaded, dataset)
        self.follows = {} if coded is None else traverse.followed(coded)
        self.images: list[tuple[bytes, str, list[float]]] = []
        if dataset is not None and inferred:
            self.images = self._images(dataset)
        self.start = self.values_of(self.middle)
        if dataset is not None and coded is not None:
            at = torch.tensor([traverse.typical(coded)])
            self.start = self.values_of(traversal.of_image(self.model, dataset.images.gather(at)))

    def _statistics(self, dataset: Dataset | None) -> Statistics | None:
        if dataset is None or not self.model.inferred:
            return None
        view = dataset.split("val")
        size = at_once(self.loaded.info.shape, 256)
        with streams.progress("ranking latents", min(len(view), MEASURED)) as advance:
            return latent_statistics(
                self.model, limited(view.batches(size), MEASURED), self.loaded.hyper, advance
            )  # fmt: skip

    def _images(self, dataset: Dataset) -> list[tuple[bytes, str, list[float]]]:
        """Held-out images, with the values of the sliders that stand for them."""
        view = dataset.split("val")
        batch = view.take(min(IMAGES, len(view)))
        values = traversal.of_image(self.model, batch.x_BCHW)
        found = []
        for i, index in enumerate(batch.index_B.tolist()):
            one = {name: v[i : i + 1] for name, v in values.items()}
            name = f"image {index}"
            found.append((figures.single(batch.x_BCHW[i].cpu().numpy()), name, self.values_of(one)))
        return found

    def page(self, net: Sequence[Mapping[str, Any]] | None) -> explorer.Exploration:
        levels = [level.name for level in self.model.levels]
        following = {name for level in self.model.levels for name in traversal.followers(self.model, level)}
        info, config = self.loaded.info, self.loaded.config
        return explorer.Exploration(
            title=f"{config.model.name} on {info.name}",
            subtitle=f"Step {self.loaded.step:,}; {len(self.movers)} latents, largest mean KL first. "
            + ("The decoder is in this page: it needs no network." if net is not None else "Decoded by vae explore."),
            shape=info.shape,
            sliders=[self._slider(mover) for mover in self.movers],
            start=self.start,
            rest=self.values_of(self.middle),
            images=self.images,
            follow=[name for name in levels if name in following and net is None],
            net=net,
            columns=self._columns(),
        )

    def _columns(self) -> list[tuple[str, int, int | None]]:
        """The code's columns as `vae decode` reads them: the inferred levels side by side or, with noise, all."""
        levels = self.model.inferred or self.model.levels
        found: list[tuple[str, int, int | None]] = []
        names = iter(self.model.latent_names(levels))
        for mover in traversal.movers(self.model, levels):
            place = self.movers.index(mover)
            if mover.level.kind == "labels":
                found += [(next(names), place, option) for option in range(mover.size)]
            else:
                found.append((next(names), place, None))
        return found

    def _slider(self, mover: Mover) -> explorer.Slider:
        status = traverse.label_of(self.stats, mover)
        note = ", ".join(filter(None, [status, self.follows.get(mover.index if mover.index is not None else -1, "")]))
        about: dict[str, Any] = {
            "name": mover.name,
            "level": mover.level.name,
            "note": note,
            "dead": status == "inactive",
        }
        if mover.level.kind == "labels":
            return explorer.Slider(**about, low=0, high=mover.size - 1, options=self._names(mover))
        if mover.level.kind == "codes":
            return explorer.Slider(**about, low=0, high=mover.level.sizes[0] - 1, whole=True)
        t_S = np.array([-WIDE, WIDE])
        low, high = traversal.values_of(self.model, self.middle, mover, t_S, self.stats).tolist()
        known = [code[self.movers.index(mover)] for _, _, code in self.images]
        return explorer.Slider(**about, low=min([low, *known]), high=max([high, *known]))

    def _names(self, mover: Mover) -> list[str]:
        """What the values of a label are called."""
        level = mover.level
        ends = np.cumsum(level.sizes).tolist()
        block = next(i for i, end in enumerate(ends) if mover.column < end)
        if block < len(level.factors):
            named = label_expressions.names_of(self.loaded.info, level.factors[block])
            if len(named) == mover.size:
                return [f"{level.factors[block]} {name}" for name in named]
        return [str(i) for i in range(mover.size)]

    # ------------------------------------------------------------------------------------------------------- decoding

    def values_of(self, values: Values) -> list[float]:
        """The sliders' values of one image's levels."""
        found = []
        for mover in self.movers:
            flat = values[mover.level.name].flatten(1)[0]
            if mover.level.kind == "labels":
                found.append(float(flat[mover.column : mover.column + mover.size].argmax()))
            else:
                found.append(float(flat[mover.column]))
        return found

    def decode(self, numbers: Sequence[float], free: Sequence[str]) -> tuple[Tensor, list[float]]:
        """The expected image (C, H, W) of the sliders' values, and these values with the levels that are `free` at the
        modes of their priors given those above. ConfigError for values that are none."""
        if len(numbers) != len(self.movers) or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"{len(self.movers)} finite numbers are wanted")
        values: Values = {}
        for level in self.model.levels:
            if level.name in free:
                continue
            kind = torch.int64 if level.kind == "codes" else torch.float32
            flat = torch.zeros(1, level.size, dtype=kind, device=self.model.device)
            for mover, number in zip(self.movers, numbers, strict=True):
                if mover.level.name != level.name:
                    continue
                if level.kind == "labels":
                    flat[0, mover.column + min(max(int(number), 0), mover.size - 1)] = 1.0
                elif level.kind == "codes":
                    flat[0, mover.column] = min(max(int(number), 0), level.sizes[0] - 1)
                else:
                    flat[0, mover.column] = number
            values[level.name] = flat.reshape(1, *level.shape)
        if not values:
            raise ConfigError("at least one level has to be given")
        with torch.inference_mode():
            whole = self.model.complete(values)
            return self.model.image(whole)[0].float().cpu(), self.values_of(whole)


class _Server(ThreadingHTTPServer):
    """On this machine alone, under a token that only who started it knows."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(16)
        self.lock = threading.Lock()
        self.explored: Explored | None = None
        self.page = b""
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise MachineError(f"port {port}: {error.strerror}", "--port 0 takes a free one") from None
        except OverflowError:
            raise ConfigError(f"--port is {port}; it must be 0 to 65535") from None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def ask(self, explored: Explored, page: bytes) -> None:
        self.explored, self.page = explored, page


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "vae", ""
    timeout = 60  # seconds that a question may pause

    def _allowed(self, path: str) -> bool:
        """Whether it is asked by name (a page of a stranger would come under another) and with the token."""
        port = self.server.server_address[1]
        named = self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")
        return named and secrets.compare_digest(self.path.encode(), f"/{self.server.token}/{path}".encode())

    def do_GET(self) -> None:
        if self._allowed(""):
            self._answer(200, self.server.page, "text/html; charset=utf-8")
        else:
            self._answer(404, b"not found\n", "text/plain")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        told = length.isdecimal() and len(length) < 20
        promised = int(length) if told else 0
        if not self._allowed("decode"):
            self._read_away(promised)
            self._answer(404, b"not found\n", "text/plain")
            return
        if not told or promised > LARGEST_QUESTION:
            self._read_away(promised)
            self._tell(413, {"error": "too long a question"})
            return
        try:
            asked = json_format.loads(self.rfile.read(promised))
            numbers = [float(value) for value in asked["values"]]
            free = [str(name) for name in asked.get("free", ())]
            assert self.server.explored is not None
            with self.server.lock:
                image_CHW, values = self.server.explored.decode(numbers, free)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._tell(400, {"error": "a list of numbers is wanted"})
        except (ConfigError, InputError, MachineError) as error:
            self._tell(400, {"error": error.message})
        else:
            pixels = image_CHW.contiguous().numpy().astype("<f4").tobytes()
            self._tell(200, {"pixels": base64.b64encode(pixels).decode(), "values": values})

    def _read_away(self, promised: int) -> None:
        """Reads a refused question, as far as a stranger is worth it: closing on what is unread resets the connection,
        and who asked would see that instead of the answer."""
        left = min(promised, LARGEST_REFUSED)
        while left and (read := self.rfile.read1(min(left, LARGEST_QUESTION))):
            left -= len(read)

    def _tell(self, code: int, value: Mapping[str, Any]) -> None:
        self._answer(code, json_format.dumps(value).encode(), "application/json")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is said of each question."""
