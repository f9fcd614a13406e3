"""A whole training step over the bare networks on a ready batch, for every kind of training.

Runs `MedSSLLib.benchmark.speed`, part `step` (`medssl benchmark speed --parts step`), on the CPU.
JSON on stdout.
"""

from speed_parts import main

if __name__ == "__main__":
    main("step")
