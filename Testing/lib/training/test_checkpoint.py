"""Tensor files: exact, atomic, safe to read; transfer takes what fits and says what does not."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.networks.unet import Encoder, SegmentationNet, build_encoder
from MedSSLLib.training import checkpoint
from MedSSLLib.training.checkpoint import (
    flatten_optimiser,
    load_tensors,
    restore_optimiser,
    save_tensors,
    transfer,
)
from MedSSLLib.training.optimisers import LARS
from Testing.lib.case_helpers import each

STRIDES = ((1, 1), (2, 2), (2, 2))


def encoder(dim=2, channels=1, widths=(4, 8, 8)):
    return Encoder(dim, channels, widths, [(s,) * dim for s in (1, 2, 2)][: len(widths)])


def test_tensors_and_facts_come_back_bit_by_bit(tmp_path):
    tensors = {
        "half": torch.randn(3).half(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "count": torch.tensor(7),
        "view": torch.randn(6, 4).t()[1:],
        "empty": torch.zeros(0, 3),
        "nan": torch.tensor([float("nan"), -0.0]),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    tensors["shared"] = tensors["half"]
    facts = {"state": {"step": 3, "score": 0.1 + 0.2, "names": ["ä", "b"]}}
    save_tensors(tmp_path / "deep" / "x.safetensors", tensors, facts)
    back, found = load_tensors(tmp_path / "deep" / "x.safetensors")
    assert found == facts and back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {})

    def torn(tensors, name, metadata):
        with open(name, "wb") as stream:
            stream.write(b"half of it")
        raise OSError("disk")

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(OSError, match="disk"):
        save_tensors(path, {"a": torch.zeros(3)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(3))


def bad_files(folder):
    good = folder / "good"
    save_tensors(good, {"a": torch.randn(100)}, {"state": 1})
    yield "missing", None
    yield "empty", b""
    yield "truncated", good.read_bytes()[:-50]
    yield "text", b"not a tensor file at all"
    yield "pickle", pickle.dumps({"a": 1})
    torch.save({"a": torch.ones(1)}, folder / "torch")
    yield "torch", (folder / "torch").read_bytes()


def test_unreadable_files_are_named(tmp_path):
    for name, data in bad_files(tmp_path):
        path = tmp_path / f"{name}.safetensors"
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError, match=str(path)):
            load_tensors(path)


@each("header", [{"format_version": "2"}, {"format_version": "x"}, {"facts": "{"}])
def test_newer_and_damaged_headers_are_refused(tmp_path, header):
    path = tmp_path / "x.safetensors"
    save_file(
        {"a": torch.ones(1)},
        path,
        metadata={"format_version": "1", "facts": json.dumps({})} | header,
    )
    with pytest.raises(
        InputError,
        match="newer version" if header.get("format_version") == "2" else "cannot be read",
    ):
        load_tensors(path)


def test_a_plain_safetensors_file_is_welcome(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    tensors, facts = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], torch.ones(2)) and facts == {}


@each("kind", ["adamw", "sgd", "sgd without momentum", "lars"])
def test_an_optimiser_goes_on_as_if_never_stopped(kind):
    def make(net):
        if kind == "adamw":
            return torch.optim.AdamW(net.parameters(), lr=0.1)
        if kind == "lars":
            return LARS(net.parameters(), lr=0.1)
        return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9 if kind == "sgd" else 0)

    def step(net, optimiser, seed):
        torch.manual_seed(seed)
        optimiser.zero_grad()
        net(torch.randn(5, 3)).square().sum().backward()
        optimiser.step()

    torch.manual_seed(0)
    one = torch.nn.Linear(3, 2)
    first = make(one)
    step(one, first, 1)
    two = torch.nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    second = make(two)
    restore_optimiser(
        second, {name: tensor.clone() for name, tensor in flatten_optimiser(first).items()}
    )
    for seed in (2, 3):
        step(one, first, seed), step(two, second, seed)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_transfer_to_the_same_network_is_complete():
    source, target = encoder(), encoder()
    report = transfer(target, source.state_dict())
    assert len(report.loaded) == len(source.state_dict()) and not (
        report.adapted or report.kept or report.unused
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


@each(("before", "after"), [(1, 3), (5, 1), (2, 3)])
def test_other_channels_keep_the_response_to_equal_channels(before, after):
    source, target = encoder(channels=before).eval(), encoder(channels=after).eval()
    report = transfer(target, source.state_dict())
    assert (
        set(report.adapted)
        == {"stages.0.conv1.conv.weight", "stages.0.conv3.conv.weight"} & report.adapted.keys()
    )
    assert len(report.adapted) >= 1 and not report.kept
    x = torch.randn(1, 1, 16, 16)
    for a, b in zip(
        source(x.expand(1, before, 16, 16)), target(x.expand(1, after, 16, 16)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_another_width_is_left_alone_and_reported():
    source, target = encoder(widths=(4, 8, 8)), encoder(widths=(6, 8, 8))
    fresh = {n: t.clone() for n, t in target.state_dict().items()}
    report = transfer(target, source.state_dict())
    assert not report.adapted, "only the first convolution has image channels"
    assert (
        "stages.1.conv1.conv.weight" in report.kept
        and "stages.1.conv2.conv.weight" in report.loaded
    )
    assert torch.equal(
        target.state_dict()["stages.1.conv1.conv.weight"], fresh["stages.1.conv1.conv.weight"]
    )
    assert "(8, 4, 3, 3) in the file, (8, 6, 3, 3) here" in report.text()


def test_fewer_and_more_levels():
    deep, flat = encoder(widths=(4, 8, 8)), encoder(widths=(4, 8))
    report = transfer(flat, deep.state_dict())
    assert (
        not report.kept
        and report.unused
        and all(name.startswith("stages.2") for name in report.unused)
    )
    report = transfer(deep, flat.state_dict())
    assert not report.unused and all(name.startswith("stages.2") for name in report.kept)


def test_weights_of_which_no_convolution_fits_are_refused():
    """The vectors of 2D batch normalisation fit a 3D network by name and size; that is no
    transfer.
    """
    for source in ({"x": torch.ones(3)}, encoder(dim=2).state_dict()):
        target = encoder(dim=3)
        before = {n: t.clone() for n, t in target.state_dict().items()}
        with pytest.raises(InputError, match="2D or 3D"):
            transfer(target, source)
        assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


def test_an_encoder_goes_into_a_segmentation_network():
    config = NetworkConfig(widths=(4, 8, 8))
    source = build_encoder(2, 1, STRIDES, config)
    net = SegmentationNet(build_encoder(2, 1, STRIDES, config), 3)
    transfer(net.encoder, source.state_dict())
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(source.eval()(x)[-1], net.eval().encoder(x)[-1])
