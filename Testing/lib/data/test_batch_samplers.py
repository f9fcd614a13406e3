"""What a batch for meta labels is made of: patients, cases and slice positions, in any batch size
and any data.
"""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from MedSSLLib.core.errors import InputError
from MedSSLLib.data.batch_samplers import MetaPicker, matched_fraction, matched_in_another_patient
from MedSSLLib.data.meta_labels import build_metalabels
from MedSSLLib.data.patch_samplers import Pick
from MedSSLLib.data.random import own_samples
from MedSSLLib.project.manifest import Case
from Testing.lib.case_helpers import each


def picker(cases_of, samples, dim=2, slices=12, seed=0, **metadata):
    """A picker over patients with `cases_of[p]` cases each; metadata columns by functions of
    (patient, case).
    """
    cases = [
        Case(
            f"p{p}c{c}",
            (),
            metadata={"patient": f"P{p}", "phase": f"phase {c}"}
            | {key: value(p, c) for key, value in metadata.items()},
        )
        for p, count in enumerate(cases_of)
        for c in range(count)
    ]
    depths = [slices(n) if callable(slices) else slices for n in range(len(cases))]
    shapes = {case.name: (1, depth, 16, 16) for case, depth in zip(cases, depths, strict=True)}
    names = ("patient", "position", "phase", *metadata) if metadata else ()
    meta = build_metalabels(cases, depths if dim == 2 else None, names)
    return MetaPicker(SimpleNamespace(shape=shapes.__getitem__), cases, samples, meta, dim, seed)


def batch(pick, step):
    return pick(np.random.default_rng([pick.seed, step, 3]), step)


def patient(sample):
    return sample.name.split("c")[0]


def by_patient(picks):
    return Counter(map(patient, picks))


def keys(picks):
    return [(p.name, p.slice) for p in picks]


DATA = {
    "one case": [1] * 20,
    "two cases": [2] * 20,
    "unequal": [1, 2, 1, 3, 1, 2, 5, 1, 1, 2] * 2,
    "three": [3] * 9,
}


@each("cases_of", DATA.values(), ids=DATA)
@each("samples", [*range(4, 34), 48, 64])
def test_slices_of_a_batch(cases_of, samples):
    pick = picker(cases_of, samples)
    for step in range(12):
        picks = batch(pick, step)
        assert len(picks) == samples == len(set(keys(picks)))
        assert len(by_patient(picks)) >= 2 and min(by_patient(picks).values()) >= 2
        for name in ("patient", "position"):
            assert matched_fraction(picks)[name] == 1.0
        parts = Counter(p.meta["position"] for p in picks)
        assert len(parts) == min(4, samples // 2)
        assert all(
            p.meta == pick.meta.of([c.name for c in pick.cases].index(p.name), p.slice)
            for p in picks
        )


@each("cases_of", DATA.values(), ids=DATA)
@each("samples", range(2, 17))
def test_volumes_of_a_batch(cases_of, samples):
    pick = picker(cases_of, samples, dim=3)
    for step in range(12):
        picks = batch(pick, step)
        assert len(picks) == samples == len(set(keys(picks)))
        assert len(by_patient(picks)) >= 2 and all(p.slice == 0 for p in picks)
        if min(cases_of) > 1 and samples > 3:
            alone = [count for count in by_patient(picks).values() if count == 1]
            assert len(alone) <= (samples % 2 if max(cases_of) == 2 else 0)


@each(("samples", "patients"), [(16, 2), (24, 3), (32, 4), (64, 8)])
def test_full_batches_are_patients_x_parts_x_two_cases(samples, patients):
    pick = picker([2] * 20, samples)
    for step in range(10):
        picks = batch(pick, step)
        assert set(by_patient(picks).values()) == {8} and len(by_patient(picks)) == patients
        assert set(Counter((p.name, p.meta["position"]) for p in picks).values()) == {1}
    one_each = batch(picker([1] * 20, samples), 0)
    assert set(by_patient(one_each).values()) == {4}


@each(
    ("cases_of", "samples", "slices", "dim"),
    [
        ([1, 1], 32, 12, 2),
        ([2, 1], 64, 12, 2),
        ([1, 1, 1], 64, 30, 2),
        ([3, 3], 24, 4, 2),
        ([1, 4], 20, 4, 2),
        ([1, 1, 2], 4, 12, 3),
        ([4, 4], 8, 12, 3),
    ],
)
def test_few_patients_fill_a_batch_without_repeats_while_there_are_slices(
    cases_of, samples, slices, dim
):
    pick = picker(cases_of, samples, dim=dim, slices=slices)
    room = sum(cases_of) * (slices if dim == 2 else 1)
    for step in range(8):
        picks = batch(pick, step)
        assert len(picks) == samples and len(by_patient(picks)) == len(cases_of)
        assert len(set(keys(picks))) == min(samples, room)


def test_no_case_lies_twice_in_a_batch_across_epochs():
    pick = picker([2] * 5, 32)
    for step in range(20):
        assert set(by_patient(batch(pick, step)).values()) == {8}


@each("slices", [1, 2, 3, 5, lambda n: 1 + n % 6])
@each("samples", [4, 7, 8, 12, 32])
def test_shallow_volumes(slices, samples):
    pick = picker([2, 1, 2, 1] * 6, samples, slices=slices)
    depth = {case.name: pick.reader.shape(case.name)[1] for case in pick.cases}
    for step in range(8):
        picks = batch(pick, step)
        assert len(picks) == samples == len(set(keys(picks))) and len(by_patient(picks)) >= 2
        assert all(0 <= p.slice < depth[p.name] for p in picks)
    tiny = batch(picker([1, 1], 9, slices=2), 0)  # four slices in all
    assert len(tiny) == 9 and len(set(keys(tiny))) == 4


def test_a_batch_is_a_function_of_seed_and_step():
    one, two = picker(DATA["unequal"], 24), picker(DATA["unequal"], 24)
    batch(two, 9), batch(two, 2)
    assert [batch(one, step) for step in range(4)] == [batch(two, step) for step in range(4)]
    assert (
        keys(batch(one, 0))
        != keys(batch(one, 1))
        != keys(batch(picker(DATA["unequal"], 24, seed=1), 1))
    )


@each("samples", [4, 6, 8, 24])
def test_over_the_steps_everything_occurs(samples):
    pick = picker([2, 1, 3] * 4, samples)
    picks = [p for step in range(200) for p in batch(pick, step)]
    assert set(p.name for p in picks) == {case.name for case in pick.cases}
    assert {(p.meta["position"], p.meta["phase"]) for p in picks} == {
        (i, j) for i in range(4) for j in range(3)
    }
    assert len({p.slice for p in picks}) == 12
    parts = Counter(p.meta["position"] for p in picks)
    assert max(parts.values()) < 1.4 * min(parts.values())
    assert max(by_patient(picks).values()) < 3 * min(by_patient(picks).values())


def test_patients_come_equally_often():
    counts = Counter(
        name for step in range(25) for name in by_patient(batch(picker([2] * 10, 32), step))
    )
    assert max(counts.values()) - min(counts.values()) <= 3 and sum(counts.values()) == 100


def test_the_two_cases_of_a_patient_differ():
    """Three frames in diastole, three in systole: always one of each, and every frame in its
    turn.
    """
    pick = picker(
        [6] * 6, 16, phase=lambda p, c: "ED" if c < 3 else "ES", arm=lambda p, c: f"arm {c % 2}"
    )
    seen = Counter()
    for step in range(60):
        chosen = {p.name: (p.meta["phase"], p.meta["arm"]) for p in batch(pick, step)}
        for who in {name.split("c")[0] for name in chosen}:
            (phase, arm), (other, other_arm) = (
                value for name, value in chosen.items() if name.startswith(f"{who}c")
            )
            assert phase != other and arm != other_arm
        seen.update(name[-1] for name in chosen)
    assert set(seen) == set("012345")
    partly = picker([3] * 6, 16, phase=lambda p, c: ("ED", "ES", "")[c])
    pairs = Counter(
        frozenset(p.meta["phase"] for p in batch(partly, step) if patient(p) == who)
        for step in range(40)
        for who in by_patient(batch(partly, step))
    )
    both, one = pairs[frozenset({0, 1})], pairs[frozenset({0, -1})] + pairs[frozenset({1, -1})]
    assert both > one > 0, "a missing phase is not another phase"


def test_labels_may_be_missing():
    pick = picker([2] * 8, 16, group=lambda p, c: ("", "sick", "well", "NA")[p % 4])
    for step in range(10):
        picks = batch(pick, step)
        known = np.mean([p.meta["group"] >= 0 for p in picks])
        assert len(picks) == 16 and matched_fraction(picks)["group"] == known


@each("samples", [8, 16, 32])
def test_each_of_two_processes_sees_every_position(samples):
    pick = picker([2] * 20, samples)
    positions = [Counter(), Counter()]
    for step in range(12):
        picks = batch(pick, step)
        for part in range(2):
            positions[part].update(picks[i].meta["position"] for i in own_samples(samples, part, 2))
    for counts in positions:
        assert set(counts) == {0, 1, 2, 3}
        assert max(counts.values()) < 2.5 * min(counts.values())


def test_samples_are_in_random_order():
    """With as many processes as a patient has samples, one process may hold several of a patient,
    or none.
    """
    pick = picker([2] * 20, 32)
    shares = Counter()
    for step in range(20):
        picks = batch(pick, step)
        shares.update(by_patient([picks[i] for i in own_samples(32, 3, 8)]).values())
        assert len(by_patient(picks[:8])) > 1
    assert shares[1] and shares[2]


@each(("samples", "dim"), [(1, 2), (2, 2), (3, 2), (1, 3)])
def test_batches_that_cannot_hold_two_patients_are_refused(samples, dim):
    with pytest.raises(InputError, match="two patients.*--batch " + str({2: 4, 3: 2}[dim])):
        picker([2] * 4, samples, dim=dim)


def test_shares_count_the_own_case_or_other_patients_only():
    values = [("a", 0, 0), ("a", 0, 1), ("b", 1, 1), ("c", 0, 2), ("c", 2, -1), ("c", 2, -1)]
    picks = [
        Pick(f"{who}{i}", 0, {"patient": "abc".index(who), "group": group, "phase": phase})
        for i, (who, group, phase) in enumerate(values)
    ]
    cases = [Case(p.name, (), metadata={"patient": p.name[0]}) for p in picks]
    assert matched_fraction(picks) == pytest.approx(
        {"patient": 5 / 6, "group": 5 / 6, "phase": 2 / 6}
    )
    assert matched_in_another_patient(picks, cases) == pytest.approx(
        {"group": 3 / 6, "phase": 2 / 6}
    )
