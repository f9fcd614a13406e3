"""Benchmark results in words: which way of training to take, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from MedSSLLib.benchmark.records import (
    BASELINE,
    GOES_ON,
    base_row,
    baseline_of,
    difference,
    given,
    parse_row,
)
from MedSSLLib.benchmark.tables import (
    NOTES,
    SHOWN,
    Study,
    dice_interval,
    markdown_table,
    mean_of,
    shown,
    table_row,
)
from MedSSLLib.core.words import duration_words

if TYPE_CHECKING:
    from MedSSLLib.benchmark.protocol import Protocol

LEAST_CHOICES = 3  # of labelled volumes, for a recommendation; not from the paper
LONGER = 1.05  # times the baseline's length: a time limit is not kept to the second


def recommendations(study: Study) -> list[str]:
    """Which method suits these data, a sentence or two per number of labels, with the evidence.

    Rows of a few slices are compared among themselves, not with rows that see whole labels. The
    best row is chosen after seeing all, so its interval is widened for the number of rows compared
    (Bonferroni).
    """
    texts = []
    for count in study.counts:
        for baseline in dict.fromkeys(map(baseline_of, study.rows(count))):
            texts.append(_recommendation(study, count, baseline))
    return texts


def _recommendation(study: Study, count: str, baseline: str) -> str:
    """The words for rows of as many annotated slices as `baseline` has."""
    rows = [row for row in study.rows(count) if baseline_of(row) == baseline]
    labels = _labels_words(study.volumes(count), baseline)
    if not study.common(count):
        return (
            f"{labels}: nothing to compare, "
            "as no choice of labelled volumes was scored with every row."
        )
    others = [row for row in rows if row != baseline]
    level = 1 - 0.05 / max(1, len(others))
    gaps = {}
    for row in others:
        if gap := difference(study.compared(count), row, baseline, level):
            gaps[row] = gap
    if not gaps:
        means = [f"{row} {dice_interval(study.compared(count, row))[0]:.3f}" for row in rows]
        return f"{labels}: nothing to compare ({', '.join(means)})."
    best = max(gaps, key=lambda row: gaps[row]["mean"])
    verdict = _verdict(best, baseline, gaps[best], level)
    return f"{labels}: {verdict}{_longer(study, count, best)}"


def _labels_words(volumes: int, baseline: str) -> str:
    words = f"With {volumes} labelled volume{_plural(volumes)}"
    if baseline == BASELINE:
        return words
    slices = baseline.removeprefix(f"{BASELINE}-").replace("-", " ")
    return f"{words} ({slices} of each)"


def _plural(count: int) -> str:
    return "" if count == 1 else "s"


def _verdict(best: str, baseline: str, gap: Mapping[str, Any], level: float) -> str:
    """What to do, and the evidence."""
    count = len(gap["choices"])
    choices = f"{count} choice{_plural(count)} of labelled volumes"
    interval = f"{100 * level:.3g} % interval {gap['low']:+.3f} to {gap['high']:+.3f}"
    if count < LEAST_CHOICES:
        return _first_look(best, baseline, gap, interval)
    evidence = f"{gap['mean']:+.3f} Dice against {baseline}, {interval}, over {choices}"
    if gap["low"] > 0:
        return f"take {best} ({evidence})."
    if gap["high"] < 0:
        return f"stay with {baseline}; the best other, {best}, is worse ({evidence})."
    simplest = f"{baseline.capitalize()} is the simplest."
    return f"no difference shown; the best beside {baseline} is {best} ({evidence}). {simplest}"


def _first_look(best: str, baseline: str, gap: Mapping[str, Any], interval: str) -> str:
    """What too few choices of labelled volumes say, plainly."""
    count, mean = len(gap["choices"]), gap["mean"]
    other = "a random start" if baseline == BASELINE else baseline
    amount = f"{abs(mean):.3f} {'better' if mean >= 0 else 'worse'} than {other}"
    tried = "the one choice" if count == 1 else f"the {_WORDS.get(count, count)} choices"
    return (
        f"{best} was {amount} in {tried} of labelled volumes tried; "
        f"{_WORDS[LEAST_CHOICES]} are needed for advice (Dice; {interval}, which speaks of test "
        "cases only, not of other choices)."
    )


_WORDS = {2: "two", 3: "three"}


def _longer(study: Study, count: str, row: str) -> str:
    """The caveat of a row that trained longer than the baseline.

    By time where time was the limit, else by steps; with the row that trained on labels alone for
    that length, also what self-training has over it.
    """
    baseline, key, unit = baseline_of(row), "steps", "steps"
    if given(study.settings, "minutes") and not given(study.settings, "measured_steps"):
        key, unit = "training_s", "s"
    own = mean_of(record.get(key) for record in study.compared(count, row))
    base = mean_of(record.get(key) for record in study.compared(count, baseline))
    if own is None or base is None or own <= LONGER * base:
        return ""
    said = f" {row} trained longer than {baseline}, {own:.0f} {unit} against {base:.0f}"
    as_long = base_row(row) + "+longer"
    gap = difference(study.compared(count), row, as_long)
    if not gap:
        return f"{said}: part of a gain may come from the length."
    return (
        f"{said}; against {as_long}, which trained as long on the labels alone, it has "
        f"{gap['mean']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})."
    )


def markdown(studies: Sequence[Study]) -> str:
    """Tables and recommendations as Markdown."""
    parts = []
    for study in studies:
        parts.append(f"## {study.data} ({study.length() or 'the steps of the preset'})")
        for count in study.counts:
            rows = [shown(table_row(study, count, name)) for name in study.rows(count)]
            parts += [f"### {study.volumes(count)} labelled", markdown_table(SHOWN, rows)]
        parts.append("\n".join(f"- {text}" for text in recommendations(study)))
    parts += NOTES
    return "\n\n".join(parts) + "\n"


def forecast(protocol: Protocol, runs: int, test_cases: int) -> str:
    """How much is to be done, and how long it takes where minutes say so."""
    rows = [parse_row(row) for row in protocol.rows]
    encoders = {row.encoder for row in rows} - {BASELINE}
    before = f" and {len(encoders)} pre-training{'s' * (len(encoders) > 1)}" if encoders else ""
    work = f"{runs} trainings{before}, each training scored on {test_cases} test cases"
    if protocol.minutes is None or (encoders and protocol.pretrain_minutes is None):
        return f"To do: {work}. The time left shows once the first is done"
    longer = sum(row.on_top in ("longer", *GOES_ON) for row in rows) * runs / len(rows)
    minutes = protocol.minutes * (runs + longer)
    minutes += (protocol.pretrain_minutes or 0) * len(encoders)
    return f"To do: {work}. Training takes {duration_words(60 * minutes)}, predicting comes on top"
