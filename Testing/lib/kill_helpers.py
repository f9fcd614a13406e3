"""Kill a training run at random moments, resume it until it is done, and compare with a run that
was left alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

from MedSSLLib.config.run import RunConfig
from MedSSLLib.core.errors import InputError
from MedSSLLib.core.events import Events, read_events
from MedSSLLib.core.files import read_json
from MedSSLLib.finetuning import finetune
from MedSSLLib.pretraining import pretrain
from MedSSLLib.project.project import Project
from MedSSLLib.selftraining import selftrain
from MedSSLLib.training import stages
from MedSSLLib.training.checkpoint import load_tensors
from Testing.lib.core_helpers import tiny_config, torch

WORK = {
    "pretrain": pretrain.run_pretrain,
    "finetune": finetune.run_finetune,
    "selftrain": selftrain.run_selftrain,
}
PLAIN = stages.loop_config


def config(method: str, **changes: object) -> RunConfig:
    """A run of seconds: 'supervised', 'local-contrast' or a pre-training method."""
    command = {"supervised": "finetune", "local-contrast": "selftrain"}.get(method, "pretrain")
    values = {"training__steps": 14, "dim": "2d", "training__batch": 4, "network__widths": (4, 8)}
    if command == "selftrain":
        values |= {
            "options__rounds": 2,
            "options__clean": "none",
            "optimiser__lr": 1e-2,
            "training__steps": 24,
            "training__ema": 0.0,
        }
    return tiny_config(command, method=method, **(values | changes))


def train(folder: Path, run_config: RunConfig) -> Path:
    """A run that writes a checkpoint after every step."""
    torch.set_num_threads(1)
    for module in (stages, pretrain):
        module.loop_config = lambda *a: replace(PLAIN(*a), checkpoint_seconds=0.0)
    try:
        return WORK[run_config.command](Project.open(folder), run_config, Events())
    finally:
        for module in (stages, pretrain):
            module.loop_config = PLAIN


@dataclass
class Victim:
    """A run that is killed and resumed.

    Attributes:
        kills: processes that died by SIGKILL.
        restarts: kills before there was anything to resume; the same name was begun anew.
        files: tensor and JSON files that were read back whole after a kill.
    """

    project: Project
    method: str
    name: str
    kills: int = 0
    restarts: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.project.run_folder(self.name)

    @property
    def done(self) -> bool:
        return (self.folder / "weights.safetensors").exists()

    def run_and_kill(self, delay: float, *, from_checkpoint: bool) -> None:
        """Start or resume in a child and kill it after `delay` seconds, counted from its first
        checkpoint if asked.
        """
        child = multiprocessing.get_context("fork").Process(target=self._start_or_resume)
        child.start()
        while from_checkpoint and child.is_alive() and not self._checkpoints():
            time.sleep(0.002)
        child.join(delay)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        if child.exitcode == -signal.SIGKILL:
            self.kills += 1
            self.restarts += not self._checkpoints()
        elif child.exitcode:
            self.problems.append(f"{self.name}: a resumed run ended with {child.exitcode}")
        self.check_files()

    def _start_or_resume(self) -> None:
        """In the child: go on; with nothing to resume begin again under the same name."""
        try:
            try:
                train(self.project.folder, config(self.method, name=self.name, resume=True))
            except InputError as error:
                if not any(
                    word in str(error)
                    for word in ("there is no run", "before its first checkpoint")
                ):
                    raise
                train(self.project.folder, config(self.method, name=self.name))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _checkpoints(self) -> list[Path]:
        return list((self.folder / "checkpoint").glob("*.safetensors"))

    def check_files(self) -> None:
        """Every file that has its final name is whole."""
        for path in self.folder.rglob("*"):
            if path.name.startswith(".tmp-") or not path.is_file():
                continue
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".json":
                read_json(path)
            self.files += path.suffix in (".safetensors", ".json")
        if (self.folder / "events.jsonl").exists():
            list(read_events(self.folder / "events.jsonl"))

    def finish(self) -> None:
        """Go on to the end, unless it is reached."""
        if not self.done:
            train(
                self.project.folder,
                config(self.method, name=self.name, resume=bool(self._checkpoints())),
            )

    def differs_from(self, whole: Path) -> list[str]:
        """Tensors and facts that are not those of the run left alone, and files that a kill left
        behind.
        """
        expected, facts = load_tensors(whole / "weights.safetensors")
        found, again = load_tensors(self.folder / "weights.safetensors")
        wrong = [] if again == facts and found.keys() == expected.keys() else ["facts or names"]
        wrong += [n for n, t in expected.items() if n in found and not torch.equal(found[n], t)]
        return wrong + [f"{path.name} was left behind" for path in self.folder.rglob(".tmp-*")]
