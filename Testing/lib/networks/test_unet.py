"""U-Net parts: sizes, levels, deep supervision, separable encoder."""

import pytest
import torch

from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.networks.unet import (
    Encoder,
    SegmentationNet,
    build_encoder,
    memory_format,
    norm_spec,
    place,
)
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import torch as _torch  # noqa: F401  (one thread)

CASES = {
    "2d": (2, (16, 24), ((1, 1), (2, 2), (2, 2))),
    "3d": (3, (8, 12, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2))),
    "anisotropic": (3, (3, 16, 12), ((1, 1, 1), (1, 2, 2), (1, 2, 2))),
    "mixed": (3, (4, 16, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 1))),
    "one level": (2, (7, 5), ((1, 1),)),
}


@each("case", CASES)
@each("norm", ["batch", "group", "instance"])
def test_feature_maps_have_the_sizes_of_the_strides(case, norm):
    dim, size, strides = CASES[case]
    encoder = build_encoder(dim, 2, strides, NetworkConfig(widths=(4, 8, 12, 16), norm=norm))
    net = SegmentationNet(encoder, 3)
    x = torch.randn(2, 2, *size)
    total = [1] * dim
    for width, stride, feature in zip((4, 8, 12), strides, net.encoder(x), strict=False):
        total = [a * b for a, b in zip(total, stride, strict=True)]
        assert feature.shape == (2, width, *(n // t for n, t in zip(size, total, strict=True)))
    assert len(encoder.widths) == len(strides) and net(x).shape == (2, 3, *size)


def test_deep_supervision_gives_coarser_logits_finest_first_and_the_same_result():
    dim, size, strides = 2, (32, 16), ((1, 1), (2, 2), (2, 1), (2, 2))
    net = SegmentationNet(
        build_encoder(dim, 1, strides, NetworkConfig(widths=(4, 6, 8, 10))),
        3,
        deep_supervision=True,
    )
    x = torch.randn(2, 1, *size)
    logits = net.eval().all_logits(x)
    assert [tuple(t.shape[2:]) for t in logits] == [(32, 16), (16, 8), (8, 8)]
    assert torch.equal(logits[0], net(x)) and all(t.shape[1] == 3 for t in logits)
    shallow = SegmentationNet(
        build_encoder(2, 1, strides[:2], NetworkConfig(widths=(4, 6))), 3, deep_supervision=True
    )
    assert len(shallow.all_logits(x)) == 1


def test_every_parameter_of_the_network_gets_a_gradient():
    for deep in (False, True):
        net = SegmentationNet(
            build_encoder(2, 1, CASES["2d"][2], NetworkConfig(widths=(4, 6, 8))), 2, deep
        )
        sum(t.square().sum() for t in net.all_logits(torch.randn(2, 1, 16, 16))).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_encoder_keeps_its_names_inside_the_network():
    encoder = Encoder(2, 1, (4, 8), ((1, 1), (2, 2)))
    net = SegmentationNet(encoder, 2)
    inside = {n.removeprefix("encoder.") for n in net.state_dict() if n.startswith("encoder.")}
    assert inside == set(encoder.state_dict()) and not any(
        n.startswith("encoder.") for n in encoder.state_dict()
    )


@each("channels", [1, 2, 4, 5, 6, 12, 16, 20, 128, 320])
def test_groups_divide_the_channels_of_every_preset_width(channels):
    name, options = norm_spec("group", channels)
    if channels % options["num_groups"]:
        pytest.fail(f"{options['num_groups']} groups of {channels} channels")
    assert name == "group" and 1 <= options["num_groups"] <= 8


def test_channels_last_changes_the_layout_and_not_the_result():
    for dim in (2, 3):
        torch.manual_seed(0)
        encoder = build_encoder(
            dim, 1, [(1,) * dim, (2,) * dim], NetworkConfig(widths=(4, 8))
        ).eval()
        net = SegmentationNet(encoder, 2).eval()
        x = torch.randn(1, 1, *(16,) * dim)
        before = net(x)
        after = net.to(memory_format=memory_format(dim))(
            x.contiguous(memory_format=memory_format(dim))
        )
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_narrow_strided_convolutions_get_channels_first():
    """With channels last, AVX2 kernels write past the end of the gradient of such an input."""
    seen = []

    def note(_, inputs):
        seen.append(inputs[0].is_contiguous())

    for widths in ((4, 8, 8), (8, 16, 16)):
        encoder = build_encoder(2, 1, [(1, 1), (2, 2), (2, 2)], NetworkConfig(widths=widths))
        place(encoder, torch.device("cpu"), 2)
        for stage in list(encoder.stages)[1:]:
            stage.conv3.conv.register_forward_pre_hook(note)
        encoder(torch.randn(2, 1, 32, 32).contiguous(memory_format=memory_format(2)))
    assert seen == [True, False, False, False]
