"""Settings kept in the scene, connected to the panels' widgets by their SlicerParameterName property."""

from typing import Annotated

from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class MedSSLParameters:
    """What a user chose in the panels. Empty or zero means "as the library does it".

    Numbers have a range: without one, Slicer refuses to connect a slider and lets a spin box go below zero.
    """

    projectPath: str = ""
    withSegmentations: bool = True
    meta: str = ""
    pretrainMinutes: Annotated[float, WithinRange(0, 100000)] = 0.0
    autoMark: bool = True
    budget: Annotated[int, WithinRange(1, 1000)] = 3
    trainMinutes: Annotated[float, WithinRange(0, 100000)] = 0.0
    mixup: Annotated[float, WithinRange(0, 10)] = 0.0
    rounds: Annotated[int, WithinRange(0, 20)] = 0
    freezeEncoder: bool = False
    uncertainty: bool = True
    quality: bool = False
    opacity: Annotated[float, WithinRange(0, 1)] = 0.4
    outline: Annotated[float, WithinRange(0, 1)] = 1.0
    uncertaintyOpacity: Annotated[float, WithinRange(0, 1)] = 0.0
