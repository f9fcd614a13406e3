"""GCL: its objective from parts, heads, GradFilter's ranking against autograd, switches, a step
without values.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.batch import Batch
from MedSSLLib.losses.contrastive import (
    filter_positives,
    fraction_with_positive,
    pixel_contrast,
    positive_gradients,
    positive_pool,
    supervised_contrast,
)
from MedSSLLib.losses.gradient_rules import GradMitigator, SumGradients
from MedSSLLib.methods.base import MethodContext
from MedSSLLib.methods.gcl import GCL, GCLConfig, ProjectionHead, _Pixels, map_shape, nearest_index
from MedSSLLib.networks.unet import Encoder
from MedSSLLib.training.devices import average_gradient, gather_embeddings
from Testing.lib.case_helpers import each

PATCH = {2: (16, 24), 3: (8, 16, 8)}
META = {"patient": 3, "position": 4, "phase": 2}


def small_gcl(dim: int = 2, context: dict[str, Any] | None = None, **options: Any) -> GCL:
    torch.manual_seed(0)
    encoder = Encoder(dim, 1, (4, 8, 12), ((1,) * dim, (2,) * dim, (2,) * dim), "group")
    facts = {"dim": dim, "channels": 1, "patch": PATCH[dim], "meta": META, **(context or {})}
    config = GCLConfig(**{"out": 16, "top_k": 4, "pixel_level": -1, **options})
    return GCL(encoder, config, MethodContext(**facts)).double()


def make_batch(dim: int = 2, n: int = 6, seed: int = 1) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 2, 1, *PATCH[dim], generator=g, dtype=torch.float64)
    meta = {name: torch.randint(-1, count, (n,), generator=g) for name, count in META.items()}
    return Batch(images, meta=meta)


def step(
    method: GCL, batch: Batch, progress: float = 0.3, reduce: Any = lambda g: g
) -> dict[str, Tensor]:
    losses = method.losses(batch, progress)
    shared = list(method.encoder.parameters())
    others = [p for name, p in method.named_parameters() if not name.startswith("encoder.")]
    method.gradient_rule()(losses, shared, others, reduce)
    return losses


@pytest.mark.parametrize("dim", [2, 3])
def test_without_pixels_it_is_eq_1_for_every_label(dim: int) -> None:
    method, batch = small_gcl(dim, pixel=False), make_batch(dim)
    losses = method.losses(batch, 0.0)
    assert list(losses) == list(META)
    z = method.embed(batch.images.flatten(0, 1)).unflatten(0, (6, 2))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, supervised_contrast(z, batch.meta[name], 0.1))
    assert not hasattr(method, "pixel_head")


@each("grad_filter", [False, True])
@each("progress", [0.0, 0.6])
@each(("s", "k", "k_late"), [(32, 4, 3), (17, 2, 2), (7, 1, 1)])
def test_pixel_loss_is_eq_5_view_by_view(
    grad_filter: bool, progress: float, s: int, k: int, k_late: int
) -> None:
    """One view at a time: its own anchors against one partner; the filter by autograd through the
    head.

    The pool holds K = 4 pixels, but at most an eighth of the image.
    """
    method = small_gcl(grad_filter=grad_filter)
    n, c = 3, 12
    features = torch.randn(n, s, c, dtype=torch.float64)
    pixels = _Pixels(
        torch.randn(n, s, 5, dtype=torch.float64), features, method.pixel_head(features)
    )
    partner = torch.tensor([2, 0, 1])
    loss = method._pixel_loss(pixels, partner, progress)
    count = k if not grad_filter else {0.0: 1, 0.6: k_late}[progress]
    terms = []
    for i in range(n):
        u, uq = (
            F.normalize(pixels.affinity[i], dim=1),
            F.normalize(pixels.affinity[partner[i]], dim=1),
        )
        vq = F.normalize(pixels.projection[partner[i]], dim=1).detach()
        for a in range(s):
            pool = (uq @ u[a]).topk(k).indices.tolist()
            x = features[i, a].clone().requires_grad_(True)
            log_p = (vq @ F.normalize(method.pixel_head(x), dim=0) / 0.1).log_softmax(0)
            size = {
                p: torch.autograd.grad(-log_p[p], x, retain_graph=True)[0].norm().item()
                for p in pool
            }
            kept = sorted(pool, key=size.get)[:count]
            rest = [p for p in range(s) if p in kept or p not in pool]
            logits = vq @ F.normalize(method.pixel_head(features[i, a]), dim=0) / 0.1
            terms.append(logits[rest].logsumexp(0) - logits[kept].mean())
    torch.testing.assert_close(loss, sum(terms) / len(terms))
    assert float(method._measured["pool"]) == count


def test_filter_ranks_as_the_gradient_of_the_last_encoder_layer() -> None:
    """The text's criterion: norm of the gradient at the parameters of the encoder's last layer,
    anchor's path.
    """
    torch.manual_seed(0)
    last, head = nn.Conv2d(5, 6, 3, padding=1).double(), ProjectionHead(6, 8).double()
    below, partners = (
        torch.randn(1, 5, 4, 4, dtype=torch.float64),
        torch.randn(1, 9, 8, dtype=torch.float64),
    )
    pool = positive_pool(torch.randn(1, 16, 3), torch.randn(1, 9, 3), 5)

    def pixels(weight: Tensor) -> Tensor:
        return functional_call(last, {"weight": weight, "bias": last.bias}, below).flatten(2).mT

    features = pixels(last.weight).detach()
    gradients = positive_gradients(head(features), partners, pool, 0.1)
    kept, dropped = filter_positives(pool, head.pull_back(features, gradients), 2)
    for a in range(16):
        norms = {}
        for p in pool[0, a].tolist():
            term = pixel_contrast(
                head(pixels(last.weight))[:, a : a + 1],
                partners,
                torch.tensor([[[p]]]),
                pool[:, :1, :0],
                0.1,
            )
            norms[p] = torch.autograd.grad(term, last.weight)[0].norm().item()
        assert set(kept[0, a].tolist()) == set(sorted(norms, key=norms.get)[:2])
        assert max(norms[p] for p in kept[0, a].tolist()) < min(
            norms[p] for p in dropped[0, a].tolist()
        )


def test_head_is_two_1x1_convolutions() -> None:
    head, x = ProjectionHead(6, 8), torch.randn(2, 6, 5, 4)
    hidden = F.conv2d(x, head.first.weight[:, :, None, None], head.first.bias).relu()
    expected = F.conv2d(hidden, head.last.weight[:, :, None, None], head.last.bias)
    torch.testing.assert_close(head(x.movedim(1, -1)).movedim(-1, 1), expected)
    assert head.first.weight.shape == (6, 6)


def test_pull_back_is_the_vector_jacobian_product() -> None:
    head = ProjectionHead(6, 8).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(3, 4, 2, 8, dtype=torch.float64)
    pulled = head.pull_back(x, gradient)
    for k in range(2):
        torch.testing.assert_close(
            pulled[:, :, k], torch.autograd.grad(head(x), x, gradient[:, :, k])[0]
        )


@each(("shape", "other"), [((6, 8), (3, 2)), ((4, 6, 10), (2, 6, 3)), ((5, 7), (5, 7))])
def test_nearest_index_is_nearest_resampling(
    shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    numbers = torch.arange(torch.Size(other).numel(), dtype=torch.float64).view(1, 1, *other)
    expected = F.interpolate(numbers, shape, mode="nearest-exact").flatten().long()
    assert torch.equal(nearest_index(torch.arange(len(expected)), shape, other), expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_losses_are_a_pure_function(dim: int) -> None:
    method, batch = small_gcl(dim), make_batch(dim)
    before = copy.deepcopy(method.state_dict())
    images = batch.images.clone()
    first, again, later = (method.losses(batch, progress) for progress in (0.25, 0.25, 0.25001))
    assert all(torch.equal(first[name], again[name]) for name in META)
    assert any(not torch.equal(first[name], later[name]) for name in META)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert torch.equal(images, batch.images)


def test_every_parameter_learns() -> None:
    method = small_gcl()
    step(method, make_batch())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_pixel_level_and_limits() -> None:
    method = small_gcl(pixel_level=0, anchors=10, candidates=50)
    assert method.pixel_head.first.in_features == 4 and method.image_head.first.in_features == 12
    maps = method.encoder(make_batch().images.flatten(0, 1))
    image_map = method.image_head(maps[2].movedim(1, -1))
    pixels = method._pixels(image_map, maps[0], torch.Generator().manual_seed(0))
    assert pixels.projection.shape == (12, 50, 16) and pixels.affinity.shape == (12, 50, 16)
    # A pixel's affinity is that of the coarse pixel that lies over it.
    found = (pixels.features[3, 7] == maps[0][3].flatten(1).T).all(1).int().argmax().item()
    row, column = divmod(found, 24)
    assert torch.equal(pixels.affinity[3, 7], image_map[3, row // 4, column // 4])
    step(method, make_batch())


def test_the_pixel_head_stands_on_the_deepest_map_with_enough_pixels() -> None:
    """16 x 24 pixels make maps of 384, 96 and 24 of them."""
    assert (
        small_gcl(pixel_level=None).pixel_level == 1 and small_gcl(pixel_level=-1).pixel_level == 2
    )
    for patch, level in (((32, 32), 2), ((31, 32), 2), ((24, 24), 2), ((20, 20), 1), ((4, 4), 0)):
        assert small_gcl(context={"patch": patch}, pixel_level=None).pixel_level == level, patch


def test_labels_in_use() -> None:
    batch = make_batch()
    assert list(small_gcl(meta=("phase",)).losses(batch, 0)) == ["phase"]
    assert list(small_gcl(instance=True).losses(batch, 0)) == [*META, "instance"]
    with pytest.raises(InputError, match="no meta label is usable"):
        small_gcl(context={"meta": {}})
    plain = small_gcl(context={"meta": {}}, pixel=False, instance=True)
    z = plain.embed(batch.images.flatten(0, 1)).unflatten(0, (6, 2))
    torch.testing.assert_close(
        plain.losses(batch, 0)["instance"], supervised_contrast(z, None, 0.1)
    )
    assert small_gcl(meta=("site", "phase")).labels == ("phase",)
    with pytest.raises(InputError, match="site, scanner cannot be used.*patient, position, phase"):
        small_gcl(meta=("site", "scanner"))
    for level in (3, -4):
        with pytest.raises(InputError, match="pixel_level"):
            small_gcl(pixel_level=level)


def test_gradient_switch() -> None:
    mitigator, average = small_gcl(), small_gcl(gradient="sum")
    assert isinstance(mitigator.gradient_rule(), GradMitigator)
    assert isinstance(average.gradient_rule(), SumGradients)
    assert mitigator.gradient_rule() is mitigator.gradient_rule()
    losses = step(average, make_batch())
    got = [p.grad for p in average.parameters()]
    again = average.losses(make_batch(), 0.3)
    expected = torch.autograd.grad(sum(again.values()) / len(losses), list(average.parameters()))
    torch.testing.assert_close(got, list(expected))


def test_single_label_with_mitigator_is_plain_training() -> None:
    method, batch = small_gcl(meta=("position",)), make_batch()
    step(method, batch)
    got = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    method.losses(batch, 0.3)["position"].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(got, method.parameters(), strict=True))


def test_diagnostics() -> None:
    method, batch = small_gcl(), make_batch()
    step(method, batch, 0.5)
    figures = method.diagnostics()
    assert all(value.ndim == 0 and not value.requires_grad for value in figures.values())
    assert float(figures["pool"]) == 2
    assert {"retrieval/phase", "with_positive/patient", "gradient/conflicting"} <= set(figures)
    assert "gradient/cosine/patient-position" in figures
    assert (
        "positive_in_another_patient/phase" in figures
        and "positive_in_another_patient/patient" not in figures
    )
    labels = torch.tensor([0, 1, 0, -1, -1, 1])
    assert float(fraction_with_positive(labels)) == pytest.approx(4 / 6)
    assert float(fraction_with_positive(labels, torch.tensor([0, 1, 0, 1, 2, 2]))) == pytest.approx(
        2 / 6
    )
    alone = small_gcl(context={"meta": {"phase": 2}})
    step(alone, Batch(batch.images, meta={"phase": batch.meta["phase"]}))
    assert not any(name.startswith("positive_in") for name in alone.diagnostics()), (
        "patients are not known"
    )


def test_spread_of_embeddings_is_that_of_unit_vectors() -> None:
    method, batch = small_gcl(), make_batch()
    method.losses(batch, 0.5)
    z = F.normalize(method.embed(batch.images.flatten(0, 1)), dim=1)
    mean = z.mean(0)
    expected = ((z - mean) ** 2).mean(0).sqrt().mean() * 16**0.5
    torch.testing.assert_close(method.diagnostics()["feature_std"], expected)


@each(("level", "pixels"), [(0, 16 * 24), (1, 8 * 12), (-1, 4 * 6)])
def test_positives_in_use_are_those_of_the_built_method(level: int, pixels: int) -> None:
    method = small_gcl(pixel_level=level, top_k=8, grad_filter=False)
    assert map_shape((17, 9), method.encoder, method.pixel_level) == tuple(
        method.encoder(torch.zeros(1, 1, 17, 9, dtype=torch.float64))[level].shape[2:]
    )
    method.losses(make_batch(), 1.0)
    assert method.pixels == pixels and method.top_k == min(8, pixels // 8) == int(
        method.diagnostics()["pool"]
    )
    assert [kind for kind, _ in method.notices()] == (["metric"] if level == -1 else [])


def test_positives_that_are_fewer_than_set_are_said() -> None:
    ((kind, sentence),) = small_gcl(top_k=8).notices()
    assert kind == "metric" and "options.top_k is 8, 3 in use: a view has 24 pixels" in sentence
    assert "GradFilter" not in sentence
    for context, options, words in (
        (
            {"patch": (16, 12)},
            {"top_k": 8},
            "top_k is 8, 1 in use: a view has 12 pixels.*GradFilter.*larger views",
        ),
        ({}, {"candidates": 9}, "4, 1 in use.*GradFilter"),
        ({}, {"top_k": 1}, "^GradFilter has nothing.*Raise"),
    ):
        ((kind, sentence),) = small_gcl(context=context, **options).notices()
        assert kind == "warning" and re.search(words, sentence)
    assert small_gcl(top_k=3).notices() == small_gcl(pixel=False, top_k=8).notices() == []
    assert small_gcl(top_k=1, grad_filter=False).notices() == []


def test_copies_are_independent() -> None:
    method = small_gcl()
    step(method, make_batch())
    twin = copy.deepcopy(method)
    step(twin, make_batch(seed=3))
    assert not torch.equal(method._rule.state_dict()["target"], twin._rule.state_dict()["target"])


def test_embeddings_are_gathered() -> None:
    """With the embeddings of two processes each loss is that of the global batch (image part)."""
    batch = make_batch()
    whole = small_gcl(pixel=False).losses(batch, 0)
    z = small_gcl().embed(batch.images.flatten(0, 1)).unflatten(0, (6, 2))

    def gather(x: Tensor) -> Tensor:
        if x.ndim == 3:
            return torch.cat([x, z[3:]])
        name = next(name for name, value in batch.meta.items() if torch.equal(value[:3], x))
        return batch.meta[name]

    half = Batch(batch.images[:3], meta={name: value[:3] for name, value in batch.meta.items()})
    parts = small_gcl(pixel=False, context={"gather": gather}).losses(half, 0)
    for name in META:
        torch.testing.assert_close(parts[name], whole[name])


def _one_of_two(rank: int, folder: str) -> None:
    """A process of the test below: its half of the batch, the rule, its gradients to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    batch = make_batch()
    method = small_gcl(pixel=False, context={"gather": gather_embeddings})
    half = Batch(
        batch.images[rank::2], meta={name: value[rank::2] for name, value in batch.meta.items()}
    )
    step(method, half, reduce=average_gradient)
    torch.save([p.grad for p in method.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    method = small_gcl(pixel=False)
    step(method, make_batch())
    # Forked, so that the processes need not import everything again.
    torch.multiprocessing.start_processes(
        _one_of_two, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    expected = [p.grad for p in method.parameters()]
    for rank in range(2):
        torch.testing.assert_close(
            torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-9, atol=1e-12
        )


@each("dim", [2, 3])
@each("options", [{}, {"gradient": "sum", "pixel_level": 1, "anchors": 5, "instance": True}])
def test_meta_device(dim: int, options: dict[str, Any]) -> None:
    method = small_gcl(dim, **options).to("meta")
    optimiser = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(6, 2, 1, *PATCH[dim], device="meta", dtype=torch.float64)
    batch = Batch(
        images, meta={name: torch.zeros(6, dtype=torch.long, device="meta") for name in META}
    )
    for progress in (0.0, 0.5):
        step(method, batch, progress)
        optimiser.step()
        method.after_step(progress)
    assert all(value.is_meta for value in method.diagnostics().values())
