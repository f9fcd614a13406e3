"""Two augmented views of a batch against MONAI's dictionary transforms of the same distribution;
goal 5 x faster.

Runs `MedSSLLib.benchmark.speed`, part `views` (`medssl benchmark speed --parts views`), on the CPU.
JSON on stdout.
"""

from speed_parts import main

if __name__ == "__main__":
    main("views")
