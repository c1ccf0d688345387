"""Every net: exact parameter counts worked out by hand, sizes, gradients everywhere, starts, refusals."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from vaecli.errors import ConfigError
from vaecli.nets import coders as nets

READ: TypeAdapter[Any] = TypeAdapter(nets.NetConfig)


def build(written: Any, shape: tuple[int, int, int], latent_dim: int = 10) -> nets.Pair:
    torch.manual_seed(0)
    return nets.build(READ.validate_python(written), shape, 2 * latent_dim, latent_dim)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def linear(*widths: int) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


def conv(kernel: int, *channels: int) -> int:
    return sum((a * kernel * kernel + 1) * b for a, b in pairwise(channels))


COUNTS: list[tuple[Any, tuple[int, int, int], int, int]] = [
    # 4096 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 20 + 20 = 6,381,620 and so on
    ("higgins-fc", (1, 64, 64), 6_381_620, 7_814_896),
    # Conv: 544 + 3 * 16,416; FC: 131,328 + 65,792 + 5,140.   FC: 2,816 + 65,792 + 131,584; deconv: 3 * 16,416 + 513.
    ("burgess", (1, 64, 64), 252_052, 249_953),
    ("burgess", (3, 32, 32), conv(4, 3, 32, 32, 32) + 202_260, 200_192 + conv(4, 32, 32, 32, 3)),
    # Conv: 544 + 16,416 + 8,256 + 16,448; FC: 262,400 + 5,140.
    # FC: 2,816 + 263,168; deconv: 65,600 + 32,800 + 16,416 + 513.
    ("locatello", (1, 64, 64), 309_204, 381_313),
    ("locatello", (3, 64, 64), 309_204 + 2 * 16 * 32, 381_313 + 2 * (32 * 16 + 1)),
    ("mlp", (1, 28, 28), linear(784, 400, 400, 20), linear(10, 400, 400, 784)),
    ({"name": "mlp", "hidden": [30, 20]}, (3, 5, 4), linear(60, 30, 20, 20), linear(10, 20, 30, 60)),
    ({"name": "mlp", "hidden": []}, (1, 2, 3), 6 * 20 + 20, 10 * 6 + 6),
    # 64 -> 32 -> 16 -> 8 -> 4 with 32, 32, 64, 64 channels, and back.
    (
        "conv",
        (3, 64, 64),
        conv(4, 3, 32, 32, 64, 64) + linear(1024, 256, 20),
        linear(10, 256, 1024) + conv(4, 64, 64, 32, 32, 3),
    ),
    # 45x100 is framed to 48x104: 24x52, 12x26, 6x13 with 32, 64, 64 channels.
    (
        {"name": "conv", "dense": 9},
        (2, 45, 100),
        conv(4, 2, 32, 64, 64) + linear(6 * 13 * 64, 9, 20),
        linear(10, 9, 6 * 13 * 64) + conv(4, 64, 64, 32, 2),
    ),
    # 512 is halved seven times; the three largest levels have no fewer than 16 channels.
    (
        {"name": "conv", "width": 32},
        (1, 512, 512),
        conv(4, 1, 16, 16, 16, 16, 16, 32, 32) + linear(512, 256, 20),
        linear(10, 256, 512) + conv(4, 32, 32, 16, 16, 16, 16, 16, 1),
    ),
    (
        # 64 -> 32 -> 16 by strided convolutions of 16 and 24 channels, then blocks at 16, 8 and 4.
        "resnet",
        (3, 64, 64),
        conv(4, 3, 16, 24) + conv(3, 24, 24, 24, 48, 48, 48, 96, 96, 96) + linear(16 * 96, 20),
        linear(10, 16 * 96) + conv(3, 96, 96, 96, 48, 48, 48, 24, 24, 24) + conv(4, 24, 16, 3),
    ),
    (
        # As it was before it lowered its resolution.
        {"name": "resnet", "width": 4, "blocks_up_to": 8192},
        (3, 32, 18),
        conv(3, 3, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32) + linear(4 * 3 * 32, 20),
        linear(10, 4 * 3 * 32) + conv(3, 32, 32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4, 3),
    ),
    (
        # 9x5 -> 5x3 -> 3x2 with 4, 8, 16 channels, one block of two 3x3 layers on each level.
        {"name": "resnet", "width": 4},
        (3, 9, 5),
        conv(3, 3, 4, 4, 4) + conv(3, 4, 8, 8, 8) + conv(3, 8, 16, 16, 16) + linear(96, 20),
        linear(10, 96) + conv(3, 16, 16, 16, 8, 8, 8, 4, 4, 4, 3),
    ),
    (
        "semafo",
        (1, 28, 28),
        conv(5, 1, 32, 32, 64, 64) + linear(7 * 7 * 64, 196, 20),
        linear(10, 196) + conv(5, 4, 64, 64, 32, 32) + conv(1, 32, 1),
    ),
    (
        "semafo",
        (1, 64, 64),
        conv(4, 1, 32, 32, 64, 64) + linear(4 * 4 * 64, 128, 20),
        linear(10, 128) + conv(4, 8, 64, 64, 32, 32) + conv(1, 32, 1),
    ),
    (
        {"name": "semafo", "width": 16},
        (3, 64, 64),
        conv(4, 3, 16, 16, 32, 32) + linear(4 * 4 * 32, 256, 20),
        linear(10, 256) + conv(4, 16, 32, 32, 16, 16) + conv(1, 16, 3),
    ),
]


@pytest.mark.parametrize(("written", "shape", "encoder_count", "decoder_count"), COUNTS)
def test_parameter_counts(written: Any, shape: tuple[int, int, int], encoder_count: int, decoder_count: int) -> None:
    encoder, decoder = build(written, shape)
    assert (parameters(encoder), parameters(decoder)) == (encoder_count, decoder_count)


@pytest.mark.parametrize(
    ("written", "shape"),
    [
        ("higgins-fc", (1, 64, 64)),
        ("higgins-fc", (3, 7, 5)),
        ("burgess", (1, 64, 64)),
        ("burgess", (3, 32, 32)),
        ("locatello", (3, 64, 64)),
        ("keras", (3, 28, 12)),
        ({"name": "mlp", "hidden": [8], "activation": "tanh"}, (2, 4, 9)),
        ({"name": "resnet", "width": 4}, (1, 28, 28)),
        ({"name": "resnet", "width": 4, "blocks": 2}, (3, 37, 18)),
        ({"name": "resnet", "width": 4}, (5, 1, 33)),
        ({"name": "resnet", "width": 4}, (1, 1, 1)),
        ({"name": "resnet", "width": 4}, (3, 50, 81)),
        ({"name": "conv", "width": 16}, (16, 16, 16)),
        ({"name": "conv", "width": 16}, (1, 17, 97)),
        ({"name": "conv", "width": 16}, (3, 128, 80)),
        ({"name": "semafo", "width": 4}, (1, 28, 28)),
        ({"name": "semafo", "width": 4}, (3, 12, 20)),
        ({"name": "semafo", "width": 4}, (3, 64, 80)),
    ],
)
def test_outputs_are_finite_and_every_parameter_gets_a_gradient(written: Any, shape: tuple[int, int, int]) -> None:
    encoder, decoder = build(written, shape)
    code = encoder(torch.rand(6, *shape))
    assert code.shape == (6, 20)
    out = decoder(code[:, :10] + torch.randn(6, 10))
    assert out.shape == (6, *shape)
    (code.square().sum() + out.square().sum()).backward()
    assert torch.isfinite(out).all()
    for name, parameter in (*encoder.named_parameters(), *decoder.named_parameters()):
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_images_do_not_influence_each_other() -> None:
    for written, shape in (("burgess", (1, 64, 64)), ({"name": "resnet", "width": 4}, (3, 9, 5))):
        encoder, _ = build(written, shape)
        x = torch.rand(3, *shape)
        torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]), rtol=1e-4, atol=1e-5)


def test_linear_mlp_is_linear() -> None:
    encoder, decoder = build({"name": "mlp", "hidden": []}, (1, 2, 3), latent_dim=2)
    for net, a, b in (
        (encoder, torch.rand(1, 1, 2, 3), torch.rand(1, 1, 2, 3)),
        (decoder, torch.rand(1, 2), torch.rand(1, 2)),
    ):
        torch.testing.assert_close(net(a) + net(b), net(a + b) + net(torch.zeros_like(a)))


@pytest.mark.parametrize(
    ("activation", "at_minus_one"),
    [
        ("relu", 0.0),
        ("tanh", math.tanh(-1)),
        ("elu", math.expm1(-1)),
        ("silu", -1 / (1 + math.e)),
        ("leaky-relu", -0.2),
    ],
)
def test_activations(activation: str, at_minus_one: float) -> None:
    encoder, _ = build({"name": "mlp", "hidden": [1], "activation": activation}, (1, 1, 1), latent_dim=1)
    first, last = encoder[1], encoder[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        for parameter, value in ((first.weight, -1.0), (first.bias, 0.0), (last.weight, 1.0), (last.bias, 0.0)):
            parameter.fill_(value)
    assert encoder(torch.ones(1, 1, 1, 1))[0, 0].item() == pytest.approx(at_minus_one, abs=1e-6)


def test_higgins_uses_relu_in_the_encoder_and_tanh_in_the_decoder() -> None:
    encoder, decoder = build("higgins-fc", (1, 8, 8))
    assert [type(layer) for layer in encoder if not isinstance(layer, nn.Linear)] == [nn.Flatten, nn.ReLU, nn.ReLU]
    assert [type(layer) for layer in decoder if not isinstance(layer, nn.Linear)] == [nn.Tanh] * 3 + [nn.Unflatten]


def test_locatello_starts_glorot_uniform_with_zero_biases() -> None:
    encoder, decoder = build("locatello", (1, 64, 64))
    fans = {
        "0.weight": (1 + 32) * 16,
        "2.weight": (32 + 32) * 16,
        "4.weight": (32 + 64) * 4,
        "6.weight": (64 + 64) * 4,
        "9.weight": 1024 + 256,
        "11.weight": 256 + 10,  # ten outputs: means and log-variances are layers of their own in the original
    }
    for name, parameter in encoder.named_parameters():
        if name in fans:
            limit = math.sqrt(6 / fans.pop(name))
            assert parameter.abs().max().item() == pytest.approx(limit, rel=0.01)
            assert parameter.abs().max() <= limit
            assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        else:
            assert name.endswith("bias")
            assert not parameter.any()
    assert not fans
    assert not any(p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))


def test_locatello_pads_like_tensorflow() -> None:
    """ "same" for a 2x2 kernel, stride 2 and even sides pads nothing; for 4x4 one pixel on every side."""
    encoder, _ = build("locatello", (1, 64, 64))
    convolutions = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
    assert [(c.kernel_size, c.stride, c.padding) for c in convolutions] == [
        ((4, 4), (2, 2), (1, 1)),
        ((4, 4), (2, 2), (1, 1)),
        ((2, 2), (2, 2), (0, 0)),
        ((2, 2), (2, 2), (0, 0)),
    ]


def test_keras_net_is_that_of_its_example() -> None:
    """69,076 and 65,089 parameters in the summaries that the example prints; Glorot-uniform, biases 0."""
    encoder, decoder = nets.build(READ.validate_python("keras"), (1, 28, 28), 4, 2)
    assert (parameters(encoder), parameters(decoder)) == (69_076, 65_089)
    x = torch.rand(2, 1, 28, 28)
    padded = torch.zeros(2, 1, 29, 29)
    padded[:, :, :28, :28] = x
    torch.testing.assert_close(encoder[:2](x), encoder[1](padded))
    for name, parameter in (*encoder.named_parameters(), *decoder.named_parameters()):
        assert bool(parameter.any()) == name.endswith("weight")
    limit = math.sqrt(6 / (16 + 2))  # two latents, whose means and log-variances have a layer each
    assert 0.8 * limit < encoder[-1].weight.abs().max() <= limit


def test_semafo_halves_as_published_and_sees_images_around_zero() -> None:
    """28x28: every other layer of kernel 5 halves; 64x64: every one of kernel 4. He-normal, biases 0, but for the last
    layer of the encoder, which has PyTorch's own start; ELU after every convolution but the last."""
    for side, maps in ((28, [28, 14, 14, 7]), (64, [32, 16, 8, 4])):
        encoder, decoder = build("semafo", (1, side, side))
        x, seen = torch.rand(2, 1, side, side), []
        h = encoder[0](x)
        torch.testing.assert_close(h, 2 * x - 1)
        for layer in encoder[1:9]:
            h = layer(h)
            seen += [h.shape[2]] if isinstance(layer, nn.ELU) else []
        assert seen == maps
        sides, h = [], torch.randn(2, 10)
        for layer in decoder:
            h = layer(h)
            sides += [h.shape[2]] if isinstance(layer, nn.ELU) else []
        assert sides == ([14, 14, 28, 28] if side == 28 else [8, 16, 32, 64])
        assert [type(m) for m in encoder if isinstance(m, (nn.ELU, nn.ReLU))] == [nn.ELU] * 4
        for part in (*encoder[:-1], *decoder):
            if hasattr(part, "weight"):
                fan_in = part.weight[0].numel()
                assert part.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.12)
                assert not part.bias.any()
        assert encoder[-1].weight.abs().max() <= 1 / math.sqrt(encoder[-1].in_features)


def test_resnet_blocks_add_to_what_passes_through() -> None:
    encoder, _ = build({"name": "resnet", "width": 4}, (3, 4, 4))
    first, block = encoder[0], encoder[1]
    x = torch.rand(2, 3, 4, 4)
    h = first(x)
    with torch.no_grad():
        *_, weight, bias = block.parameters()
        weight.zero_()
        bias.fill_(0.25)
    torch.testing.assert_close(encoder[:2](x), h + 0.25)


@pytest.mark.parametrize("side", [16, 64, 100, 512])
def test_signals_keep_their_size_through_conv(side: int) -> None:
    """He-normal by the inputs that reach an output: the mean square of what leaves each ReLU stays what it was, give
    or take, however many levels there are; PyTorch's own start divides it by 6 a level."""
    encoder, decoder = build("conv", (3, side, side))
    size = 2.0 if side == 512 else 1.6
    for net, x in ((encoder, torch.rand(2, 3, side, side)), (decoder, torch.randn(64 if side < 512 else 4, 10))):
        start = None
        for layer in net:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                square = x.square().mean().item()
                start = square if start is None else start
                assert start / size**3 < square < start * size**3
    for layer in (*encoder, *decoder):
        if isinstance(layer, nn.ConvTranspose2d) and layer.out_channels > 3:
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (4 * layer.in_channels)), rel=0.05)


def test_an_untrained_decoder_of_conv_makes_no_checkerboards() -> None:
    """Its last layer gives every four pixels that see the same inputs one value; they see them from the second row and
    column on."""
    for written, shape in (("conv", (3, 64, 48)), ("resnet", (3, 64, 48))):
        _, decoder = build(written, shape)
        image = decoder(torch.randn(2, 10))[:, :, 1:-1, 1:-1]
        blocks = image.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        same = blocks[:, :, :, :1, :, :1].expand_as(blocks)
        torch.testing.assert_close(blocks, same, rtol=1e-4, atol=1e-5)
        assert image.std() > 1e-3


def test_the_frame_of_conv_is_zeros_around_the_middle_and_comes_off_again() -> None:
    x = torch.rand(2, 3, 45, 102)
    framed = nets.conv.Frame(45, 102, 3)(x)
    assert framed.shape == (2, 3, 48, 104)
    assert torch.equal(framed[:, :, 1:46, 1:103], x)  # of 3 missing rows one is above, of 2 columns one on each side
    assert framed.sum().item() == pytest.approx(x.sum().item(), rel=1e-6)
    assert torch.equal(nets.conv.Frame(45, 102, 3, off=True)(framed), x)
    assert nets.conv.Frame(64, 96, 4)(x) is x


def test_conv_halves_until_the_shorter_side_has_seven_positions_or_fewer() -> None:
    sides = {16: 2, 28: 2, 29: 3, 32: 3, 56: 3, 57: 4, 64: 4, 96: 4, 112: 4, 113: 5, 128: 5, 224: 5, 448: 6, 512: 7}
    assert {side: nets.conv.halvings(side, 512) for side in sides} == sides
    assert nets.conv.halvings(512, 16) == 2
    assert nets.conv.channels(nets.conv.ConvConfig(), 6) == [16, 16, 32, 32, 64, 64]


def test_without_a_net_named_large_images_have_conv_and_others_mlp() -> None:
    for shape, name in {
        (1, 28, 28): "mlp", (1, 31, 31): "mlp", (3, 16, 32): "conv", (1, 32, 32): "conv", (16, 512, 512): "conv",
        (3, 15, 64): "mlp", (3, 64, 513): "mlp", (17, 64, 64): "mlp",
    }.items():  # fmt: skip
        config, reason = nets.chosen(shape)
        assert config.name == name and reason.startswith(f"net {name}: ") and f"{shape[1]}x{shape[2]}" in reason
        encoder, _ = build("auto", shape)
        assert any(isinstance(layer, nn.Conv2d) for layer in encoder) == (name == "conv")


def test_settings_without_a_name_that_mlp_alone_has_are_of_an_mlp() -> None:
    """As they were while it was the default."""
    assert READ.validate_python({"hidden": [7]}) == READ.validate_python({"name": "mlp", "hidden": [7]})


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("burgess", (1, 28, 28), "64x64 or 32x32"),
        ("burgess", (1, 64, 32), "64x64 or 32x32"),
        ("locatello", (3, 32, 32), "64x64"),
        ("keras", (1, 30, 28), "halves images twice"),
        ("conv", (3, 15, 40), "sides of 16 to 512"),
        ("conv", (3, 64, 513), "sides of 16 to 512"),
        ("conv", (17, 64, 64), "1 to 16 channels"),
        ("semafo", (1, 30, 28), "multiples of 4"),
        ("semafo", (1, 28, 100), "multiples of 16 from 64 pixels on"),
    ],
)
def test_a_wrong_size_names_the_net_both_sizes_and_the_remedy(name: str, shape: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, shape)
    assert all(part in str(caught.value) for part in (name, wanted, f"{shape[1]}x{shape[2]}"))
    assert caught.value.hint is not None
    assert "resnet" in caught.value.hint
    assert "data.image_size" in caught.value.hint


@pytest.mark.parametrize(
    "written",
    [
        "mlpp",
        {"name": "mlp", "hidden": [0]},
        {"name": "mlp", "hidden": [10**9]},
        {"name": "mlp", "hidden": [1] * 65},
        {"name": "mlp", "hidden": "400"},
        {"name": "mlp", "activation": "gelu!"},
        {"name": "resnet", "width": 10**6},
        {"name": "burgess", "width": 3},
    ],
)
def test_unusable_sections_are_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python(written)


@pytest.mark.parametrize(
    "written", ["auto", "higgins-fc", "burgess", "locatello", "keras", "mlp", "conv", "resnet", "semafo"]
)
def test_shorthand_is_the_section_and_reads_back(written: str) -> None:
    section = READ.validate_python(written)
    assert section == READ.validate_python({"name": written})
    assert READ.validate_python(section.model_dump(mode="json")) == section


def test_a_huge_net_costs_nothing_on_the_meta_device() -> None:
    widest = {"name": "mlp", "hidden": [65_536] * 64}
    sections: list[Any] = [
        widest,
        {"name": "resnet", "width": 1024, "blocks": 16},
        "locatello",
        "burgess",
        "higgins-fc",
    ]
    for section in sections:
        with torch.device("meta"):
            encoder, decoder = nets.build(READ.validate_python(section), (3, 64, 64), 2 * 65_536, 65_536)
        assert all(p.is_meta for p in (*encoder.parameters(), *decoder.parameters()))
    # 64 layers of 65,536 squared: 2.7e11 numbers could not have been allocated.
    with torch.device("meta"):
        assert parameters(nets.build(READ.validate_python(widest), (3, 64, 64), 20, 10)[0]) > 2.7e11
