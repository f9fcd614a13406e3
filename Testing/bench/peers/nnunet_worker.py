"""Train nnU-Net for a time and predict; run by nnunet.py with the interpreter of nnU-Net's own
environment.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TrainerMinutes(nnUNetTrainer):
    """nnU-Net's trainer for some minutes: its schedule over time instead of epochs, no validation
    in between.
    """

    minutes = 10.0
    steps = 0
    seconds = 0.0

    def run_training(self):
        self.on_train_start()
        self.network.train()
        begin = time.monotonic()
        while (used := (time.monotonic() - begin) / (60 * self.minutes)) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - used) ** 0.9
            loss = self.train_step(next(self.dataloader_train))["loss"]
            self.steps += 1
            print(f"step {self.steps}: loss {float(loss):.3f}", flush=True)
        self.seconds = time.monotonic() - begin
        self.on_train_end()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--configuration", required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = make_trainer(args)
    trainer.run_training()
    begin = time.monotonic()
    predict(trainer, sorted(args.images.glob("*_0000.nii.gz")), args.out)
    settings = trainer.configuration_manager
    (args.out / "facts.json").write_text(
        json.dumps(
            {
                "steps": trainer.steps,
                "training_s": round(trainer.seconds, 1),
                "predict_s": round(time.monotonic() - begin, 1),
                "configuration": args.configuration,
                "patch": [int(n) for n in settings.patch_size],
                "batch": int(settings.batch_size),
                "threads": args.threads,
                "nnunetv2": version("nnunetv2"),
                "peer_torch": torch.__version__,
            }
        )
    )


def make_trainer(args):
    """The trainer over the plans that nnU-Net made, on all labelled volumes."""
    folder = next(Path(nnUNet_preprocessed).glob("Dataset001_*"))
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    if args.batch:
        plans["configurations"][args.configuration]["batch_size"] = args.batch
    description = json.loads((folder / "dataset.json").read_text())
    trainer = TrainerMinutes(plans, args.configuration, "all", description, torch.device("cpu"))
    trainer.minutes = args.minutes
    return trainer


def predict(trainer, images, out):
    """Sliding window with test-time mirroring, as nnU-Net predicts by default, in this process
    alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        perform_everything_on_device=False, device=trainer.device, allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    names = [str(out / path.name.removesuffix("_0000.nii.gz")) for path in images]
    predictor.predict_from_files_sequential([[str(path)] for path in images], names)


if __name__ == "__main__":
    main()
