"""Writing an annotation into the project, and taking over what the library completed; run by `tasks.Stepper`."""

from slicer.i18n import tr as _

from . import annotation, scene
from .caseview import labelFileSteps


def saveSteps(session, view):
    """Write the case's segmentation as its label, with the annotated slices; new segments become classes."""
    store = session.store
    classes = scene.classesWith(view.segmentation, store.classes())
    if classes != store.classes():
        store.setClasses(classes)
        scene.syncClasses(view.segmentation, classes)
    array, shared = yield from scene.labelSteps(view.segmentation, view.image, classes)
    path = store.folder / "labels" / f"{view.name}.nrrd"
    yield from scene.nrrdSteps(path, array, view.matrix, True)
    store.setLabel(view.name, path, annotation.toManifest(view.annotated()))
    if shared:
        session.say(
            _("{name}: segments overlap in {n} voxels; there the later segment counts.").format(
                name=view.name, n=shared
            ),
            "warning",
        )


def completionSteps(log, view, path):
    """Fill in a completed label; annotated slices stay as drawn, and no other one counts as drawn."""
    session = log.session
    label = yield from labelFileSteps(path, view.image, session.store.classes())
    log.flush()
    log.filling = True
    try:
        yield from scene.fillSteps(
            view.segmentation, view.image, label, session.store.classes(), view.annotated()
        )
        log.flush()
    finally:
        log.filling = False
    session.say(
        _("{case}: the other slices are filled in. Check them before you mark them.").format(
            case=view.name
        ),
        "done",
    )


def correctionSteps(panel, wanted):
    """Copy the shown slice of a prediction into the annotation of the case that a panel shows, and mark it."""
    yield
    if not panel.alive():
        return
    axis = panel.axis()
    shown = panel.view.shownSlice(axis)
    index = panel.view.size[axis] // 2 if shown is None else shown
    others = [each for each in range(panel.view.size[axis]) if each != index]
    yield from scene.fillSteps(
        panel.view.segmentation,
        panel.view.image,
        wanted["label"],
        panel.store.classes(),
        {axis: others},
    )
    panel.view.segmentation.GetDisplayNode().SetVisibility(True)
    panel.mark(axis, [index])
    panel.session.say(
        _("Slice {n} is in the annotation now: correct it, then fine-tune again.").format(n=index),
        "done",
    )
