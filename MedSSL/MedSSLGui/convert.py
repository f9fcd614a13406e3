"""Run by PythonSlicer, not by Slicer: writes an image file as another format, as its name says.

PythonSlicer convert.py SOURCE TARGET
"""

import sys


def main(arguments):
    """Voxels and geometry stay; the target is written whole or not at all."""
    from MedSSLLib.images.io import read_image, write_image

    source, target = arguments
    write_image(target, read_image(source, constant=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
