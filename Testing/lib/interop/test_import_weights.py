"""Encoders from other programs: the same features where the network is the same, and an honest
report where not.
"""

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet

from MedSSLLib.cli.main import main
from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.interop.import_weights import (
    encoder_tensors,
    read_tensors,
    run_import,
    take_over,
    widths_of,
)
from MedSSLLib.networks.unet import Encoder, build_encoder
from MedSSLLib.training.checkpoint import load_tensors, save_tensors
from Testing.lib.core_helpers import loud, tiny_config, tiny_project

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def dynunet(norm="batch", channels=1):
    torch.manual_seed(1)
    network = DynUNet(
        3,
        channels,
        2,
        [3, 3, 3],
        STRIDES,
        STRIDES[1:],
        filters=[4, 6, 8],
        res_block=True,
        norm_name=(norm, {"affine": True}),
    )
    for name, tensor in network.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def features_of(network, x):
    """What DynUNet's encoder gives, from its parts."""
    found = [network.input_block(x)]
    for block in (*network.downsamples, network.bottleneck):
        found.append(block(found[-1]))
    return found


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dynunet_is_taken_over_whole(norm):
    theirs, x = dynunet(norm), torch.randn(1, 1, 8, 8, 8)
    encoder = Encoder(3, 1, (4, 6, 8), STRIDES, norm).eval()
    report = take_over(encoder, encoder_tensors(theirs.state_dict()))
    assert not report.kept and not report.unused and not report.adapted
    with torch.no_grad():
        for mine, other in zip(encoder(x), features_of(theirs, x), strict=True):
            torch.testing.assert_close(mine, other)


def test_other_networks_give_their_convolutions_in_order():
    theirs = BasicUNet(3, 1, 2, features=(4, 4, 6, 8, 8, 4))
    source = encoder_tensors(theirs.state_dict())
    encoder = Encoder(3, 1, (4, 6, 8), STRIDES)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    report = take_over(encoder, source)
    pairs = dict(text.removesuffix(")").split(" (from ") for text in report.loaded)
    after, theirs_state = encoder.state_dict(), theirs.state_dict()
    assert pairs["stages.0.conv1.conv.weight"] == "conv_0.conv_0.conv.weight"
    assert pairs["stages.0.conv2.conv.weight"] == "conv_0.conv_1.conv.weight"
    order = [list(source).index(name) for name in pairs.values()]
    assert order == sorted(order) and len(set(order)) == len(order)
    for mine, name in pairs.items():
        torch.testing.assert_close(after[mine], theirs_state[name])
    assert not set(report.kept) & set(pairs) and set(report.kept) | set(pairs) == set(before)
    for name in report.kept:
        torch.testing.assert_close(after[name], before[name])
    assert not any(
        name.startswith(("upcat", "final")) for name in (*pairs.values(), *report.unused)
    )


def test_more_image_channels_keep_the_sum():
    theirs = BasicUNet(3, 1, 2, features=(4, 4, 6, 8, 8, 4)).state_dict()
    encoder = Encoder(3, 2, (4, 6, 8), STRIDES)
    report = take_over(encoder, encoder_tensors(theirs))
    assert list(report.adapted) == ["stages.0.conv1.conv.weight"]
    mine = encoder.state_dict()["stages.0.conv1.conv.weight"]
    torch.testing.assert_close(mine.sum(1), theirs["conv_0.conv_0.conv.weight"].sum(1))


def test_nothing_that_fits_is_refused():
    with pytest.raises(InputError, match="no convolution"):
        take_over(
            Encoder(3, 1, (4, 6, 8), STRIDES),
            {"a.weight": torch.zeros(5, 5, 3, 3, 3), "b": torch.zeros(4)},
        )


def test_nnunet_checkpoints_are_opened_and_aliases_are_counted_once(tmp_path):
    conv = [torch.randn(4, 1, 3, 3, 3), torch.randn(4, 4, 3, 3, 3), torch.randn(6, 4, 3, 3, 3)]
    weights = {}
    for number, tensor in enumerate(conv):
        for alias in ("conv", "all_modules.0"):
            weights[f"encoder.stages.{number}.0.convs.0.{alias}.weight"] = tensor
            weights[f"decoder.encoder.stages.{number}.0.convs.0.{alias}.weight"] = tensor
    weights["decoder.stages.0.convs.0.conv.weight"] = torch.randn(4, 8, 3, 3, 3)
    torch.save(
        {"network_weights": weights, "nnssl_adaptation_plan": {"key_to_encoder": "encoder"}},
        tmp_path / "c.pth",
    )
    source = encoder_tensors(read_tensors(tmp_path / "c.pth"))
    assert len(source) == 3
    report = take_over(Encoder(3, 1, (4, 6), STRIDES[:2]), source)
    assert len(report.loaded) == 3 and widths_of(list(source.values()), 3) == (4, 6, 6)


class Foreign:
    """An object that reading tensors alone must not make."""


def test_files_that_are_not_tensors_alone_are_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2)}, "trainer": Foreign()}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    for name, why in (
        ("foreign.pt", "tensors alone"),
        ("text.pt", "tensors alone"),
        ("none.pt", "no state dict"),
        ("missing.pt", "does not exist"),
    ):
        with pytest.raises(InputError, match=why):
            read_tensors(tmp_path / name)
    with pytest.raises(InputError) as refused:
        read_tensors(tmp_path / "foreign.pt")
    assert "Foreign" in str(refused.value) and "trust" not in str(refused.value), (
        "no advice to run its code"
    )


def test_fine_tuning_starts_from_an_imported_run(tmp_path):
    project = tiny_project(tmp_path, 3)
    network = dynunet()
    save_tensors(
        tmp_path / "weights.safetensors",
        {f"module.{n}": t for n, t in network.state_dict().items()},
        {},
    )
    words = [
        "import",
        str(project.folder),
        "--from",
        str(tmp_path / "weights.safetensors"),
        "--name",
        "theirs",
        "-q",
    ]
    assert main(words) == 0
    folder = project.run_folder("theirs")
    assert "loaded stages.0.conv1.conv.weight" in (folder / "transfer.txt").read_text()
    from MedSSLLib.finetuning.finetune import run_finetune

    events, record = loud()
    config = tiny_config(
        init="theirs", name="tuned", training__steps=1, dim="auto", freeze_encoder=True
    )
    run = run_finetune(project, config, events)
    tuned, _ = load_tensors(run / "weights.safetensors")
    torch.testing.assert_close(
        tuned["encoder.stages.1.conv1.conv.weight"],
        network.state_dict()["downsamples.0.conv1.conv.weight"],
    )
    assert "0 newly initialised" in next(e["report"] for e in record.of("metric") if "report" in e)
    assert main(words) == 2, "the name is taken"


def test_a_refused_file_leaves_no_run(tmp_path):
    project = tiny_project(tmp_path, 2)
    torch.save(
        {"a.weight": torch.zeros(5, 7, 5, 5, 5), "b.weight": torch.zeros(3, 3, 5, 5, 5)},
        tmp_path / "odd.pt",
    )
    events, _ = loud()
    with pytest.raises(InputError, match="no convolution"):
        run_import(project, tmp_path / "odd.pt", "odd", events)
    assert not project.run_folder("odd").exists()


def test_levels_of_a_safetensors_file_come_in_the_order_of_their_numbers(tmp_path):
    save_tensors(
        tmp_path / "x.safetensors", {f"a.{n}.weight": torch.zeros(1) for n in (10, 2, 1)}, {}
    )
    assert list(read_tensors(tmp_path / "x.safetensors")) == [
        "a.1.weight",
        "a.2.weight",
        "a.10.weight",
    ]


def test_a_convolution_of_another_network_is_used_once():
    encoder = build_encoder(2, 1, [[1, 1], [2, 2]], NetworkConfig(widths=(4, 4)))
    report = take_over(
        encoder, {"theirs": torch.ones(4, 4, 3, 3)}
    )  # of which shape the encoder has three
    assert len(report.loaded) + len(report.adapted) == 1


def test_convolutions_of_size_1_are_no_level():
    convolutions = [torch.zeros(4, 1, 3, 3), torch.zeros(16, 4, 1, 1), torch.zeros(8, 4, 3, 3)]
    assert widths_of(convolutions, 2) == (4, 8)
