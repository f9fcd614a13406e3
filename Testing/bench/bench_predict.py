"""Prediction of a preprocessed volume over the bare network on the fewest covering patches; goal
1.2.

Runs `MedSSLLib.benchmark.speed`, part `predict` (`medssl benchmark speed --parts predict`), on the
CPU. JSON on stdout.
"""

from speed_parts import main

if __name__ == "__main__":
    main("predict")
