"""Formats of image files: DICOM, NIfTI, MetaImage, the segmentations of 3D Slicer."""
