"""Forward and backward passes in bfloat16 against float32 on this processor, for the networks of
the presets.

    python Testing/bench/bench_precision.py --threads 1 --out FILE

Training takes bfloat16 where the processor multiplies it (AMX or AVX512-BF16). Timed are forward
and backward passes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from MedSSLLib.benchmark.timing import Comparison, in_turn
from MedSSLLib.config.run import NetworkConfig
from MedSSLLib.core.files import write_json
from MedSSLLib.networks.unet import SegmentationNet, build_encoder, memory_format, place
from MedSSLLib.training.devices import training_precision

STANDARD, PAPER = (16, 32, 64, 128, 128), (32, 64, 128, 256, 320)
CASES = {
    "2d-standard": (STANDARD, (8, 1, 128, 128)),
    "3d-standard": (STANDARD[:4], (2, 1, 48, 48, 48)),
    "2d-paper": (PAPER, (4, 1, 128, 128)),
    "3d-paper": (PAPER[:4], (1, 1, 48, 48, 48)),
}


def measure(name: str, pairs: int, *, training: bool) -> Comparison:
    """Times of a pass in bfloat16 and in float32."""
    widths, shape = CASES[name]
    dim = len(shape) - 2
    strides = [(1,) * dim] + [(2,) * dim] * (len(widths) - 1)
    net = SegmentationNet(build_encoder(dim, 1, strides, NetworkConfig(widths=widths)), 4).train(
        training
    )
    place(net, torch.device("cpu"), dim)
    images = torch.randn(shape).to(memory_format=memory_format(dim))
    labels = torch.randint(4, (shape[0], *shape[2:]))

    def work(half: bool) -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = net(images).float()
        if training:
            F.cross_entropy(logits, labels).backward()

    times = in_turn(lambda: work(True), lambda: work(False), pairs)
    return Comparison("training" if training else "prediction", name, *times, goal=1.0, faster=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = [
        measure(name, args.pairs, training=kind).record()
        for kind in (True, False)
        for name in CASES
    ]
    write_json(
        args.out,
        {
            "bench": "precision",
            "command": " ".join(["python", *sys.argv]),
            "threads": args.threads,
            "chosen": training_precision("auto", torch.device("cpu")),
            "torch": torch.__version__,
            "records": records,
        },
    )
    json.dump({f"{r['part']} {r['name']}": r["ratio"] for r in records}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
