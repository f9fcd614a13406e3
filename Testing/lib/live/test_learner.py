"""The model that learns: only drawn slices teach, whatever is drawn then; classes may be added."""

import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from MedSSLLib.active_learning.scans import survey
from MedSSLLib.active_learning.slice_table import Viewer, extract_features
from MedSSLLib.core.errors import GuardError
from MedSSLLib.core.events import Events
from MedSSLLib.evaluation.metrics import foreground_dice
from MedSSLLib.images.labels import IGNORE, Annotated
from MedSSLLib.inference.sliding_window import predict_varied
from MedSSLLib.live.live import open_session
from MedSSLLib.live.pseudo import PseudoLabels
from MedSSLLib.live.requests import Request
from MedSSLLib.live.suggestions import _looked_at, _to_look_at
from MedSSLLib.methods.options import configured
from Testing.lib.core_helpers import Record, tiny_project
from Testing.lib.live_helpers import TINY, Person


@pytest.fixture
def stack():
    with ExitStack() as made:
        yield made


@pytest.fixture
def person(tmp_path):
    return Person(tmp_path, test="case3")


def session_of(person, stack, events=None, **changes):
    given = {key.replace("__", "."): value for key, value in changes.items()}
    config = configured("live", overrides={**TINY, "device": "cpu", **given})
    return open_session(person.project, config, events or Events(), stack)


def train(session, steps):
    taken = 0
    while taken < steps and session.train():
        taken += 1
    return taken


def test_every_voxel_that_teaches_is_drawn(person, stack):
    """Windows of all steps hold what is drawn and nothing else."""
    session = session_of(person, stack, options__mixing="false")
    person.draw("case0", 5)
    person.draw("case1", 7)
    session.look()
    seen = set()
    task = session.learner.plain
    for step in range(30):
        host = task.host_batch(step, 0, 1)
        for name, label in zip(host.cases, host.labels[:, 0].numpy(), strict=True):
            if (label != IGNORE).any():
                seen.add(name)
    assert seen == {"case0", "case1"}
    labels = session.learner.labels
    rows = {n: np.flatnonzero((labels.whole(n) != IGNORE).any((1, 2))).tolist() for n in seen}
    assert rows == {"case0": [5], "case1": [7]}


def test_a_slice_that_is_taken_away_teaches_no_more_and_training_waits(person, stack):
    session = session_of(person, stack)
    person.draw("case0", 5)
    session.look()
    assert session.state == "training" and train(session, 3) == 3
    person.write("case0", [])
    session.look()
    assert session.state == "waiting" and train(session, 3) == 0


def test_a_case_whose_label_is_taken_away_teaches_no_more(person, stack):
    session = session_of(person, stack)
    person.draw("case0", 5)
    person.draw("case1", 6)
    session.look()
    assert session.learner.labels.names == ("case0", "case1")
    person.project.set_label("case1", None)
    person.project.save()
    session.look()
    assert session.learner.labels.names == ("case0",) and train(session, 2) == 2


def test_a_preview_knows_a_change_after_so_many_steps_and_not_before(person, stack):
    session = session_of(person, stack, options__known_after="5")
    person.draw("case0", 5)
    session.look()
    teaching = session.teaching
    known = []
    for _ in range(6):
        train(session, 1)
        known.append(teaching.knows)
    assert known == [0, 0, 0, 0, 1, 1] and not teaching.fresh
    person.draw("case0", 6)
    person.draw("case1", 6)
    session.look()
    assert teaching.epoch == 3 and teaching.fresh
    train(session, 5)
    assert teaching.knows == 3


def test_it_rests_when_the_loss_is_flat_and_wakes_when_something_is_drawn(person, stack):
    session = session_of(person, stack, options__mixing="false")
    person.draw("case0", 5)
    session.look()
    steps = train(session, 1000)
    assert 12 <= steps <= 40 and session.state == "idle"
    person.draw("case0", 6)
    session.look()
    assert session.state == "training" and train(session, 2) == 2


def test_unlabelled_scans_teach_once_the_loss_is_flat_but_never_a_test_case(person, stack):
    given = {"options__most_steps": "150", "options__confident": "0"}
    session = session_of(person, stack, optimiser__lr="1e-2", **given)
    person.draw("case0", 4, 5, 6)
    person.draw("case1", 5, 6, 7)
    session.look()
    mixed = [train(session, 1) and session.learner.mixes for _ in range(400)]
    assert not mixed[11] and any(mixed), "not at once"
    assert set(session.learner.mixed_cases) <= {"case0", "case1", "case2"}
    kept = session.learner.labels.whole("case0")
    held = session._pseudo.held.whole("case0")
    assert (held[kept != IGNORE] == kept[kept != IGNORE]).all(), "what is drawn stands as drawn"
    assert (held != IGNORE).all()


def test_mixed_steps_come_every_other_time_and_leave_the_statistics_to_drawn_slices(person, stack):
    session = session_of(person, stack, options__most_steps="1000", options__least_steps="1000")
    person.draw("case0", 4, 5, 6)
    session.look()
    learner = session.learner
    train(session, 8)
    case, cache = person.project.case("case2"), learner.labels.cache
    cache.prepare([case]).require_all()
    pseudo = PseudoLabels(learner, [case])
    pseudo.held.hold("case2", np.ones(cache.shape("case2")[1:], np.uint8))
    learner.mix_with(pseudo.sampler())

    def moved(names):
        """Which tensors of these names a step changes."""
        before = {name: tensor.clone() for name, tensor in learner.net.state_dict().items()}
        learner.advance()
        after = learner.net.state_dict()
        return {name for name in before if names in name and (after[name] != before[name]).any()}

    running = [bool(moved("running_mean")) for _ in range(4)]
    assert running in ([False, True] * 2, [True, False] * 2)
    if learner.step % 2:
        learner.advance()
    assert moved("weight") and learner.trainer.task is learner._mixing, "mixed images teach"


def test_where_the_model_is_not_confident_nothing_is_taught(person, stack):
    session = session_of(person, stack, options__mixing="false", options__confident="0.7")
    person.draw("case0", 4, 5, 6)
    session.look()
    train(session, 20)
    learner, case = session.learner, person.project.case("case2")
    pseudo = PseudoLabels(learner, [case])
    for _ in pseudo.renew():
        pass
    cache = pseudo.held.cache
    with learner.predicting() as model:
        found = model.on_grid(cache.image("case2", (0, 0, 0), cache.shape("case2")[1:])).numpy()
    held, unsure = pseudo.held.whole("case2"), found.max(0) < 0.7
    assert (held == IGNORE).any() and (held != IGNORE).any()
    assert not (held == IGNORE)[~unsure].any()
    as_predicted = held == found.argmax(0)
    assert not as_predicted[unsure].any(), "but where clean-up decides otherwise"


def test_a_further_piece_nearly_as_sure_teaches_nothing(person, stack, monkeypatch):
    session = session_of(person, stack, options__mixing="false", options__mixing_agreement="0")
    person.draw("case0", 4, 5, 6)
    session.look()
    learner, case = session.learner, person.project.case("case2")
    cache = learner.labels.cache
    cache.prepare([case]).require_all()
    shown = np.zeros(cache.shape("case2")[1:], np.uint8)
    shown[:, 1:9, 1:5], shown[:, 1:9, 7:10], shown[:, 1:9, -2:] = 1, 1, 1  # 4, 3 and 1 (of 2) wide
    shown[:, 1:9, -1:] = 0
    monkeypatch.setattr(learner, "pieces", lambda: ([1], False, []))
    monkeypatch.setattr(
        "MedSSLLib.live.pseudo._predicted",
        lambda model, image: (shown[: image.shape[1]], np.full(image.shape[1:], 0.9, np.float32)),
    )
    pseudo = PseudoLabels(learner, [case])
    for _ in pseudo.renew():
        pass
    held = pseudo.held.whole("case2")
    assert (held[:, 1:9, 1:5] == 1).all(), "the surest"
    assert (held[:, 1:9, 7:10] == IGNORE).all(), "nearly as sure"
    assert (held[:, 1:9, -2:] == 0).all() and (held == IGNORE).sum() == held[:, 1:9, 7:10].size
    drawn = np.full(shown.shape, IGNORE, np.uint8)
    drawn[2] = shown[2]
    monkeypatch.setattr(learner.labels, "whole", lambda name: drawn)
    for _ in pseudo.renew():
        pass
    assert np.array_equal(pseudo.held.whole("case2"), shown), "what goes on from drawn pieces"


def test_a_scan_on_which_the_model_contradicts_itself_does_not_teach(person, stack):
    given = {"options__mixing": "false", "options__most_steps": "150", "options__flat_gain": "0"}
    session = session_of(person, stack, optimiser__lr="1e-2", **given)
    person.draw("case0", 4, 5, 6)
    session.look()
    train(session, 100)
    learner, case = session.learner, person.project.case("case2")
    cases, cache = PseudoLabels(learner, [case]), learner.labels.cache
    cache.prepare([case]).require_all()
    image = cache.image("case2", (0, 0, 0), cache.shape("case2")[1:])
    with learner.predicting() as model:
        plain = model.on_grid(image).argmax(0).numpy()
        scaled = predict_varied(model.network, image, model.plan, model.device, (1.0, 0.85))
    agreed = foreground_dice(plain, scaled.argmax(0).numpy())
    assert 0 < agreed < 1, "else this shows nothing"

    def teaches(least):
        cases._agreement = least
        for _ in cases.renew():
            assert learner.net.training, "a step may come between two pieces of the work"
        return bool(cases.held.counts("case2"))

    assert teaches(agreed - 0.01) and not teaches(agreed + 0.01), "nor as it was labelled before"
    assert cases.sampler() is None and teaches(0) and cases.sampler().cases == ("case2",)


def test_they_teach_after_so_many_steps_though_a_person_goes_on_drawing(person, stack):
    given = {"options__mixing_after": "17", "options__least_steps": "1000"}
    session = session_of(person, stack, optimiser__lr="1e-2", options__most_steps="2000", **given)
    begun = None
    for index in range(2, 9):
        person.draw("case0", index)
        session.look()
        for _ in range(8):
            train(session, 1)
            if session._pseudo is not None and begun is None:
                begun = session.learner.step
    # a slice came at step 16, and is new for four steps
    assert begun is not None and 20 <= begun <= 24, "not before what is new has been learnt"


def test_slices_are_suggested_along_the_axis_that_is_drawn_with_a_proposal(person, stack):
    """A person who draws along i is led to slices along i, which a preview can hold."""
    record = Record()
    session = session_of(person, stack, Events([record]), options__mixing="false")
    person.draw("case0", 5, 6, 7)
    person.project.set_annotated("case0", Annotated.of([(0, [9, 10])]))
    person.project.save()
    session.look()
    assert session.learner.plan.dim == 2
    train(session, 5)
    for paying in (False, True):
        if paying:  # correcting one voxel of two that were to be drawn
            session.teaching.scores.rows["case0", (0, 9)] = {
                "wrong": 1,
                "drawn": 2,
                "step": session.learner.step,
            }
        for _ in session._suggest(4):
            pass
        found = record.of("suggestion")[-4:]
        assert [event["axis"] for event in found] == [0, 0, 0, 0]
        assert [event["proposal"] for event in found] == [paying] * 4
        assert [event["proposals_pay"] for event in found] == [paying] * 4
    assert {event["case"] for event in found} & {"case1", "case2"}


def test_live_sees_in_a_scan_what_suggest_sees(person, stack):
    session = session_of(person, stack, optimiser__lr="1e-2", options__mixing="false")
    person.draw("case0", 5, 6)
    session.look()
    train(session, 40)
    learner, scans = session.learner, survey(person.project.pool, Events())
    with learner.predicting() as model:
        viewer = Viewer(learner.plan, model.network.encoder, model.device, model)
        table = extract_features(person.project, scans, viewer, Events())
    learner.labels.cache.prepare(list(person.project.pool)).require_all()
    looks = [_looked_at(learner, scan) for scan in scans]
    for field in ("usable", "uncertainty", "structures"):
        seen = np.concatenate([getattr(look, field) for look in looks])
        np.testing.assert_allclose(seen, getattr(table, field), rtol=1e-4, err_msg=field)
    assert table.structures.max() > 0 and table.uncertainty.max() > 0


def test_scans_without_a_slice_left_count_for_which_phases_are_looked_at(tmp_path):
    """The first scan of patient a is labelled whole, of b none: b's second one comes first."""
    project = tiny_project(tmp_path, cases=4)
    names = [case.name for case in project.pool]
    for name, patient in zip(names, "aabb", strict=True):
        project.set_metadata(name, {"patient": patient})
    scans = [replace(scan, drawn=0 * scan.drawn > 0) for scan in survey(project.pool, Events())]
    scans[0].drawn[:] = True
    looked = [scan.case.name for scan in _to_look_at(scans, 1)]
    assert looked == [names[3], names[2], names[1]]


def test_a_state_is_told_at_once_though_another_was_told_just_before(person, stack):
    record = Record()
    session = session_of(person, stack, Events([record], min_interval=0.2))
    person.draw("case0", 5)
    session.look()
    session._tell()
    session._obey(Request("pause"))
    begun = time.monotonic()
    while time.monotonic() - begun < 1:
        session._tell()
    states = [event["state"] for event in record.of("progress")]
    assert states == ["training", "paused"]


def test_a_shown_scan_that_cannot_be_read_any_more_is_named_and_training_goes_on(person, stack):
    record = Record()
    session = session_of(person, stack, Events([record]), options__mixing="false")
    person.draw("case0", 5, 6)
    session.look()
    train(session, 5)
    shown, case = session.shown, person.project.case("case1")

    def preview():
        shown.plan_next(session.learner, session.teaching.knows, settled=True, rests=True)
        while shown.advance(session.learner, session.teaching.knows, settled=True):
            pass

    session.show("case1", None)
    preview()
    assert record.of("preview")[-1]["whole"]
    content = case.images[0].read_bytes()
    case.images[0].unlink()
    for _ in range(3):
        assert train(session, 1) == 1
        preview()
    (warning,) = record.of("warning")
    assert "case1" in warning["message"] and "cannot be read" in warning["message"]
    session.show("case1", None)
    preview()
    assert len(record.of("warning")) == 2, "once for every time that it is asked for"
    case.images[0].write_bytes(content)
    session.show("case1", None)
    preview()
    assert record.of("preview")[-1]["step"] == session.learner.step


def test_they_teach_only_once_the_model_predicts_well_what_is_drawn(person, stack):
    given = {"options__mixing_after": "5", "options__mixing_dice": "0.8"}
    session = session_of(person, stack, **given)
    person.draw("case0", 4, 5, 6)
    session.look()
    rows = session.teaching.scores.rows

    def mixes(*dice):
        rows.clear()
        rows.update({("case1", (2, index)): {"dice": value} for index, value in enumerate(dice)})
        train(session, 1)
        return session._pseudo is not None

    assert train(session, 60) < 60 and session.state == "idle", "it does not wait for them"
    person.draw("case0", 7)
    session.look()
    train(session, 6)
    assert not mixes() and not mixes(1, 1, 1, 1), "too few to tell"
    assert not mixes(1, 1, 1, 0.7, 0.7, 0.7, 0.8, 0.9), "the last five count"
    assert mixes(0, 0.7, 0.9, 0.7, 0.9, 0.8)


def test_a_new_class_is_learnt_before_unlabelled_scans_come_in(person, stack):
    given = {"options__mixing_after": "17", "options__least_steps": "1000"}
    session = session_of(person, stack, optimiser__lr="1e-2", options__most_steps="2000", **given)
    person.draw("case0", 4, 5, 6)
    session.look()
    train(session, 20)
    assert session._pseudo is not None
    person.project.set_labels({0: "background", 1: "blob", 2: "spot"})
    person.project.save()

    def spot(array):
        array[7, 9:11, 9:11] = 2

    person.write("case0", [4, 5, 6, 7], spot)
    session.look()
    train(session, 15)
    assert session._pseudo is None, "the model hardly knows the class"
    train(session, 5)
    assert session._pseudo is not None


def test_the_rate_rises_and_stays(person, stack):
    session = session_of(person, stack, options__warmup_steps="4")
    person.draw("case0", 5)
    session.look()
    rates = []
    for _ in range(8):
        train(session, 1)
        rates.append(session.learner.trainer.optimiser.param_groups[0]["lr"])
    base = session.learner.trainer.optimiser.param_groups[0]["base_lr"]
    assert rates[:4] == pytest.approx([base * f for f in (1e-3, 0.25, 0.5, 0.75)])
    assert rates[4:] == pytest.approx([base] * 4)


def test_a_loss_that_is_no_number_stops_the_run(person, stack):
    session = session_of(person, stack)
    person.draw("case0", 5)
    session.look()
    with torch.no_grad():
        session.learner.net.head.weight.fill_(float("nan"))
    with pytest.raises(GuardError, match="not a finite number"):
        train(session, 3)


def test_a_class_more_keeps_the_others_where_they_were(person, stack):
    session = session_of(person, stack)
    person.draw("case0", 5, 6)
    session.look()
    train(session, 20)
    before = {k: v.clone() for k, v in session.learner.trainer.final_weights().items()}
    step = session.learner.step
    person.project.set_labels({0: "background", 1: "spot", 2: "blob"})
    person.project.save()

    def as_two(array):
        array[array == 1] = 2

    person.write("case0", [5, 6], as_two)
    session.look()
    now = session.learner.trainer.final_weights()
    assert session.learner.classes == ("background", "spot", "blob")
    assert session.learner.step == step
    # values 0 and 1 keep their rows; 2 is new
    assert torch.equal(now["head.weight"][:2], before["head.weight"])
    same = [name for name in before if not name.startswith("head")]
    assert all(torch.equal(now[name], before[name]) for name in same)


def test_a_segmentation_run_of_the_same_classes_predicts_at_once(person, stack):
    session = session_of(person, stack)
    person.draw("case0", 5, 6)
    session.look()
    train(session, 15)
    session.keeper.save_as("first", session.teaching)
    weights = session.learner.trainer.final_weights()
    person.write("case0", [])
    with ExitStack() as other:
        later = session_of(person, other, init="first")
        assert later.state == "waiting" and later.learner.taught
        found = later.learner.trainer.final_weights()
        assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_session_goes_on_from_its_checkpoint_with_what_was_drawn(person):
    with ExitStack() as stack:
        session = session_of(person, stack, options__mixing="false")
        person.draw("case0", 5, 6)
        session.look()
        train(session, 15)
        session.keeper.checkpoint(session.teaching)
        name, step = session.keeper.folder.name, session.learner.step
        before = {key: value.clone() for key, value in session.learner.net.state_dict().items()}
        known = session.learner.labels.whole("case0").copy()
        train(session, 3)  # lost with the process
        session.learner.close()
    person.draw("case1", 4)
    with ExitStack() as stack:
        session = session_of(person, stack, options__mixing="false", resume=True, name=name)
        session.look()
        assert session.learner.step == step
        after = session.learner.net.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert (session.learner.labels.whole("case0") == known).all()
        assert session.learner.labels.names == ("case0", "case1"), "drawn while nothing ran"
        assert session.teaching.fresh, "what is new is learnt first"
        assert train(session, 2) == 2
        session.learner.close()
