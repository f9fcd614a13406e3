"""Live with the real process: what a person does and sees, and that nothing drawn is lost or taught unasked."""

import numpy as np
import pytest
from conftest import in_loop, wait_until
from test_live_parts import file_of, label_of, marked

CLASSES = [
    (1, "right ventricle", (1, 0, 0), ""),
    (2, "wall", (0, 1, 0), ""),
    (3, "left ventricle", (0, 0, 1), ""),
]
SECONDS = 600  # for an answer of a process with a low priority on a busy machine


class Painter:
    """Somebody who draws what the phantoms' true labels say, with Live."""

    def __init__(self, user, cohort):
        import SimpleITK as sitk

        self.user, self.events, self.truth = user, [], {}
        for case in user.store.cases:
            path = cohort / "labels" / f"{case.name}.nii.gz"
            self.truth[case.name] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        self.process.reported.connect(self._take)

    def _take(self, event):
        self.events.append(event)

    @property
    def panel(self):
        return self.user.shell.panels["annotate"]

    @property
    def live(self):
        return self.panel.live

    @property
    def process(self):
        return self.live.process

    def show(self, name):
        combo = self.user.find("annotateCaseComboBox")
        combo.setCurrentIndex(combo.findText(name))
        self.user.click("loadCaseButton")
        self.user.settle()

    def switch(self, on):
        self.user.click("liveCheckBox")
        self.user.settle()
        assert wait_until(lambda: self.live.isOn() == on, 10), self.user.status()

    def off(self):
        self.switch(False)
        assert wait_until(lambda: not self.process.isEnding(), SECONDS), "it did not end"
        self.user.settle()

    def of(self, kind, **facts):
        """The events of a kind with these facts."""
        found = []
        for event in self.events:
            if event["event"] == kind and all(event.get(key) == facts[key] for key in facts):
                found.append(event)
        return found

    def until(self, kind, seconds=SECONDS, **facts):
        found = wait_until(lambda: self.of(kind, **facts), seconds)
        assert found, (kind, facts, self.user.status(), self.events[-5:])
        return found[-1]

    def draw(self, index, values=(1, 2, 3)):
        """The true structures on a slice of the shown case, stroke by stroke."""
        view, editor = self.panel.view, self.user.find("segmentEditor")
        truth = self.truth[view.name]
        for value in values:
            mask = np.zeros(truth.shape, bool)
            mask[index] = truth[index] == value
            in_loop(lambda m=mask, v=value: editor.paint(f"class_{v}", m), "Draw")
        in_loop(lambda: view.jumpTo(2, index), "Jump")
        wait_until(lambda: False, 0.4)

    def correct(self, index):
        """What was proposed on a slice of the shown case is taken away, and what is true drawn."""
        view, editor = self.panel.view, self.user.find("segmentEditor")
        whole = np.zeros(view.size[::-1], bool)
        whole[index] = True
        for value in (1, 2, 3):
            in_loop(lambda v=value: editor.paint(f"class_{v}", whole, erase=True), "Erase")
        self.draw(index)

    def mark(self, index):
        self.draw(index)
        self.user.click("markSliceButton")
        self.user.settle()

    def learn(self, name="heart_01"):
        """A preview of the whole case that knows everything drawn so far."""
        self.until("annotation", case=name)
        known = len(self.of("annotation"))
        assert wait_until(
            lambda: [
                event
                for event in self.of("preview", case=name, whole=True)
                if event["knows"] >= known
            ],
            SECONDS,
        ), (known, self.of("preview")[-3:])
        self.user.settle()


@pytest.fixture()
def painter(user, cohort, tmp_path):
    """A project of six cases with three classes, the first case shown, Live on."""
    user.open_with(tmp_path / "heart study", [cohort / "images"])
    user.store.setClasses(CLASSES)
    user.store.updateCase("heart_06", role="test")
    painter = Painter(user, cohort)
    painter.show("heart_01")
    painter.switch(True)
    yield painter
    painter.process.reported.disconnect(painter._take)
    painter.process.stop()
    assert wait_until(lambda: not painter.process.isEnding(), SECONDS)


@pytest.mark.timeout(2400)
def test_three_slices_accept_next_scribbles_and_a_run(painter, watch):
    user, panel = painter.user, painter.panel
    assert wait_until(lambda: "first slice that you mark" in user.find("liveLabel").text(), SECONDS)
    for index in (3, 6, 9):
        painter.mark(index)
    painter.learn()
    before, preview = label_of(user), painter.live.preview
    assert preview.isAlive() and preview.node.GetDisplayNode().GetVisibility()
    assert marked(user) == {2: [3, 6, 9]}, "a preview counts for nothing"
    assert "slices in 1 cases" in user.find("liveLabel").text() or painter.of("progress")[-1]
    truth = painter.truth["heart_01"]
    assert (before[[3, 6, 9]] == truth[[3, 6, 9]]).all()
    assert not np.delete(before, [3, 6, 9], 0).any()

    # accept: a copy that can be undone
    in_loop(lambda: panel.view.jumpTo(2, 5), "Jump")
    plane = preview.plane(2, 5)
    assert plane is not None
    in_loop(painter.live.proposing.accept, "Accept")
    assert marked(user) == {2: [3, 5, 6, 9]}
    assert (label_of(user)[5] == plane).all()
    user.find("segmentEditor").undo()
    wait_until(lambda: False, 0.45)
    assert (label_of(user) == before).all() and marked(user) == {2: [3, 6, 9]}
    user.click("acceptSliceButton")
    user.settle()
    wait_until(lambda: 5 in dict(user.store.case("heart_01").annotated.slices)[2], 10)
    label, _annotated = file_of(user, "heart_01")
    plane = label_of(user)[5]  # it has learnt since, and may propose something else
    assert (label[5] == plane).all() and (label[[3, 6, 9]] == truth[[3, 6, 9]]).all()

    # accept changes nothing that is drawn
    in_loop(lambda: panel.view.jumpTo(2, 6), "Jump")
    user.click("acceptSliceButton")
    assert "stays as you drew it" in user.status()
    assert (label_of(user)[6] == truth[6]).all()

    # next: another slice, filled in, in another case
    for _step in range(12):
        user.click("nextSliceButton")
        wait_until(lambda: panel.proposals.waiting(), 30)
        offered = panel.proposals.waiting().get(2, [])
        if panel.view.name != "heart_01" and offered:
            if painter.truth[panel.view.name][offered[0]].any():
                break
    else:
        pytest.fail(f"no slice was proposed in another case: {user.status()}")
    name, ((_axis, (index,)),) = panel.view.name, panel.proposals.waiting().items()
    assert name not in ("heart_01", "heart_06"), "test cases are never suggested"
    proposed = label_of(user)[index]
    assert proposed.any() and marked(user) == {}
    user.click("saveAnnotationButton")
    user.settle()
    assert user.store.case(name).label is None, "nothing was drawn"
    taught = len(painter.of("annotation"))
    wait_until(lambda: False, 3)
    assert len(painter.of("annotation")) == taught, "a proposal teaches nothing"

    # touched, it counts
    painter.correct(index)
    assert marked(user) == {2: [index]}
    user.click("nextSliceButton")
    user.settle()
    painter.until("annotation", case=name)
    score = painter.until("score", case=name, index=index)
    assert score["proposed"] and 0 <= score["changed"] <= 1
    label, annotated = file_of(user, name)
    assert dict(annotated.slices)[2] == (index,)
    assert (label[index] == painter.truth[name][index]).all()
    assert "you changed" in user.find("liveScoreLabel").text()

    # scribbles
    painter.show("heart_05")
    in_loop(lambda: panel.view.jumpTo(2, 7), "Jump")
    user.click("markPartlyButton")
    painter.draw(7, values=(2,))
    mask = np.zeros(panel.view.size[::-1], bool)
    mask[7, :5] = True
    user.find("segmentEditor").paint("MedSSL_background", mask)
    wait_until(lambda: False, 0.4)
    user.click("saveAnnotationButton")
    user.settle()
    painter.until("annotation", case="heart_05")
    label, annotated = file_of(user, "heart_05")
    assert annotated.partly == ((2, (7,)),)
    assert set(np.unique(label[7])) == {0, 2, 255} and not label[7, :5].any()

    # off: a run like any other
    painter.off()
    run = user.store.models()[-1]
    assert run.startswith("live") and run in user.status()
    assert painter.live.preview is None and not preview.isAlive()
    assert user.find("modelComboBox").currentText() == run
    user.shell.open("review")
    combo = user.find("predictCasesComboBox")
    combo.setCurrentIndex(combo.findText("heart_06"))
    user.click("predictButton")
    user.finish_jobs()
    assert user.find("resultTable").rowCount() == 1, user.status()
    print(watch.table())
    longest = max((block.processor for block in watch.blocks), default=0.0)
    assert longest < 0.3, watch.table()  # generous: a shared machine; bench_blocks.py measures


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_scene_closed_while_live_is_on(painter):
    import slicer

    painter.draw(4)
    slicer.bench_clear_scene()
    assert wait_until(lambda: not painter.live.isOn() and not painter.process.isEnding(), SECONDS)
    painter.user.settle()
    label, annotated = file_of(painter.user, "heart_01")
    assert annotated.slices == ((2, (4,)),)
    assert (label[4] == painter.truth["heart_01"][4]).all()
    assert painter.live.preview is None


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_another_project_ends_live_and_gets_nothing_of_it(painter, tmp_path):
    user = painter.user
    first = user.store.folder
    painter.mark(4)
    painter.until("annotation", case="heart_01")
    user.open_project(tmp_path / "other")
    assert not painter.live.isOn() and painter.live.preview is None
    assert wait_until(lambda: not painter.process.isEnding(), SECONDS)
    assert not (user.store.folder / "runs").exists() and user.store.models() == []
    user.open_project(first)
    assert user.store.case("heart_01").annotated.slices == ((2, (4,)),)
    assert user.store.models() == ["live-1"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_case_that_is_deleted_has_no_preview_any_more(painter):
    user = painter.user
    painter.mark(4)
    painter.learn()
    user.click("addClassButton")
    values = (0, 1, 2, 3, 4)
    assert wait_until(lambda: painter.live.preview.values == values, 10), "another preview"
    preview = painter.live.preview
    assert wait_until(preview.isAlive, SECONDS)
    user.store.removeCases(["heart_01"])
    assert wait_until(lambda: not preview.isAlive(), 10)
    painter.show("heart_02")
    painter.mark(5)
    painter.until("annotation", case="heart_02")
    painter.off()
    assert user.store.models() == ["live-1"]


@pytest.mark.timeout(1800)
def test_slicer_closed_while_live_is_on(painter):
    import slicer

    painter.mark(4)
    painter.until("annotation", case="heart_01")
    slicer.app.aboutToQuit.emit()
    assert not painter.process.isOn() and not painter.process.isEnding()
    runs = painter.user.store.folder / "runs"
    assert [path.name for path in runs.iterdir()] == ["live-1"]
    assert painter.user.store.case("heart_01").annotated.slices == ((2, (4,)),)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_process_is_told_of_and_gone_on_with(painter):
    from MedSSLGui.jobs import processes

    user = painter.user
    painter.mark(4)
    painter.learn()
    painter.until("checkpoint")
    processes.endTree(int(painter.process._runner._process.processId()))
    assert wait_until(lambda: not painter.live.isOn(), 20)
    assert any(kind == "error" and "Live has ended" in text for kind, text in user.messages)
    assert not user.find("liveCheckBox").isChecked() and painter.live.preview is None
    painter.events.clear()
    painter.switch(True)
    assert painter.until("start")["run"] == "live-1", "the same run goes on"
    painter.until("preview", case="heart_01", whole=True)
    painter.off()
    assert user.store.models() == ["live-1"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_live_waits_while_a_job_runs(painter):
    user = painter.user
    painter.mark(4)
    painter.until("annotation", case="heart_01")
    user.find("trainPresetComboBox").setCurrentIndex(0)
    user.train_briefly("trainMinutesSpinBox")
    user.click("fineTuneButton")
    assert wait_until(lambda: user.queue.current is not None, 20)
    assert "waits while this runs: Fine-tuning" in user.find("liveLabel").text()
    painter.until("progress", state="paused")
    user.finish_jobs()
    painter.events.clear()
    assert wait_until(
        lambda: painter.of("progress", state="training") or painter.of("progress", state="idle"),
        SECONDS,
    )
    painter.off()
