"""One whole training step with every tensor on the meta device.

Mixing in a CPU tensor, ``.item()``, a boolean test, ``nonzero`` or boolean-mask indexing raises
there, so this finds device mixes and hidden waits of the CUDA path on a machine without a card.
"""

from dataclasses import replace

import pytest
import torch

from MedSSLLib.config.run import OptimiserConfig
from MedSSLLib.methods import METHODS, load_method
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import PLAIN
from Testing.lib.step_helpers import (
    SEMI,
    TINY,
    pretraining,
    semi,
    step_trainer,
    supervised,
    take_step,
)


def one_step(task, tmp_path, optimiser="adamw"):
    """A step of the real trainer; the same step also on the CPU, so that the code under test is
    known to run.
    """
    losses = take_step(step_trainer(task, tmp_path, optimiser=OptimiserConfig(name=optimiser)))
    figures = {**losses, **task.diagnostics()}
    assert all(
        t.device.type == next(task.module.parameters()).device.type and t.dim() == 0
        for t in figures.values()
    )
    return losses


@each("device", ["meta", "cpu"])
@each("dim", [2, 3])
@each("optimiser", ["adamw", "sgd", "lars"])
def test_a_step_of_fine_tuning(tmp_path, dim, optimiser, device):
    task = supervised(dim, device)
    assert set(one_step(task, tmp_path, optimiser=optimiser)) == {"segmentation"}


@each("device", ["meta", "cpu"])
@each("dim", [2, 3])
@each("kind", SEMI)
def test_a_step_of_semi_supervised_training(tmp_path, kind, dim, device):
    """What all kinds share, every change of an image and AdamW, is in the step of fine-tuning."""
    task = semi(kind, dim, device, replace(TINY, augment=PLAIN))
    assert set(one_step(task, tmp_path, optimiser="sgd")) == {"segmentation"} | SEMI[kind]


@each("device", ["meta", "cpu"])
@each(("method", "dim"), [(m, d) for m in METHODS for d in (2, 3) if d in load_method(m).dims])
def test_a_step_of_pre_training(tmp_path, method, dim, device):
    assert one_step(pretraining(method, dim, device), tmp_path)


@each(
    "break_it",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(x.shape),
        lambda x: float(x.mean()),
    ],
)
def test_what_would_wait_for_a_card_is_found(tmp_path, break_it):
    """The net catches fish: each of these, put into a loss, fails on the meta device."""
    task = pretraining("simclr", 2, "meta")
    plain = task.module.losses

    def losses(batch, progress):
        break_it(batch.images)
        return plain(batch, progress)

    task.module.losses = losses
    with pytest.raises(
        RuntimeError, match=r"meta|Expected all tensors"
    ):  # NotImplementedError is one
        one_step(task, tmp_path)
