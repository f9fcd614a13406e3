"""Settings kept in the scene, connected to the panels' widgets by their SlicerParameterName property."""

from slicer.parameterNodeWrapper import parameterNodeWrapper


@parameterNodeWrapper
class MedSSLParameters:
    """What a user chose in the panels. Empty or zero means "as the library does it"."""

    projectPath: str = ""
    withSegmentations: bool = True
    meta: str = ""
    pretrainMinutes: float = 0.0
    autoMark: bool = True
    budget: int = 3
    trainMinutes: float = 0.0
    mixup: float = 0.0
    rounds: int = 3
    freezeEncoder: bool = False
    uncertainty: bool = True
    opacity: float = 0.4
    outline: float = 1.0
    uncertaintyOpacity: float = 0.0
