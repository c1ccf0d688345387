"""`data.labelled`: which labels an objective may see; the facts about labels that a checkpoint keeps."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE

from vaecli import data
from vaecli.batch import Batch, DataInfo
from vaecli.data import array, base, squares
from vaecli.errors import ConfigError
from vaecli.training import checkpoint

SIZES = {"size": 3, "posX": 13, "posY": 13}
DRY = ("train", "--data", "squares", "--model", "vae", "--dry-run")


def load(**options):
    return data.load(squares.Config(name="squares", **options))


def partly_known(n=200, seed=0, **options):
    """Images of which the label `a` (3 values) is known of 60 %, `b` (5 values) of 30 %."""
    random = np.random.default_rng(seed)
    labels = np.stack([random.integers(0, 3, n), random.integers(0, 5, n)], axis=1)
    labels[random.random((n, 2)) > (0.6, 0.3)] = -1
    np.savez("partly.npz", images=random.random((n, 4, 4)), factors=labels, factor_names=["a", "b"])
    return data.load(array.Config(name="array", path="partly.npz", **options)), torch.from_numpy(labels)


def visible(dataset, seed=0):
    """What training sees, as a table like the data set's; the same by the view and by the stream."""
    view = dataset.training(seed)
    table = torch.full_like(dataset.labels, -1)
    table[view.indices] = view.labels_NK
    rows = dataset.stream(seed, len(view)).batch(0)
    assert torch.equal(rows.labels_BK, table[rows.index_B])
    assert torch.equal(rows.truth_BK, dataset.labels[rows.index_B])
    seen = torch.cat([batch.labels_BK for batch in view.batches(50)])
    assert torch.equal(seen, view.labels_NK)
    return table


# ---- how many


@pytest.mark.parametrize(("share", "count"), [(0.1, 46), (220, 220), (1, 1), (1.0, 456), (0, 0), (456, 456)])
def test_a_number_counts_images(share, count):
    dataset = load(labelled=share)
    table = visible(dataset)
    shown = (table >= 0).any(dim=1)
    assert int(shown.sum()) == count
    assert torch.equal(table[shown], dataset.labels[shown])  # all labels of an image or none
    assert (table[~shown] == -1).all()
    assert set(shown.nonzero()[:, 0].tolist()) <= set(dataset.splits["train"].tolist())


def test_without_it_all_labels_are_seen():
    dataset = load()
    train = dataset.splits["train"]
    assert torch.equal(visible(dataset)[train], dataset.labels[train])


@pytest.mark.parametrize("labelled", [{"size": 0.01}, {"size": 0.25, "posY": 30}, {"posX": 456}, {}])
def test_a_mapping_counts_labels_of_each_factor(labelled):
    dataset = load(labelled=labelled)
    table = visible(dataset)
    for k, name in enumerate(SIZES):
        share = labelled.get(name, 0)
        shown = table[:, k] >= 0
        assert int(shown.sum()) == (share if isinstance(share, int) else round(share * 456))
        assert torch.equal(table[shown, k], dataset.labels[shown, k])
        counts = Counter(table[shown, k].tolist())
        if 0 < share < 200:
            assert max(counts.values()) - min(counts[value] for value in range(SIZES[name])) <= 1
    if len(labelled) == 2:  # each factor's images are its own choice
        size, pos_y = table[:, 0] >= 0, table[:, 2] >= 0
        assert bool((size & ~pos_y).any()) and bool((pos_y & ~size).any())


def test_only_known_labels_of_training_images_count():
    _, labels = partly_known()
    for labelled in (0.5, {"a": 0.5}, {"b": 0.5}, {"a": 0.2, "b": 7}):
        dataset, _ = partly_known(labelled=labelled)
        train = dataset.splits["train"]
        table = visible(dataset)
        assert bool(((table == -1) | (table == labels)).all())
        if isinstance(labelled, dict):
            for k, name in enumerate("ab"):
                share, known = labelled.get(name, 0), int((labels[train, k] >= 0).sum())
                assert 0 < known < len(train)
                assert int((table[:, k] >= 0).sum()) == base.count_of(share, known)
        else:
            known = int((labels[train] >= 0).any(dim=1).sum())
            shown = (table >= 0).any(dim=1)
            assert int(shown.sum()) == round(0.5 * known)
            assert torch.equal(table[shown], labels[shown])
        assert (table[dataset.splits["val"]] == -1).all()


def test_limit_comes_first():
    dataset = load(limit=50, labelled=0.1)
    shown = (visible(dataset) >= 0).any(dim=1)
    assert int(shown.sum()) == 5
    assert set(shown.nonzero()[:, 0].tolist()) <= set(dataset.splits["train"].tolist())


# ---- which


def test_classes_are_dealt_in_turn_until_one_runs_out():
    label_N = torch.tensor([0] * 100 + [1] * 3 + [2] * 50)[:, None]
    images = base.Floats(torch.zeros(153, 1, 1, 1))
    for labelled, expected in [
        (9, [3, 3, 3]),
        (10, [4, 3, 3]),
        (31, [14, 3, 14]),
        (0.5, [37, 3, 36]),
        (150, [97, 3, 50]),
    ]:
        for share in (labelled, {"class": labelled}):
            config = base.DataConfig(name="toy", holdout=0, labelled=share)
            dataset = base.assemble(
                config, images, labels_NK=label_N, factor_names=("class",), factor_sizes=(3,), binary=False, source={}
            )
            counts = Counter(dataset.training(0).labels_NK[:, 0].tolist())
            got, total = [counts[value] for value in range(3)], sum(expected)
            assert got == expected, (share, got)
            assert counts[-1] == 153 - total


def test_the_choice_follows_the_seed_and_no_other_setting():
    first = visible(load(labelled={"size": 40}), seed=1)
    assert torch.equal(first, visible(load(labelled={"size": 40}), seed=1))
    assert not torch.equal(first, visible(load(labelled={"size": 40}), seed=2))
    # More labels of one factor leave those of another as they were, and are those seen before and more.
    both = visible(load(labelled={"size": 60, "posX": 20}), seed=1)
    assert torch.equal(both[first >= 0], first[first >= 0])


def test_labels_follow_the_images_to_a_device():
    dataset = load(labelled=20)
    before = visible(dataset)
    assert torch.equal(visible(dataset.to("cpu")), before)


# ---- held-out images


def test_held_out_images_show_no_label_but_have_a_truth():
    for labelled in (None, 20, {"size": 0.5}):
        dataset = load(labelled=labelled)
        for name in ("val", "test", "train", "all"):
            view = dataset.held_out(name)
            assert view.name == dataset.split(name).name
            assert torch.equal(view.indices, dataset.split(name).indices)
            assert torch.equal(view.labels_NK, torch.full((len(view), 3), -1))
            for batch in (*view.batches(100), view.take(5), next(view.sample(7).batches(7))):
                assert torch.equal(batch.labels_BK, torch.full((len(batch.index_B), 3), -1))
                assert torch.equal(batch.truth_BK, dataset.labels[batch.index_B])
        everything = dataset.split("val").take(9)  # for reports
        assert torch.equal(everything.labels_BK, everything.truth_BK)
    plain = base.Dataset(dataset.info, dataset.images, None, dataset.splits)
    assert plain.held_out("val").labels_NK is None
    assert plain.held_out("val").take(3).truth_BK is None


# ---- batches


def test_a_batch_moves_and_is_cut_whole():
    x, index = torch.arange(5.0).reshape(5, 1, 1, 1), torch.arange(5)
    seen, truth = -torch.ones(5, 2, dtype=torch.int64), torch.arange(10).reshape(5, 2)
    other = Batch(x + 10, index + 10, truth, truth)
    batch = Batch(x, index, seen, truth, (other,))
    cut = batch.part(2)
    assert torch.equal(cut.x_BCHW, x[:2]) and cut.index_B.tolist() == [0, 1]
    assert torch.equal(cut.labels_BK, seen[:2]) and torch.equal(cut.truth_BK, truth[:2])
    assert torch.equal(cut.others[0].x_BCHW, x[:2] + 10) and torch.equal(cut.others[0].labels_BK, truth[:2])
    moved = batch.to("meta")
    for part in (moved, *moved.others):
        assert {part.x_BCHW.device.type, part.labels_BK.device.type, part.truth_BK.device.type} == {"meta"}
    assert moved.index_B.tolist() == index.tolist()
    bare = Batch(x, index)
    assert (bare.to("meta").labels_BK, bare.part(1).truth_BK, bare.part(9).x_BCHW.shape[0]) == (None, None, 5)


# ---- what a checkpoint keeps


def test_a_checkpoint_keeps_the_facts(vae):
    images, digit = np.random.default_rng(0).random((60, 4, 4)), np.arange(60)[:, None] % 3
    np.savez("d.npz", images=images, factors=digit)
    done = vae(
        "train", "--data", "array:d.npz", "--latent-dim", 2, "--steps", 1, "--runs-dir", "runs", "--name", "a", "-q"
    )
    assert done.code == 0, done.err
    file = Path("runs/a/checkpoints/latest/model.safetensors")
    config, info, _ = checkpoint.read_config(file, checkpoint.read_header(file)[0])
    assert info == data.load(config.data).info
    assert (info.total, info.size) == (60, 54)


@pytest.mark.parametrize("names", [(("red", "green"), ()), ((), ("a", "b", "c"))])
def test_names_of_values_are_read_back(names, vae):
    vae("train", "--data", "squares", "--steps", 1, "--runs-dir", "runs", "--name", "a", "-q")
    file = Path("runs/a/checkpoints/latest/model.safetensors")
    metadata = checkpoint.read_header(file)[0]
    stored = json.loads(metadata["vaecli.config"])
    info = DataInfo("toy", (1, 16, 16), 10, ("p", "q"), (2, 3), False, {"sha256": "x"}, 12, names)
    stored["data"] = json.loads(json.dumps(dataclasses.asdict(info)))
    lone = Path("alone.safetensors")
    assert checkpoint.read_config(lone, metadata | {"vaecli.config": json.dumps(stored)})[1] == info


def test_a_checkpoint_of_an_earlier_version_tells_neither():
    file = next((HERE / "data" / "runs-0.1").glob("*/checkpoints/latest/model.safetensors"))
    metadata = checkpoint.read_header(file)[0]
    assert not {"total", "value_names"} & set(json.loads(metadata["vaecli.config"])["data"])
    info = checkpoint.read_config(file, metadata)[1]
    assert (info.total, info.value_names) == (0, ())
    assert checkpoint.load(file.parent.parent.parent, "cpu").info == info


# ---- what is refused


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{sise: 0.1}", "no factor is called 'sise'; did you mean 'size'?"),
        ("{zebra: 3}", "no factor is called 'zebra'; there are: posX, posY, size"),
        ('{"": 3}', "no factor is called ''"),
        ("{posX: 457}", "data.labelled.posX is 457, but only 456 labels of training images are known"),
        ("457", "data.labelled is 457, but only 456 labels of training images are known"),
        ("1.5", "data.labelled"),
        ("-1", "data.labelled"),
        ("{size: -0.5}", "data.labelled"),
        ("true", "data.labelled"),
        ("0.5", "vae uses no labels"),
        ("{size: 3}", "vae uses no labels"),
    ],
)
def test_what_does_not_fit_is_said_before_the_work(vae, value, words):
    done = vae(*DRY, "-S", f"data.labelled={value}")
    assert done.code == 2
    assert words in done.err, done.err
    assert done.out == "" and not Path("runs").exists()


def test_a_dry_run_takes_what_fits(vae, toy_models):
    done = vae("train", "--data", "squares", "--model", "labels", "-S", "data.labelled={size: 0.1}", "--dry-run")
    assert done.code == 0, done.err


def test_images_without_labels(vae):
    np.save("d.npy", np.random.default_rng(0).random((20, 4, 4)))
    done = vae("train", "--data", "array:d.npy", "--model", "vae", "-S", "data.labelled=3", "--dry-run")
    assert done.code == 2 and "data.labelled is 3, but the images have no labels" in done.err
    with pytest.raises(ConfigError, match="only 0 labels"):
        np.savez("u.npz", images=np.zeros((20, 4, 4)), factors=np.full((20, 2), -1))
        data.load(array.Config(name="array", path="u.npz", labelled={"factor0": 1}))
