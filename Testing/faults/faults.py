"""Faults that are planted one at a time to test the tests: file, the text as it is, the text with the fault.

A text must occur exactly once in its file. Where code changes, its fault moves with it: a quick test and
`mutation.py` refuse a fault that no longer fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from Testing.faults.faults_using import USING

ROOT = Path(__file__).resolve().parents[2]
LIBRARY, TESTS = "MedSSLLib", "Testing/lib"


class Fault(NamedTuple):
    """One fault: what it does in words, where, and the test files that should notice."""

    topic: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def path(self) -> Path:
        return Path(LIBRARY, f"{self.file}.py")

    def planted(self, text: str) -> str:
        """The source with the fault. Raises ValueError unless the old text occurs exactly once."""
        found = text.count(self.old)
        if found != 1 or self.old == self.new:
            raise ValueError(f"fault {self.name!r}: its text occurs {found} times in {self.path}:\n{self.old}")
        return text.replace(self.old, self.new)


def faults() -> list[Fault]:
    """All faults, in the order of the table."""
    made = list(_made())
    names = [fault.name for fault in made]
    if len(set(names)) != len(names):
        raise ValueError("two faults have the same name")
    return made


def _made() -> Iterator[Fault]:
    for (topic, file, tests), rows in (FAULTS | USING).items():
        for name, old, new in rows:
            yield Fault(topic, name, file, old, new, tuple(f"{TESTS}/test_{test}.py" for test in tests.split()))


# (topic, module, names of test files): rows of what goes wrong, the text, the faulty text
FAULTS: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {
    ("PGL", "losses", "losses pgl_target byol"): [
        ("no stop-gradient in the regression", "F.normalize(target.detach(), dim=dim)", "F.normalize(target, dim=dim)"),
    ],
    ("PGL", "methods/ema", "pgl_target byol"): [
        ("the target takes gradients", "deepcopy(module).requires_grad_(False)", "deepcopy(module)"),
        ("the average runs the wrong way", "for _, o in averaged], 1 - momentum)", "for _, o in averaged], momentum)"),
        ("the momentum does not rise", "(math.cos(math.pi * progress) + 1) / 2", "1"),
    ],
    ("PGL", "methods/bootstrap", "pgl_target byol pgl"): [
        ("target encoder not updated", "        ema_update(self.target_encoder, self.encoder, self._momentum)\n", ""),
        ("target projector not updated",
         "        ema_update(self.target_projectors, self.projectors, self._momentum)\n", ""),
        ("a view predicts itself", "x.unflatten(0, (-1, views)).flip(1)", "x.unflatten(0, (-1, views))"),
        ("masked places count", "(mask * target.mask).squeeze(1)", "torch.ones_like(mask).squeeze(1)"),
    ],
    ("PGL", "alignment", "alignment"): [
        ("flip not undone", "torch.where(flip > 0, size - points, points)", "torch.where(flip > 0, points, points)"),
        ("flip undone one voxel off", "size - points, points)", "size - 1 - points, points)"),
        ("swapped axes", "[x[:, axis].to(dtype) for x in (*views, *region, flip)]",
         "[x[:, -1 - axis].to(dtype) for x in (*views, *region, flip)]"),
        ("region off by one", "(start - lo + share", "(start - lo + 1 + share"),
        ("bins start at their edge", "dtype=lo.dtype) + 0.5) / n\n    points", "dtype=lo.dtype)) / n\n    points"),
        ("union instead of intersection", "views.lo.amax(1), views.hi.amin(1)", "views.lo.amin(1), views.hi.amax(1)"),
        ("extrapolated places not masked", "(points >= 0.5 - slack) & (points <= size - 0.5 + slack)",
         "points == points"),
    ],
    ("PGL", "methods/pgl", "pgl"): [
        ("boxes off by half a feature voxel", "start = [(1 - total) / 2 / n for", "start = [0 * total / n for"),
        ("flipped views take the box unflipped", "torch.where(flip > 0, hi - stop, lo + start)", "lo + start"),
        ("the switch of the flip prior is dead", "if not self.config.use_flip_prior:", "if False:"),
    ],
    ("views", "views", "views"): [
        ("views are not flipped", "/ 2 * (1 - 2 * geometry.flip)", "/ 2 * (1 + 0 * geometry.flip)"),
        ("boxes by weights are not flipped", "geometry.lo + geometry.flip * side, side * (1 - 2 * geometry.flip)",
         "geometry.lo, side"),
        ("rotation in voxels, not in mm",
         "mm[None, None, :] / mm[None, :, None]", "mm[None, :, None] / mm[None, :, None]"),
        ("outside the window is background", "torch.full_like(out, IGNORE)", "torch.zeros_like(out)"),
    ],
    ("GCL", "gradients", "gradients gcl"): [
        ("wrong sign in the weight", "(goal * sine - phi * goal_sine)", "(phi * goal_sine - goal * sine)"),
        ("phi_T updated only when acting", "torch.where(usable, torch.lerp(goal, phi, beta), goal)",
         "torch.where(usable & (phi < goal), torch.lerp(goal, phi, beta), goal)"),
        ("acts where the cosine is high", "usable & (phi < goal)", "usable & (phi > goal)"),
        ("beta weighs the old cosine", "torch.lerp(goal, phi, beta)", "torch.lerp(phi, goal, beta)"),
        ("the sum of the modified gradients, not their mean", "= coefficients.mean(1)", "= coefficients.sum(1)"),
        ("the target is forgotten on resume", 'self._target = state.get("target")', "self._target = None"),
    ],
    ("GCL", "contrastive", "contrastive gcl simclr"): [
        ("positives of a label counted as negatives", "same = same | ((", "same = same & (("),
        ("dropped positives counted as negatives", "similarity.scatter(2, dropped, -math.inf).logsumexp(2)",
         "similarity.logsumexp(2)"),
        ("the filter keeps the highest gradients", "gradients.norm(dim=3).argsort(dim=2)",
         "gradients.norm(dim=3).argsort(dim=2, descending=True)"),
        ("z is not normalised", "z = F.normalize(z.flatten(0, 1), dim=1)\n    similarity",
         "z = z.flatten(0, 1)\n    similarity"),
        ("an anchor is its own negative", "similarity.masked_fill(itself, -math.inf).logsumexp(1)",
         "similarity.logsumexp(1)"),
        ("missing labels make a class", "((value.unsqueeze(1) == value) & (value >= 0))",
         "(value.unsqueeze(1) == value)"),
        ("Eq. 7 keeps the part along the anchor", "(gradient - (gradient * v).sum(3, keepdim=True) * v)", "gradient"),
        ("the pool of least affinity", "topk(size, dim=2, sorted=False)", "topk(size, dim=2, largest=False)"),
        ("the pool does not grow", "start + (1 - start) * progress if", "start if"),
    ],
    ("GCL", "methods/gcl", "gcl"): [
        ("pixels of the deepest map, however few", ">= LEAST_PIXELS), default=0)", ">= 1), default=0)"),
    ],
    ("GCL", "metalabels", "metalabels"): [
        ("columns of whole patients are chosen", "if PATIENT in earlier and _same_for_a_patient",
         "if False and _same_for_a_patient"),
        ("columns are left out where patients have one scan", " and 2 * int((scans > 1).sum()) > len(scans)", ""),
    ],
    ("GCL", "picking", "picking"): [
        ("always the first part of the slices", "for part in draw.rng.permutation(draw.parts).tolist():",
         "for part in [0] * len(draw.parts):"),
        ("always the first case of a patient", "(numbers[i] for i in draw.rng.permutation(len(numbers)))", "numbers"),
        ("a small batch is one patient", "self.patients[patient], self.samples - second)",
         "self.patients[patient], self.samples)"),
        ("samples stay in the order of patients, cases and parts", "for i in rng.permutation(self.samples)]",
         "for i in range(self.samples)]"),
        ("the cases of a patient are alike", "return number in busy, -sum(", "return number in busy, sum("),
        ("a missing class is another class", "MISSING != first[name] != other[name] != MISSING",
         "first[name] != other[name]"),
        ("a patient again while others are left", "            if patient not in seen:\n", "            if True:\n"),
        ("a slice twice while others are left", " if (number, index) not in draw.used]", "]"),
        ("a last sample without its patient", "if len(draw.found) == limit - 1 == self.samples - 1:", "if False:"),
        ("positives of the own patient count as another's", "_same(picks, name) & other)", "_same(picks, name))"),
    ],
    ("local contrast", "local_contrast", "local_contrast joint"): [
        ("background contrasted", "torch.arange(1, classes, ", "torch.arange(0, classes - 1, "),
        ("means detached", "inside @ features.flatten(2).mT", "inside @ features.detach().flatten(2).mT"),
        ("last pair only", "x in logits])  # the anchor's own class", "x in logits[-1:]])  # the anchor's own class"),
        ("partner mismatch: means", "means[partner], present[partner]", "means, present[partner]"),
        ("partner mismatch: presence", "means[partner], present[partner]", "means[partner], present"),
        ("absent classes count", "present.unsqueeze(2).to(loss.dtype).expand_as(loss)", "torch.ones_like(loss)"),
    ],
    ("local contrast", "joint", "joint"): [
        ("an image is its own partner", "int(rng.integers(1, n)) if n > 1 else 0", "0"),
        ("two views see other labels", "torch.cat([labels, labels], 1)", "torch.cat([labels, labels.flip(1)], 1)"),
        ("lambda is ignored", '"contrast": self.weight * contrast', '"contrast": contrast'),
    ],
    ("self-training", "components", "predict"): [
        ("the largest piece counts as the surest", "np.maximum(likely[value] - 0.5, 0) + 1e-6",
         "np.ones_like(likely[value])"),
        ("pieces of classes known from slices stay", "return surest_components(classes, probabilities, undivided)",
         "return classes"),
        ("only the surest piece stays", "sums >= NEARLY_AS_SURE * sums.max()", "sums >= sums.max()"),
        ("slices that lack a class between others are passed over", "else 0.0 for mask in between",
         "else 1.0 for mask in between"),
    ],
    ("self-training", "selfoptions", "selftrain"): [
        ("partly drawn cases are as rare as they are", "return (*first,) * max(times, 1)", "return (*first,)"),
    ],
    ("self-training", "selftrain", "selftrain"): [
        ("whole labels count as drawn slices", "for case in pseudo if case.name in partly",
         "for case in whole + pseudo"),
        ("preprocessed pseudo-labels stay", "                discard_entries(ready.folder / \"pseudo\")\n", ""),
        ("pseudo-labels fill the project's cache", "data.plan, folder / ENTRIES)", "data.plan)"),
        ("stage 1 is not counted", "    job.first = figures\n", ""),
        ("hidden labels are opened", "replace(case, label=None, annotated=None) for case in others",
         "replace(case) for case in others"),
        ("rounds go on from the teacher", "(first if job.options.restart else teacher)", "teacher"),
        ("the first model teaches every round", "net = _round(job, number, net, first)",
         "net = _round(job, number, first, first)"),
        ("a round too few", "range(1, options.rounds + 1)", "range(1, options.rounds)"),
        ("growth since the first round", 'drift(job.rows[-1]["pseudo"]', 'drift(job.rows[0]["pseudo"]'),
        ("rounds never go on", "(first if job.options.restart else teacher)", "first"),
    ],
    ("self-training", "soft_labels", "soft_labels"): [
        ("pseudo-labels count by their probability alone", "probabilities * probabilities.max(0)", "probabilities"),
        ("voxels that do not count are taught", " & (found[-1] != IGNORE)", ""),
        ("probabilities of another place", "first = [max(-a, 0) for a in lo]", "first = [0 for a in lo]"),
    ],
    ("self-training", "pseudo", "soft_labels"): [
        ("drawn voxels are weighed", "certain = (person != IGNORE) | (cleaned != plain)", "certain = cleaned != plain"),
        ("cleaned voxels are weighed", "(person != IGNORE) | (cleaned != plain)", "person != IGNORE"),
    ],
    ("self-training", "joint", "soft_labels"): [
        ("soft targets are left aside", "if view.targets is not None:", "if False:"),
    ],
    ("self-training", "sampling", "soft_labels"): [
        ("targets count where labels do not", "(-1, views)) * (labels != IGNORE).unsqueeze(2)", "(-1, views))"),
    ],
    ("self-training", "crf", "crf"): [
        ("unlike neighbours attract", "- unlike / (2 * CONTRAST**2)", "+ unlike / (2 * CONTRAST**2)"),
        ("neighbours repel", "(unary + weight * message)", "(unary - weight * message)"),
        ("one side of a pair only", "            message[:, *there] += kernel * current[:, *here]\n", ""),
        ("distance in voxels", "(n * mm / finest) ** 2", "n**2"),
    ],
    ("self-training", "finetune", "finetune"): [
        ("slices count beside whole labels", "if slices_alone else []", "if annotated else []"),
    ],
    ("self-training", "pseudo", "pseudo"): [
        ("shapes between drawn slices are left aside",
         "with_known_shapes(own, person, drawn, source.spacing) if drawn else own", "own"),
        ("confidence without the shapes", "confidence = likely.max(0)", "confidence = own.max(0)"),
        ("shapes hide a model that finds nothing", "_classes(model, own, options)[1] if drawn else cleaned", "cleaned"),
        ("pseudo-labels take no time", '"seconds": round(time.monotonic() - started, 1)', '"seconds": 0.0'),
        ("drawn slices are overwritten", "& (drawn != IGNORE), drawn, result)", "& (drawn != IGNORE), result, result)"),
        ("growth is shrinking", "second[name] > GROWTH * voxels", "voxels > GROWTH * second[name]"),
        ("rejected cases are used", "name not in options.reject and ", ""),
    ],
    ("semi-supervised", "semi", "semi"): [
        ("the teacher stands still", "ema_update(self.module.teacher, self.module.student, TEACHER_DECAY)", "pass"),
        ("labels are not mixed", "mixed_targets(labels, labels[partner], share", "mixed_targets(labels, labels, share"),
        ("unlabelled patches move the running statistics", "        part.momentum = 0.0\n", "        pass\n"),
        ("full consistency from the start", "ramp(progress) * self.weight", "self.weight"),
    ],
    ("labels", "losses", "losses"): [
        ("ignored voxels counted", "weight = (labels != IGNORE)", "weight = (labels == labels)"),
        ("half the overlap in Dice", "(2 * overlap + smooth)", "(overlap + smooth)"),
        ("mean over all voxels, not the counted ones", "sums[3 * k + 1].clamp_min(tiny)", "weight.numel()"),
    ],
    ("labels", "labels", "labels"): [
        ("annotated slices of another axis", "np.moveaxis(mask, 2 - axis, 0)", "np.moveaxis(mask, axis, 0)"),
        ("unannotated voxels are background", "annotated)] = IGNORE", "annotated)] = 0"),
    ],
    ("labels", "preprocess", "preprocess_label"): [
        ("resampled labels count everywhere", "result[~counted] = IGNORE", "result[~counted] = 0"),
    ],
    ("geometry", "geometry", "geometry"): [
        ("the origin ignores flips", "[geometry.size[axis] - 1 if flip else 0 for", "[0 if flip else 0 for"),
        ("directions transposed", "self.matrix[:3, :3].T + np.asarray", "self.matrix[:3, :3] + np.asarray"),
        ("spacings not reordered", "triple(geometry.spacing[axis] for axis in order)", "geometry.spacing"),
    ],
    ("geometry", "preprocess", "preprocess"): [
        ("the training grid is half a voxel off",
         "(np.array(size) - 1) / 2 * spacing", "(np.array(size)) / 2 * spacing"),
        ("aliasing when shrinking", "width = max(ratio, 1.0)", "width = 1.0"),
    ],
    ("cache", "cache", "cache cache_faults"): [
        ("a key without the file's content", "_key(self._settings, [hashes.of(path) for path in case.images])",
         "_key(self._settings, [str(path) for path in case.images])"),
        ("a key without the annotated slices", "classes.ignore, slices)", "classes.ignore)"),
        ("labels continue outside the volume", "strict=True)], IGNORE, np.uint8)", "strict=True)], 0, np.uint8)"),
    ],
    ("cache", "store", "cache cache_faults"): [
        ("damaged entries are trusted", "    stat = path.stat()\n", "    return True\n"),
        ("a half-written entry counts", "return info if sound and _ARRAY in info[\"files\"] else None", "return info"),
    ],
    ("checkpoint", "trainer", "trainer resume"): [
        ("optimiser not restored", 'restore_optimiser(self.optimiser, unprefixed("optimiser", tensors))', "pass"),
        ("average not restored", 'self.average.load_state_dict(unprefixed("average", tensors))', "pass"),
        ("chance does not follow the step", "        seed_step(self.config.seed, self.state.step)\n", ""),
        ("weights that are no numbers are saved", "raise self._not_finite(\"A weight is\")", "pass"),
        ("micro-batches are added, not averaged",
         "self._backward(losses, 1 / len(parts))", "self._backward(losses, 1)"),
        ("the last instead of the best weights", "or figures[\"score\"] > state.best", "or True"),
        ("the first of equal scores", " or figures[\"score\"] == state.best", ""),
    ],
    ("checkpoint", "checkpoint", "checkpoint"): [
        ("files of newer versions are read", "if version > FORMAT_VERSION:", "if False:"),
        ("channels are not rescaled", " * source.shape[1] / target.shape[1]", ""),
    ],
    ("metrics", "metrics", "evaluate"): [
        ("Dice without its factor 2", "2 * int((prediction & reference).sum())", "int((prediction & reference).sum())"),
        ("HD95 in voxels", "[float(step) for step in spacing]", "[1.0 for step in spacing]"),
        ("HD95 in one direction", "max(np.percentile(forward, 95), np.percentile(backward, 95))",
         "np.percentile(forward, 95)"),
        ("the largest distance instead of the 95th percentile",
         "max(np.percentile(forward, 95), np.percentile(backward, 95))", "max(forward.max(), backward.max())"),
        ("voxels that do not count are scored", "prediction & counted, reference & counted", "prediction, reference"),
    ],
    ("metrics", "evaluate", "evaluate"): [
        ("spacings in the wrong order", "geometry.spacing[::-1]", "geometry.spacing"),
    ],
    ("inference", "inference", "inference"): [
        ("mirrored predictions are not mirrored back", "plan).flip(axes) for axes", "plan) for axes"),
        ("padding cut off at the wrong end", "narrow(axis, 0, n)", "narrow(axis, probabilities.shape[axis] - n, n)"),
        ("tiles do not overlap", "overlap=OVERLAP, mode", "overlap=0.0, mode"),
        ("tiles are blended without weights", 'mode="gaussian"', 'mode="constant"'),
    ],
    ("inference", "components", "pseudo predict"): [
        ("the smallest component is kept", "1 + int(sizes.argmax())", "1 + int(sizes.argmin())"),
    ],
    ("inference", "predict", "predict"): [
        ("class indices instead of label values", "np.asarray(model.values, np.int32)[classes]", "classes"),
        ("scans and labels are replaced by predictions", "[*project.files, *(", "[*("),
    ],
    ("data", "project", "project"): [
        ("test cases are pre-trained on", 'if case.role != "test")\n\n    @property\n    def labels',
         ")\n\n    @property\n    def labels"),
    ],
    ("data", "manifest", "manifest project bad_projects"): [
        ("unknown patients are one patient", "value.strip().lower() not in NO_VALUE}", "value}"),
        ("names may hold separators", "any(char in '/\\\\:*?\"<>|,' or", "any("),
    ],
    ("data", "files", "files"): [
        ("header files may point anywhere", 'and ".." not in parts', ""),
        ("a failed write leaves its half", "temporary.unlink(missing_ok=True)", "pass"),
    ],
}  # fmt: skip
