"""The segment editor inside the panel, with its own parameter set, undo and shortcuts of its own."""

import slicer

_NAME = "MedSSLSegmentEditor"
_UNDO_STATES = 20


class EmbeddedEditor:
    """Keeps a qMRMLSegmentEditorWidget apart from the Segment Editor module."""

    def __init__(self, widget):
        self.widget = widget
        self._shown = False
        widget.setMRMLScene(slicer.mrmlScene)
        widget.setMaximumNumberOfUndoStates(_UNDO_STATES)
        for name in (
            "segmentationNodeSelectorVisible",
            "sourceVolumeNodeSelectorVisible",
            "masterVolumeNodeSelectorVisible",
            "switchToSegmentationsButtonVisible",
            "addRemoveSegmentButtonsVisible",
        ):
            if hasattr(widget, name):  # the volume's selector has another name before Slicer 5.3
                setattr(widget, name, False)

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
        self.widget.setMRMLSegmentEditorNode(self._node())
        self.widget.setSegmentationNode(segmentationNode)
        setVolume = (
            getattr(self.widget, "setSourceVolumeNode", None) or self.widget.setMasterVolumeNode
        )
        setVolume(volumeNode)

    def enter(self):
        """The module is shown."""
        if not self._shown:
            self._shown = True
            self.widget.setupViewObservations()
            self.widget.installKeyboardShortcuts()

    def exit(self):
        """The module is left: other modules get the mouse and the keys back."""
        if self._shown:
            self._shown = False
            self.widget.setActiveEffectByName("")
            self.widget.uninstallKeyboardShortcuts()
            self.widget.removeViewObservations()

    def cleanup(self):
        self.exit()
        self.widget.setSegmentationNode(None)
