"""What files of folders are: cases, channels, segmentations, and of which modality."""
