"""Writing what was drawn into the project, and taking over what the library completed; run by `Stepper`."""

import numpy as np
from slicer.i18n import tr as _

from ..scene import annotation, brush, segments, voxels


def saveSteps(session, view, proposals):
    """Write the case's segmentation as its label, with the annotated slices; new segments become classes.

    proposals: slices {axis: indices} whose content nobody has accepted; in the file they are empty. Returns the
    annotated slices {axis: indices} that were written.
    """
    store = session.store
    classes = segments.classesWith(view.segmentation, store.classes())
    if classes != store.classes():
        store.setClasses(classes)
        segments.syncClasses(view.segmentation, classes)
    view.writeTags()
    annotated, partly = view.annotated(), view.partly()
    array, shared = yield from segments.labelSteps(view.segmentation, view.image, classes)
    for axis, indices in proposals.items():
        np.moveaxis(array, 2 - axis, 0)[indices] = 0
    if partly:
        painted = brush.paintedBackground(view.segmentation, view.image)
        array = brush.leaveUnknown(array, painted, partly, store.ignoreValue())
    path = store.folder / "labels" / f"{view.name}.nrrd"
    yield from voxels.writeSteps(path, array, view.matrix)
    store.setLabel(view.name, path, annotation.toManifest(annotated, partly))
    sayShared(session, view.name, shared)
    return annotated


def sayShared(session, name, shared):
    """Tell of voxels that lie in two segments."""
    if shared:
        text = _("{name}: segments overlap in {n} voxels; there the later segment counts.")
        session.say(text.format(name=name, n=shared), "warning")


def completionSteps(log, session, view, path):
    """Fill in a completed label; annotated slices stay as drawn, and no other one counts as drawn."""
    label = yield from voxels.labelFileSteps(path, view.image)
    log.flush()
    log.filling = True
    try:
        yield from segments.fillSteps(
            view.segmentation, view.image, label, session.store.classes(), view.annotated()
        )
        log.flush()
    finally:
        log.filling = False
    text = _("{case}: the other slices are filled in. Check them before you mark them.")
    session.say(text.format(case=view.name), "done")


def correctionSteps(log, view, label, classes, axis):
    """Copy the shown slice of a class map into the annotation of the case that is shown; returns its index."""
    shown = view.shownSlice(axis)
    index = view.size[axis] // 2 if shown is None else shown
    others = [each for each in range(view.size[axis]) if each != index]
    log.flush()
    log.filling = True
    try:
        yield from segments.fillSteps(view.segmentation, view.image, label, classes, {axis: others})
        log.flush()
    finally:
        log.filling = False
    return index
