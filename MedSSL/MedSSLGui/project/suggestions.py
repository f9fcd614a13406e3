"""Which slices to draw on next: the library's suggestions (suggestions.json), else evenly spread ones."""


def readSuggestions(folder):
    """The entries of the project's suggestions.json, [] where there is none that can be read."""
    from MedSSLLib.core.errors import InputError
    from MedSSLLib.core.files import read_json

    path = folder / "suggestions.json"
    try:
        return read_json(path, format_name="medssl-suggestions", newest_version=1)["slices"]
    except (InputError, KeyError):
        return []


def suggestedSlices(entries, case):
    """{axis: sorted indices} that are suggested in a case."""
    result = {}
    for entry in entries:
        if entry["case"] == case:
            result.setdefault(int(entry["axis"]), []).append(int(entry["index"]))
    return {axis: sorted(indices) for axis, indices in result.items()}


def reason(entries, case, axis, index):
    """Why a slice is suggested, "" where it is not."""
    for entry in entries:
        if (entry["case"], int(entry["axis"]), int(entry["index"])) == (case, axis, index):
            return str(entry.get("reason") or "")
    return ""


def nextCase(entries, case, isDone=None):
    """The case after this one in the order of the suggestions that has slices left, None where there is no other.

    isDone(case, axis, index): whether a slice is annotated already.
    """
    names = []
    for entry in entries:
        done = isDone is not None and isDone(entry["case"], int(entry["axis"]), int(entry["index"]))
        if not done and entry["case"] not in names:
            names.append(entry["case"])
    every = list(dict.fromkeys(entry["case"] for entry in entries))
    start = every.index(case) + 1 if case in every else 0
    for name in every[start:] + every[:start]:
        if name != case and name in names:
            return name
    return None


def evenSlices(size, count, extent=None):
    """`count` slice numbers spread evenly over `extent` (first, last), or over the middle 80 % of `size`."""
    first, last = extent or (round(0.1 * (size - 1)), round(0.9 * (size - 1)))
    if count <= 1:
        return [(first + last) // 2]
    return sorted({round(first + (last - first) * n / (count - 1)) for n in range(count)})
