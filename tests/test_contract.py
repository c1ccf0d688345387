"""What models promise the tool, for every registered model and the toys of tests/models; and the
tool them.

A model is tested by existing: nothing about the models themselves is written down here.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HERE, Result
from torch import Tensor

from vaecli import config as configs
from vaecli import data, device, models, registry
from vaecli.batch import Batch
from vaecli.config import RunConfig, tree
from vaecli.data.base import Stream
from vaecli.data.squares import Config as Squares
from vaecli.errors import ConfigError, InputError
from vaecli.models.base import Model, NoPrior, Player, Term, Values, total
from vaecli.objectives import distributions
from vaecli.settings.optim import Adam
from vaecli.speed import graph
from vaecli.training import banner, rundir, trainer
from vaecli.training.state import TrainState
from vaecli.training.steps import NotFinite, update
from vaecli.training.stop import Stop

NAMES = sorted([*registry.names("model"), *(p.stem.replace("_", "-") for p in (HERE / "models").glob("[a-z]*.py"))])
every_model = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.usefixtures("toy_models")
SHRINKING = {"schedule": "linear", "start": 1.0, "end": 0.1, "steps": 9}
SQUARES = data.load(Squares(name="squares"))


def config_of(name: str, steps: Any = 24, **model: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data": {"name": "squares"},
        "model": {"name": name, **registry.load("model", name).Config.tiny, **model},
        "optim": {"name": "adam", "lr": 0.01},
        "train": {"steps": steps, "batch_size": 32, "log_every": 6, "eval_every": 12, "save_every": 24},
        "seed": 3,
    }
    return configs.build(tree.Tree(values, {}))


class Training:
    """A model, its state and its batches, moved step by step."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.train = config, SQUARES.training(config.seed)
        device.seed(config.seed, "init")
        self.model = models.build(config.model, SQUARES.info)
        self.model.begin(self.train)
        if self.model.closed_form:
            self.model.fit(self.train, lambda: False, lambda images: None)
        self.state = TrainState.fresh(self.model, config)
        order = self.model.order(self.train, config.seed, config.train.batch_size)
        self.stream: Stream = SQUARES.stream(config.seed, config.train.batch_size, order)

    def step(self) -> dict[str, float]:
        stage = self.state.stage
        local, name = self.state.step - stage.start, stage.name or self.model.stages[0]
        if self.model.due(local, name):
            self.model.prepare(local, name, self.train)
            self.stream.order = self.model.order(self.train, self.config.seed, self.config.train.batch_size)
        batch = self.stream.batch(self.state.step)
        logged = update(self.model, self.config, self.state, batch, self.stream)
        self.state.count(logged)
        return logged


@cache
@torch.enable_grad()
def made(name: str) -> Model:
    """A model that has seen something, in evaluation mode: not to be changed."""
    training = Training(config_of(name))
    while training.state.step < training.state.last:
        training.step()
    return training.model.eval()


def images(n: int = 12) -> Tensor:
    return SQUARES.split("val").take(n).x_BCHW


# ---- training


@every_model
def test_players_share_the_parameters_out(name: str) -> None:
    """No weight has two optimizers, and none that can be trained has none."""
    model = models.build(config_of(name).model, SQUARES.info)
    players = model.players(Adam())
    assert model.closed_form == (not players)
    owned = [p for player in players for p in player.parameters]
    assert len(owned) == len({id(p) for p in owned})
    assert {id(p) for p in owned} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len({player.name for player in players}) == len(players)
    assert {player.stage for player in players} <= set(model.stages)


@every_model
def test_losses_are_finite_and_move_every_parameter(name: str) -> None:
    training = Training(config_of(name))
    model, batch = training.model, training.stream.batch(0)
    if model.due(0, model.stages[0]):
        model.prepare(0, model.stages[0], training.train)
    for player in model.players(Adam()):
        others = tuple(training.stream.batch(0, stream) for stream in range(1, player.batches))
        own = Batch(batch.x_BCHW, batch.index_B, batch.labels_BK, batch.truth_BK, others)
        idle = {id(p): p for p in player.parameters}
        for step in (0, 1, 20):  # at the very start a weight may still be 0
            model.zero_grad(set_to_none=True)
            terms = model.loss(own, model.hyper(step), player.name)
            assert all(term.value.shape in ((), (32,)) for term in terms.values())
            loss, logged = total(terms)
            assert all(math.isfinite(float(torch.as_tensor(value).detach())) for value in logged.values()), logged
            torch.autograd.backward(loss)
            for p in player.parameters:
                assert p.grad is None or bool(p.grad.isfinite().all())
                if p.grad is not None and bool((p.grad != 0).any()):
                    idle.pop(id(p), None)
        names = [name for name, p in model.named_parameters() if id(p) in idle]
        assert not names, f"{player.name} never moves {names}"
    assert model.objective_text(model.hyper(0))


@every_model
def test_it_can_be_tried_dry(name: str, tmp_path: Path) -> None:
    facts = banner.dry_run(config_of(name), torch.device("cpu"), tmp_path / "run")
    assert facts["parameters"] == sum(p.numel() for p in made(name).parameters())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("rae", {"regulariser": "none", "strength": 5.0}, "model.strength would do nothing"),
        ("rae", {"regulariser": "spectral-norm", "strength": 5.0}, "model.strength would do nothing"),
        ("epitomic-vae", {"likelihood": {"name": "gaussian", "sigma": SHRINKING}}, "which epitome is an image's best"),
    ],
)
def test_settings_that_training_cannot_use_are_refused_there_and_read_from_runs_of_before(
    name: str, setting: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        banner.dry_run(config_of(name, **setting), torch.device("cpu"), tmp_path / "run")
    models.build(config_of(name, **setting).model, SQUARES.info)
    fine = {"regulariser": "none", "strength": 0.0} if name == "rae" else {}
    banner.dry_run(config_of(name, **fine), torch.device("cpu"), tmp_path / "run")


@every_model
def test_a_batch_of_one_image_is_refused_or_trains(name: str) -> None:
    config = config_of(name)
    config = replace(config, train=config.train.model_copy(update={"batch_size": 1}))
    try:
        training = Training(config)
    except ConfigError as refused:
        assert "batch" in str(refused) and refused.hint
        return
    if not training.model.closed_form:
        assert all(map(math.isfinite, training.step().values()))


@every_model
@pytest.mark.parametrize("at", [0, 3])
def test_a_step_that_fails_in_the_last_player_leaves_nothing_moved(
    name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, buffers (running statistics!), optimizers; and the step, made again, is the one it would have been."""
    broken, sound = Training(config_of(name)), Training(config_of(name))
    if broken.model.closed_form:
        pytest.skip("takes no steps")
    for _ in range(at):
        broken.step()
        sound.step()
    player = broken.state.playing()[-1][0]
    original, calls = broken.model.loss, []

    def poisoned(batch: Batch, hyper: Any, who: str = "main") -> dict[str, Term]:
        terms = original(batch, hyper, who)
        if who == player.name:
            calls.append(who)
            if len(calls) == player.updates:
                terms["poison"] = Term(torch.tensor(math.nan))
        return terms

    stage = broken.state.stage
    if broken.model.due(at, stage.name or broken.model.stages[0]):  # so that only the step itself is looked at
        broken.model.prepare(at, "main", broken.train)
        broken.stream.order = broken.model.order(broken.train, 3, 32)
    kept = {key: t.clone() for key, t in broken.model.state_dict().items()}
    state = {key: t.clone() for key, t in broken.state.tensors().items()}
    monkeypatch.setattr(broken.model, "loss", poisoned)
    with pytest.raises(NotFinite) as caught:
        update(broken.model, broken.config, broken.state, broken.stream.batch(at), broken.stream)
    assert caught.value.player == player.name and len(calls) == player.updates
    monkeypatch.setattr(broken.model, "loss", original)
    assert_same(broken.model.state_dict(), kept)
    assert_same(broken.state.tensors(), state)
    for training in (broken, sound):
        training.step()
    assert_same(broken.model.state_dict(), sound.model.state_dict())
    assert_same(broken.state.tensors(), sound.state.tensors())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key


def recorded_or_not(name: str, recorded: bool, path: Path) -> tuple[Model, list[dict[str, Any]]]:
    training = Training(config_of(name))
    run = rundir.create(path, "r", str(recorded))
    ((player, optimizer),) = training.state.players.values()
    steps = graph.StaticSteps(training.model, training.config, training.stream, player, optimizer) if recorded else None
    rest = (training.train, SQUARES.split("val"), Stop(), trainer.Hooks(), steps)
    try:
        trainer.finish(trainer.fit(run, training.model, training.config, training.state, training.stream, *rest))
    finally:
        run.close()
    return training.model, [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@every_model
def test_recorded_steps_equal_those_made_one_by_one(name: str, tmp_path: Path) -> None:
    """Schedules of a model's own and work between steps included."""
    config = config_of(name)
    model = models.build(config.model, SQUARES.info)
    if model.closed_form:
        pytest.skip("takes no steps")
    problem = graph.obstacle(model, config)
    if problem is not None:
        assert len(model.players(config.optim)) > 1  # the only reason there is for this configuration
        pytest.skip(problem)
    one, records = recorded_or_not(name, False, tmp_path)
    try:
        other, found = recorded_or_not(name, True, tmp_path)
    except NotImplementedError as error:  # on a GPU the steps are launched one by one then
        pytest.skip(str(error))
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], tensor, rtol=1e-3, atol=1e-5, msg=key)
    assert [(r["kind"], r["step"]) for r in records] == [(r["kind"], r["step"]) for r in found] and len(records) == 6
    for a, b in zip(records, found, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"kind", "seconds"}:
            assert b[key] == pytest.approx(a[key], rel=1e-3, abs=1e-4), key


# ---- distributions


def levels_of(model: Model, values: Values, names: list[str]) -> None:
    """Values have the shapes and types that their levels say."""
    assert sorted(values) == sorted(names)
    for level in model.levels:
        if level.name not in values:
            continue
        value = values[level.name]
        assert tuple(value.shape[1:]) == level.shape
        if level.kind == "codes":
            assert value.dtype == torch.int64 and value.min() >= 0 and value.max() < level.sizes[0]
        else:
            assert value.is_floating_point() and bool(value.isfinite().all())
        if level.kind == "labels":
            assert sum(level.sizes) == level.size
            for block in value.flatten(1).split(list(level.sizes), dim=1):
                assert torch.equal(block.sum(dim=1), torch.ones(len(value))) and set(block.unique().tolist()) <= {0, 1}


@every_model
@pytest.mark.parametrize("sample", [False, True])
@torch.no_grad()
def test_inferred_values_and_their_table(name: str, sample: bool) -> None:
    model, x = made(name), images()
    found = model.infer(x, sample=sample)
    names = [level.name for level in model.levels if level.inferred]
    levels_of(model, found.values, names)
    assert list(found.posteriors) == list(model.inference_order()) and sorted(found.posteriors) == sorted(names)
    table = model.flatten(found.values)
    assert table.shape == (12, len(model.latent_names())) and len(set(model.latent_names())) == table.shape[1]
    back = model.unflatten(table)
    levels_of(model, back, names)
    assert all(torch.equal(back[level], value) for level, value in found.values.items())
    full = model.complete(found.values)
    levels_of(model, full, [level.name for level in model.levels])
    assert all(full[level] is value for level, value in found.values.items())
    image = model.image(full)
    assert image.shape == x.shape and bool(image.isfinite().all())
    torch.testing.assert_close(model.decode(table), image)
    log_prob = model.log_prob(x, full, model.hyper(0))
    assert model.has_likelihood == (log_prob is not None)
    if log_prob is not None:
        assert log_prob.shape == (12,) and bool(log_prob.isfinite().all())
        torch.testing.assert_close(model.nll(x, table, model.hyper(0)), -log_prob)
    again = model.infer(x, given=found.values)
    assert all(again.values[level] is value for level, value in found.values.items())


@every_model
@torch.no_grad()
def test_the_posterior_is_a_function_of_each_image_alone(name: str) -> None:
    """The same at every call, whatever the global generator has come to and whatever else is in the batch."""
    model, x = made(name), images()
    torch.manual_seed(1)
    q = model.posterior(x)
    torch.manual_seed(2)
    again = model.posterior(x)
    few = model.posterior(torch.cat([x[3:6], SQUARES.split("train").take(2).x_BCHW]))
    for whole, second, part in zip(*(_parts(p) for p in (q, again, few)), strict=True):
        assert torch.equal(whole, second)
        torch.testing.assert_close(part[:3], whole[3:6], rtol=1e-4, atol=1e-5)
        assert whole.shape == (12, len(model.latent_names())) and bool(whole.isfinite().all())
    assert not torch.equal(q.mean_BD[:1].expand_as(q.mean_BD), q.mean_BD)  # and images differ


def _parts(posterior: Any) -> list[Tensor]:
    return [t for t in (posterior.mean_BD, posterior.logvar_BD, posterior.kl_BD) if t is not None]


@every_model
@torch.no_grad()
def test_draws(name: str) -> None:
    model = made(name)
    names = [level.name for level in model.levels]
    torch.manual_seed(1)
    try:
        values = model.draw(12)
    except NoPrior as error:
        assert name in str(error) or error.hint
        with pytest.raises(NoPrior):
            for level in model.levels:
                model.p(level.name, values := {}, 3)
        return
    levels_of(model, values, names)
    assert torch.equal(model.flatten(values, model.levels), model.flatten(values, model.levels))
    back = model.unflatten(model.flatten(values, model.levels))
    assert all(torch.equal(back[level], value) for level, value in values.items())
    assert model.image(values).shape == (12, *SQUARES.info.shape)
    torch.manual_seed(1)
    assert all(torch.equal(value, values[level]) for level, value in model.draw(12).items())
    other = model.draw(12)
    assert any(not torch.equal(value, values[level]) for level, value in other.items())
    for kept in names:  # a level's noise is its own: with one given as it was, all others are as they were
        torch.manual_seed(1)
        given = model.draw(12, given={kept: values[kept]})
        assert given[kept] is values[kept]
        assert all(torch.equal(value, values[level]) for level, value in given.items()), kept
    first = {names[0]: values[names[0]]}
    modes, complete = model.draw(12, given=first, temperature=0.0), model.complete(first)
    assert all(torch.equal(modes[level], complete[level]) for level in names)


@every_model
@torch.no_grad()
def test_rates_are_the_mean_log_ratios_of_posterior_and_prior(name: str) -> None:
    """KL in closed form against log q - log p over 4,000 ancestral draws of each of three images."""
    model, draws = made(name), 4000
    torch.manual_seed(0)
    x = images(3).repeat_interleave(draws, dim=0)
    found = model.infer(x, sample=True)
    rates = model.rates(found)
    dense = {n for n, q in found.posteriors.items() if not isinstance(q, distributions.Point)}
    assert rates.keys() == dense or (
        not model.has_likelihood and not rates
    )  # without a bound a rate is part of nothing
    for level, rate in rates.items():
        q, p, value = found.posteriors[level], model.p(level, found.values, len(x)), found.values[level]
        mine = rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate
        assert rate.shape in (value.shape, (len(x),)) or model.level(level).kind == "labels"
        if isinstance(q, distributions.Indices):
            assert mine.tolist() == pytest.approx([value[0].numel() * math.log(model.level(level).sizes[0])] * len(x))
            continue
        ratio = distributions.log_prob(q, value) - distributions.log_prob(p, value)
        gap = (mine - ratio).double().view(3, draws)
        error = gap.std(dim=1) / draws**0.5
        assert (gap.mean(dim=1).abs() <= 5 * error + 1e-4).all(), (level, gap.mean(dim=1), error)


@every_model
@torch.no_grad()
def test_the_elbo_is_that_of_the_models_own_draws(name: str) -> None:
    """What a loss logs as `elbo` equals E[log p(x|z)] less the rates, over ancestral draws of the model."""
    model, size, batches = made(name), 32, 125
    x = images(1).expand(size, *SQUARES.info.shape)  # batches of the training size: a term may depend on it
    batch = Batch(x, torch.zeros(size, dtype=torch.int64), torch.full((size, 3), -1))
    players = [p for p in model.players(Adam()) if p.batches == 1]
    if not players or "elbo" not in model.loss(batch, model.hyper(0), players[0].name):
        pytest.skip("logs no ELBO")
    torch.manual_seed(0)
    logged = [model.loss(batch, model.hyper(0), players[0].name)["elbo"].value.mean() for _ in range(batches)]
    x = x[:1].expand(size * batches, *SQUARES.info.shape)
    found = model.infer(x, sample=True)
    log_prob = model.log_prob(x, model.complete(found.values), model.hyper(0))
    assert log_prob is not None
    cost = sum(rate.flatten(1).sum(dim=1) if rate.dim() > 1 else rate for rate in model.rates(found).values())
    elbo = log_prob - cost
    error = float(elbo.std()) / (size * batches) ** 0.5
    assert float(torch.stack(logged).mean()) == pytest.approx(float(elbo.mean()), abs=8 * error + 1e-3)


# ---- what the tool does with what a model asks for


def watched(training: Training, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Batch, dict[str, float]]]:
    """Every call of the loss from now on."""
    calls: list[tuple[str, Batch, dict[str, float]]] = []
    original = training.model.loss

    def loss(batch: Batch, hyper: Any, player: str = "main") -> dict[str, Term]:
        calls.append((player, batch, dict(hyper)))
        return original(batch, hyper, player)

    monkeypatch.setattr(training.model, "loss", loss)
    return calls


def test_players_get_the_batches_and_updates_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(config_of("two-player"))
    calls = watched(training, monkeypatch)
    training.step()
    training.step()
    assert [player for player, _, _ in calls] == ["main", "critic", "critic"] * 2
    for step in (0, 1):
        rows = [training.stream.indices(step, stream) for stream in range(4)]
        read = [[b.index_B for b in (batch, *batch.others)] for _, batch, _ in calls[3 * step : 3 * step + 3]]
        wanted = [[rows[0]], [rows[0], rows[1]], [rows[2], rows[3]]]  # the first of all is the step's own
        for mine, theirs in zip(read, wanted, strict=True):
            assert len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert len({tuple(row.tolist()) for row in rows}) == 4
    counts = {
        name: {int(t) for key, t in training.state.tensors().items() if key.startswith(name) and "/step" in key}
        for name in ("main", "critic")
    }
    assert counts == {"main": {2}, "critic": {4}}


def test_while_one_player_moves_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates of one player alone: the same weights for all others, though its loss reaches through them."""
    training = Training(config_of("adversary"))
    original = training.model.players
    for left_out in ("generator", "critic"):
        monkeypatch.setattr(
            training.model, "players", lambda optim, out=left_out: [p for p in original(optim) if p.name != out]
        )
        training.state = TrainState.fresh(training.model, training.config)
        others = next(p for p in original(Adam()) if p.name == left_out).parameters
        before = [p.detach().clone() for p in others]
        moving = [p.detach().clone() for p in training.model.parameters()]
        training.step()
        assert all(torch.equal(p, old) for p, old in zip(others, before, strict=True))
        assert any(not torch.equal(p, old) for p, old in zip(training.model.parameters(), moving, strict=True))


def test_stages_follow_each_other_and_count_their_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    beta = {"schedule": "linear", "start": 0.0, "end": 1.0, "steps": 10}
    training = Training(config_of("stages", steps={"main": 4, "second": 3}, beta=beta))
    calls = watched(training, monkeypatch)
    players: list[Player] = training.model.players(Adam())
    moved = []
    for _ in range(7):
        before = [[p.detach().clone() for p in player.parameters] for player in players]
        training.step()
        moved.append(
            [
                any(not torch.equal(p, old) for p, old in zip(player.parameters, olds, strict=True))
                for player, olds in zip(players, before, strict=True)
            ]
        )
    assert [player for player, _, _ in calls] == ["main"] * 4 + ["second"] * 3
    assert [hyper["beta"] for _, _, hyper in calls] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.0, 0.1, 0.2])
    assert moved == [[True, False]] * 4 + [[False, True]] * 3
    side_by_side = Training(config_of("stages", steps=2))
    calls = watched(side_by_side, monkeypatch)
    side_by_side.step()
    assert [player for player, _, _ in calls] == ["main", "second"]


def test_work_between_steps_is_done_when_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before steps 0, 10 and 20, on the whole training split, and the batches after it follow the new assignment."""
    training = Training(config_of("balanced"))
    original, done = training.model.prepare, []

    def prepare(step: int, stage: str, train: Any) -> None:
        original(step, stage, train)
        done.append((step, stage, len(train), training.state.step, training.model.assignment_N.clone()))

    monkeypatch.setattr(training.model, "prepare", prepare)
    calls = watched(training, monkeypatch)
    run = rundir.create(tmp_path, "r", "r")
    rest = (training.train, SQUARES.split("val"), Stop(), trainer.Hooks())
    trainer.finish(trainer.fit(run, training.model, training.config, training.state, training.stream, *rest))
    run.close()
    assert [entry[:4] for entry in done] == [(step, "main", 456, step) for step in (0, 10, 20)]
    assert not torch.equal(done[0][4], done[2][4])
    batches = [batch.index_B for _, batch, _ in calls if len(batch.index_B) == 32][:24]
    place = {int(index): position for position, index in enumerate(SQUARES.splits["train"].tolist())}
    for step, index_B in enumerate(batches):
        assignment_N = done[step // 10][4]
        share = torch.bincount(assignment_N, minlength=3) / 456
        counts = torch.bincount(assignment_N[[place[int(i)] for i in index_B]], minlength=3)
        crossing = (step * 32) // 456 != (step * 32 + 31) // 456  # two stretches, each of which may be off by one
        assert (counts - 32 * share).abs().max() <= (2 if crossing else 1) + 1e-6


def test_every_batch_has_its_share_of_known_labels(vae: Callable[..., Result]) -> None:
    """A quarter, though but a tenth of all are known; and held-out images show none."""
    args = ["train", "--data", "squares", "--model", "labels", "--batch-size", 32, "--steps", 50, "--runs-dir", "runs"]
    few = vae(*args, "-S", "data.labelled={size: 0.1}", "-S", "train.log_every=1", "--name", "few", "-q")
    assert few.code == 0, few.err
    records = [json.loads(line) for line in Path("runs/few/metrics.jsonl").read_text().splitlines()]
    assert {r["known"] for r in records if r["kind"] == "train"} == {0.25}
    assert {r["known"] for r in records if r["kind"] == "val"} == {0.0}
    plain = vae("train", "--data", "squares", "--model", "vae", "-S", "data.labelled=0.25", "--runs-dir", "runs")
    assert plain.code == 2 and "uses no labels" in plain.err
    none = vae(*args, "-S", "data.labelled=0", "--name", "none")
    assert none.code == 2 and "no training image has a label" in none.err


def test_a_fit_stops_when_it_is_told_to_and_keeps_what_it_has_seen(toy_models: list[str]) -> None:
    def fitted(images: int, stop_at: float) -> tuple[Model, list[float]]:
        seen: list[float] = []
        model = models.build(config_of("closed-form").model, SQUARES.info)
        train = SQUARES.training(0).sample(images)
        model.fit(train, lambda: bool(seen) and seen[-1] >= stop_at, seen.append)
        return model, seen

    whole, seen = fitted(456, math.inf)
    assert seen == [*range(32, 456, 32), 456]
    early, seen = fitted(456, 96)
    assert seen == [32, 64, 96]
    assert_same(early.state_dict(), fitted(96, math.inf)[0].state_dict())
    assert not torch.equal(early.state_dict()["mean_P"], whole.state_dict()["mean_P"])
    x_NP = SQUARES.training(0).take(456).x_BCHW.flatten(1).double()
    values = torch.linalg.eigvalsh(torch.cov(x_NP.T, correction=0)).flip(0)
    torch.testing.assert_close(whole.state_dict()["variance_D"].double(), values[:3], rtol=1e-5, atol=0.0)
    with pytest.raises(InputError, match="too few"):
        fitted(4, math.inf)


def test_a_fit_obeys_the_time_limit(vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of time after the first batch: saved with what was seen, and said so."""
    seen = iter([None, None, *["time limit"] * 10**6])
    monkeypatch.setattr(Stop, "reason", property(lambda self: next(seen)))
    done = vae("train", "--data", "squares", "--model", "closed-form", "--runs-dir", "runs", "--name", "r", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["status"] == "time limit"
    monkeypatch.undo()


def test_divergence_of_the_second_player_is_told_and_what_is_kept_loads(
    vae: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_player = registry.load("model", "two-player").Model
    original, calls = two_player.loss, []

    def poisoned(self: Model, batch: Batch, hyper: Any, player: str = "main") -> dict[str, Term]:
        terms = original(self, batch, hyper, player)
        if player == "critic" and self.training:
            calls.append(player)
            if len(calls) == 14:  # the second update of step 6
                terms["tell"] = Term(terms["tell"].value * math.nan)
        return terms

    monkeypatch.setattr(two_player, "loss", poisoned)
    line = ["train", "--data", "squares", "--model", "two-player", "--latent-dim", 3, "--batch-size", 32, "-q"]
    line += ["--steps", 20, "--runs-dir", "runs"]
    failed = vae(*line, "--name", "d")
    assert failed.code == 4 and "step 6" in failed.err and "critic" in failed.err, failed.err
    facts = json.loads(Path("runs/d/diverged.json").read_text())
    assert facts["step"] == 6 and facts["player"] == "critic"
    monkeypatch.setattr(two_player, "loss", original)
    assert json.loads(vae("info", "runs/d", "--json").out)["step"] == 6
    # It goes on from there as if nothing had happened.
    resumed = vae("train", "--resume", "runs/d", "--steps", 20, "-q")
    assert resumed.code == 0, resumed.err
    assert vae(*line, "--name", "straight").code == 0
    from safetensors.torch import load_file

    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        a, b = (load_file(Path("runs") / run / "checkpoints/latest" / file) for run in ("d", "straight"))
        assert_same(a, b)


@torch.no_grad()
def test_the_rate_of_a_level_inferred_from_below_is_no_divergence_to_its_prior() -> None:
    """z first, then u given z: p(z|u) was not there before z. Against the KL of the mean over u, which is too large."""
    model = made("stages")
    x = images(1).expand(4000, *SQUARES.info.shape)
    torch.manual_seed(0)
    found = model.infer(x, sample=True)
    kl = distributions.rate(found.posteriors["z"], model.p("z", found.values, 4000), found.values["z"])
    assert kl is not None
    rate = model.rates(found)["z"]
    error = float((kl.sum(dim=1) - rate).std()) / 4000**0.5
    assert float((kl.sum(dim=1) - rate).mean()) > 5 * error


@torch.no_grad()
def test_noise_that_nothing_infers_is_in_no_table() -> None:
    model, x = made("adversary"), images()
    assert model.latent_names() == ["code.0", "code.1"] and model.posterior(x).mean_BD.shape == (12, 2)
    code = model.flatten(model.infer(x).values)
    whole = torch.cat([torch.zeros(12, 4), code], dim=1)
    torch.testing.assert_close(model.decode(code), model.decode(whole))  # it stands at its prior's mode
    assert not torch.allclose(model.decode(code), model.decode(whole + torch.tensor([1.0] * 4 + [0.0] * 2)))
    assert not model.standard_prior and list(model.rates(model.infer(x))) == ["code"]


@torch.no_grad()
def test_the_flat_posterior_of_a_flow_has_moments_but_no_divergence_a_latent() -> None:
    model, x = made("flow"), images(2)
    q = model.posterior(x)
    assert q.logvar_BD is not None and q.kl_BD is None
    torch.manual_seed(0)
    drawn = model.infer(x.repeat_interleave(20_000, dim=0), sample=True).values["z"].view(2, 20_000, 3)
    error = drawn.std(dim=1) / distributions.MOMENT_DRAWS**0.5
    assert ((drawn.mean(dim=1) - q.mean_BD).abs() < 4 * error).all()
    assert ((drawn.var(dim=1).log() - q.logvar_BD).abs() < 4 * (2 / distributions.MOMENT_DRAWS) ** 0.5 * 2).all()
