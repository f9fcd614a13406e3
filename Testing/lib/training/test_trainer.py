"""The loop on toy tasks with known answers: updates, selection, stopping, guards, exact resume."""

import json
import math
import os
import shutil
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from MedSSLLib.config.run import OptimiserConfig
from MedSSLLib.core import interrupts
from MedSSLLib.core.errors import CancelledError, GuardError, InputError, MedSSLError
from MedSSLLib.core.events import Events
from MedSSLLib.training.budget import Budget
from MedSSLLib.training.checkpoint import load_tensors
from MedSSLLib.training.devices import seed_step
from MedSSLLib.training.optimisers import warmup_cosine
from MedSSLLib.training.trainer import LoopConfig, Trainer
from Testing.lib.case_helpers import each
from Testing.lib.core_helpers import lone_fabric, loud


class Toy:
    """Least squares with drop-out and batch normalisation; each hook can be replaced."""

    def __init__(self, scores=(), poison=None):
        torch.manual_seed(0)
        self.module = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)
        )
        self.scores, self.poison, self.steps, self.validated = iter(scores), poison, [], []

    def host_batch(self, step, part, parts):
        rng = np.random.default_rng([step])
        x = rng.normal(size=(8, 3)).astype(np.float32)
        return step, torch.from_numpy(x[part::parts])

    def device_batch(self, host):
        return host

    def losses(self, batch, progress):
        step, x = batch
        self.steps.append(step)
        loss = (self.module(x)[:, 0] - x.sum(1)).square().mean()
        return {"fit": loss * (float("nan") if step == self.poison else 1.0)}

    def after_step(self, progress):
        pass

    def diagnostics(self):
        return {"figure": torch.tensor(2.0)}

    def check(self, figures, progress):
        assert figures["figure"] == 2

    def validate(self):
        score = next(self.scores, None)
        self.validated.append({n: t.clone() for n, t in self.module.state_dict().items()})
        return {} if score is None else {"score": score}

    def gradient_rule(self):
        return None

    def shared(self):
        return []


def trainer(task, folder, steps=12, events=None, **options):
    optimiser = options.pop("optimiser", OptimiserConfig(lr=0.01, warmup=0.1))
    budget = options.pop("budget", None) or Budget(steps=steps)
    config = LoopConfig(stage="toy", seed=0, budget=budget, optimiser=optimiser, **options)
    return Trainer(task, config, lone_fabric(), folder, events or Events())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def test_the_loop_equals_a_loop_written_out(tmp_path):
    task = Toy()
    weights = trainer(
        task,
        tmp_path,
        optimiser=OptimiserConfig(
            name="sgd", lr=0.05, momentum=0.5, weight_decay=0.1, warmup=0.25, clip=0.7
        ),
        ema=0.5,
    ).run()
    other = Toy()
    net = other.module
    average = {n: t.clone() for n, t in net.state_dict().items() if t.is_floating_point()}
    velocity = {}
    for step in range(12):
        seed_step(0, step)
        net.zero_grad()
        other.losses(other.host_batch(step, 0, 1), 0)["fit"].backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        rate = 0.05 * warmup_cosine(step / 12, 0.25)
        with torch.no_grad():
            for name, p in net.named_parameters():
                g = p.grad * min(1.0, 0.7 / (norm + 1e-6)) + (0.1 * p if p.dim() > 1 else 0)
                velocity[name] = 0.5 * velocity.get(name, 0) + g
                p -= rate * velocity[name]
        decay = min(0.5, (1 + step) / (10 + step))
        average = {n: decay * v + (1 - decay) * net.state_dict()[n] for n, v in average.items()}
    for name, value in average.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert task.steps == list(range(12))


def test_micro_batches_add_up_to_the_batch(tmp_path):
    class Plain(Toy):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 1)
            nn.init.constant_(self.module.weight, 0.1)
            nn.init.zeros_(self.module.bias)

    one = trainer(Plain(), tmp_path / "a", ema=0).run()
    two = trainer(Plain(), tmp_path / "b", ema=0, accumulate=4).run()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_task_hears_of_every_step_once_after_it_with_its_progress(tmp_path, accumulate):
    """Moving averages follow optimiser steps, not micro-batches; their schedule starts at 0."""

    class Following(Toy):
        def __init__(self):
            super().__init__()
            self.told, self.seen = [], []

        def after_step(self, progress):
            self.told.append(progress)
            self.seen.append(self.module[0].weight.detach().clone())

    task = Following()
    start = task.module[0].weight.detach().clone()
    trainer(task, tmp_path, steps=6, accumulate=accumulate).run()
    assert task.told == pytest.approx([step / 6 for step in range(6)])
    assert not torch.equal(task.seen[0], start) and torch.equal(
        task.seen[-1], task.module[0].weight
    )


def test_events_tell_every_step_and_the_last(tmp_path):
    events, record = loud()
    trainer(Toy(), tmp_path, events=events).run()
    progress = record.of("progress")
    assert [e["step"] for e in progress] == list(range(1, 13)) and {
        e["steps"] for e in progress
    } == {12}
    assert all(
        math.isfinite(e["losses"]["fit"]) and e["figures"] == {"figure": 2.0} for e in progress
    )
    assert record.of("checkpoint")[-1]["step"] == 12


def test_the_best_validated_average_is_kept(tmp_path):
    task = Toy(scores=[0.1, 0.9, 0.5, 0.8])
    run = trainer(task, tmp_path, validate_every=0.25)
    weights = run.run()
    assert [s["step"] for s in run.state.scores] == [3, 6, 9, 12]
    assert run.state.best == 0.9 and run.state.best_step == 6
    assert same(weights, task.validated[1]) and not same(weights, task.module.state_dict())


def test_of_equal_scores_the_weights_trained_longest_are_kept(tmp_path):
    """Where no held-out slice shows what the model finds, all scores are 0 and the first one means
    nothing.
    """
    task = Toy(scores=[0.0] * 4)
    run = trainer(task, tmp_path, validate_every=0.25)
    assert same(run.run(), task.validated[3]) and run.state.best_step == 12
    impatient = trainer(
        Toy(scores=[0.0] * 5), tmp_path / "b", steps=20, validate_every=0.2, patience=2
    )
    impatient.run()
    assert len(impatient.state.scores) == 3, "an equal score is no progress"


@each("every", [0.1, 0.3, 0.34, 1.0])
def test_the_end_is_always_validated(tmp_path, every):
    run = trainer(Toy(scores=[0.1] * 50), tmp_path, steps=20, validate_every=every)
    run.run()
    steps = [s["step"] for s in run.state.scores]
    assert steps[-1] == 20 and len(steps) == math.ceil(1 / every - 1e-9) == len(set(steps))


def test_patience_stops_early_and_stays_stopped(tmp_path):
    run = trainer(
        Toy(scores=[0.5, 0.9, 0.1, 0.2, 0.95]), tmp_path, steps=20, validate_every=0.2, patience=2
    )
    weights = run.run()
    assert run.state.step == 16 and run.state.best == 0.9
    again = trainer(Toy(scores=[1.0] * 9), tmp_path, steps=20, validate_every=0.2, patience=2)
    assert again.resume() and same(again.run(), weights) and again.state.step == 16


def test_a_loss_that_is_not_a_number_stops_and_the_good_checkpoint_stays(tmp_path):
    events, _ = loud()
    with pytest.raises(GuardError, match="fit is not a finite number at step 8.*optimiser.lr"):
        trainer(Toy(poison=7), tmp_path, events=events, checkpoint_seconds=0).run()
    tensors, facts = load_tensors(tmp_path / "checkpoint" / "toy.safetensors")
    assert facts["state"]["step"] == 7 and all(
        t.isfinite().all() for n, t in tensors.items() if n.startswith("module")
    )


def test_weights_that_are_not_numbers_are_never_written(tmp_path):
    """Between two progress events nobody looks at the loss, but the checkpoint does look at the
    weights.
    """
    events = Events(min_interval=1e9)
    events.progress("toy", 1, 99)
    with pytest.raises(GuardError, match="weight is not a finite number at step 8"):
        trainer(Toy(poison=7), tmp_path, events=events, checkpoint_seconds=0).run()
    tensors, facts = load_tensors(tmp_path / "checkpoint" / "toy.safetensors")
    assert facts["state"]["step"] == 7 and all(t.isfinite().all() for t in tensors.values())


def test_a_guard_of_the_task_stops(tmp_path):
    class Collapsed(Toy):
        def check(self, figures, progress):
            raise GuardError("collapsed")

    with pytest.raises(GuardError, match="collapsed"):
        trainer(Collapsed(), tmp_path).run()


def test_an_error_while_loading_reaches_the_caller(tmp_path):
    class Broken(Toy):
        def host_batch(self, step, part, parts):
            if step == 3:
                raise MedSSLError("damaged")
            return super().host_batch(step, part, parts)

    with pytest.raises(MedSSLError, match="damaged"):
        trainer(Broken(), tmp_path).run()


class Interrupted(Toy):
    """Asks to stop while computing a step."""

    def __init__(self, folder, at, how, **options):
        super().__init__(**options)
        self.folder, self.at, self.how = folder, at, how

    def losses(self, batch, progress):
        if batch[0] == self.at:
            if self.how == "file":
                (self.folder / "stop").touch()
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(batch, progress)


@each("how", ["file", "SIGTERM"])
@each("optimiser", ["adamw", "sgd", "lars"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, how, optimiser):
    options = {"optimiser": OptimiserConfig(name=optimiser, lr=0.01), "validate_every": 0.25}
    scores = [0.4, 0.3, 0.6, 0.5]
    whole = trainer(Toy(scores), tmp_path / "a", **options)
    expected = whole.run()
    (tmp_path / "b").mkdir()
    rng = np.random.default_rng(len(how))
    for at in [*sorted(rng.choice(12, 3, replace=False).tolist()), None]:
        task = Interrupted(tmp_path / "b", at, how)
        run = trainer(task, tmp_path / "b", **options)
        run.resume()
        task.scores = iter(scores[len(run.state.scores) :])
        with interrupts.on_signals():
            if at is not None:
                with pytest.raises(CancelledError, match=f"step {at + 1};.*--resume"):
                    run.run()
                (tmp_path / "b" / "stop").unlink(missing_ok=True)
            else:
                found = run.run()
    assert same(found, expected) and same(task.module.state_dict(), whole.task.module.state_dict())
    state = json.loads(json.dumps(vars(run.state)))
    assert state | {"elapsed": 0} == vars(whole.state) | {"elapsed": 0}


def test_nothing_to_resume_and_a_finished_run(tmp_path):
    first = trainer(Toy(), tmp_path)
    assert not first.resume()
    weights = first.run()
    second = trainer(Toy(), tmp_path)
    assert second.resume() and same(second.run(), weights) and second.task.steps == []


def test_a_time_limit_ends_annealed(tmp_path):
    run = trainer(Toy(), tmp_path, budget=Budget(seconds=0.6))
    run.run()
    assert run.state.progress == 1 and run.state.step > 10
    assert run.optimiser.param_groups[0]["lr"] < 0.01 * 0.02


def test_gradient_rules_get_all_losses_and_refuse_micro_batches(tmp_path):
    calls = []

    class Rule:
        def __call__(self, losses, shared, others, reduce):
            calls.append((set(losses), len(shared), len(others)))
            sum(losses.values()).backward()

        def state_dict(self):
            return {"seen": torch.tensor(len(calls))}

        def load_state_dict(self, state):
            calls.append(int(state["seen"]))

    class Ruled(Toy):
        def gradient_rule(self):
            return Rule()

        def shared(self):
            return list(self.module[0].parameters())

    expected = trainer(Toy(), tmp_path / "a").run()
    assert same(trainer(Ruled(), tmp_path / "b").run(), expected)
    assert calls == [({"fit"}, 2, 4)] * 12
    assert trainer(Ruled(), tmp_path / "b").resume() and calls[-1] == 12
    with pytest.raises(MedSSLError, match=r"training\.accumulate"):
        trainer(Ruled(), tmp_path / "c", accumulate=2)


def test_no_thread_is_left_behind(tmp_path):
    before = threading.active_count()
    trainer(Toy(), tmp_path).run()
    assert threading.active_count() == before


# --------------------------------------------------------------------------------------------- no
# more memory


class Hungry(Toy):
    """Has room for batches of `room` samples only, and no drop-out, so that parts add up to the
    whole.
    """

    def __init__(self, room=8):
        super().__init__()
        torch.manual_seed(0)
        self.module = nn.Linear(3, 1)
        self.room, self.seen = room, []

    def host_batch(self, step, part, parts):
        if parts > 8:
            raise InputError(
                f"a batch of 8 cannot be split over {parts} processes or micro-batches"
            )
        return super().host_batch(step, part, parts)

    def losses(self, batch, progress):
        self.seen.append((batch[0], len(batch[1])))
        if len(batch[1]) > self.room:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 "
                "bytes.\nTraceback"
            )
        return {"fit": (self.module(batch[1])[:, 0] - batch[1].sum(1)).square().mean()}


def test_out_of_memory_splits_the_batch_says_so_and_ends_with_the_same_weights(tmp_path):
    events, record = loud()
    expected = trainer(Hungry(), tmp_path / "a").run()
    task = Hungry(room=2)
    run = trainer(task, tmp_path / "b", events=events)
    weights = run.run()
    assert [size for step, size in task.seen if step == 0] == [8, 4, 2, 2, 2, 2], (
        "each step is done once, in parts"
    )
    assert sorted({step for step, _ in task.seen}) == list(range(12)) and run.state.step == 12
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    messages = [event["message"] for event in record.of("warning")]
    assert len(messages) == 2 and "8 bytes" in messages[0] and "in 4 parts" in messages[1]
    resumed = trainer(Hungry(room=2), tmp_path / "b")
    assert resumed.resume() and resumed.state.micro_batches == 4, "a resumed run knows"


def test_out_of_memory_with_one_sample_stops_with_numbers_and_keeps_the_checkpoint(tmp_path):
    class Late(Hungry):
        def losses(self, batch, progress):
            self.room = 0 if batch[0] >= 5 else 8
            return super().losses(batch, progress)

    run = trainer(Late(), tmp_path, checkpoint_seconds=0)
    with pytest.raises(
        GuardError, match=r"Out of memory at step 6 .*8 bytes.* cannot be split over 16.*--batch"
    ):
        run.run()
    tensors, facts = load_tensors(tmp_path / "checkpoint" / "toy.safetensors")
    assert facts["state"]["step"] == 5 and all(t.isfinite().all() for t in tensors.values())


def test_other_errors_of_a_step_are_not_taken_for_a_lack_of_memory(tmp_path):
    class Broken(Toy):
        def losses(self, batch, progress):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer(Broken(), tmp_path).run()


def test_a_disk_without_room_for_a_checkpoint_is_found_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    task = Toy()
    with pytest.raises(MedSSLError, match="0 MB left, and a checkpoint needs about 0 MB"):
        trainer(task, tmp_path).run()
    assert task.steps == []
