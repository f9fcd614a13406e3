"""The segment editor inside the panel, with its own parameter set, undo and shortcuts of its own."""

import slicer

_NAME = "MedSSLSegmentEditor"
_UNDO_STATES = 20
# (name, older name): a deprecated name warns as soon as it is touched, so the older one is for older versions only
_HIDDEN = (
    ("segmentationNodeSelectorVisible", None),
    ("sourceVolumeNodeSelectorVisible", "masterVolumeNodeSelectorVisible"),
    ("switchToSegmentationsButtonVisible", None),
    ("addRemoveSegmentButtonsVisible", None),
)


class EmbeddedEditor:
    """Keeps a qMRMLSegmentEditorWidget apart from the Segment Editor module."""

    def __init__(self, widget):
        self.widget = widget
        self._shown = self._used = self._hasKeys = False
        widget.setMRMLScene(slicer.mrmlScene)
        widget.setMaximumNumberOfUndoStates(_UNDO_STATES)
        for name, older in _HIDDEN:
            if hasattr(widget, name):
                setattr(widget, name, False)
            elif older and hasattr(widget, older):
                setattr(widget, older, False)

    def _node(self):
        node = slicer.mrmlScene.GetSingletonNode(_NAME, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
            node.UnRegister(None)
            node.SetSingletonTag(_NAME)
            node = slicer.mrmlScene.AddNode(node)
        return node

    def edit(self, segmentationNode, volumeNode):
        """Edit a segmentation over its volume; None lets go of both."""
        self.endEffect()
        self.widget.setMRMLSegmentEditorNode(self._node())
        self.widget.setSegmentationNode(segmentationNode)
        if hasattr(self.widget, "setSourceVolumeNode"):
            self.widget.setSourceVolumeNode(volumeNode)
        else:
            self.widget.setMasterVolumeNode(volumeNode)

    def saveState(self):
        """What is drawn now is what undo goes back to."""
        self.widget.saveStateForUndo()

    def endEffect(self):
        """No effect is active any more: a brush would go on drawing on what another panel hides."""
        self.widget.setActiveEffectByName("")

    def enter(self):
        """The module is shown."""
        if not self._shown:
            self._shown = True
            self.widget.setupViewObservations()
            self._followKeys()

    def use(self, used):
        """Whether the editor's panel is open: else its keys would choose a brush while other things are in view."""
        self._used = used
        self._followKeys()

    def _followKeys(self):
        wanted = self._shown and self._used
        if wanted != self._hasKeys:
            self._hasKeys = wanted
            if wanted:
                self.widget.installKeyboardShortcuts()
            else:
                self.widget.uninstallKeyboardShortcuts()

    def exit(self):
        """The module is left: other modules get the mouse and the keys back."""
        if self._shown:
            self._shown = False
            self.endEffect()
            self._followKeys()
            self.widget.removeViewObservations()

    def cleanup(self):
        self.exit()
        self.widget.setSegmentationNode(None)
