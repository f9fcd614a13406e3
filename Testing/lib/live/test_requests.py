"""Requests: what lines mean, and lines from a stream and from a file that grows."""

import os
import time

import pytest

from MedSSLLib.core.errors import InputError
from MedSSLLib.live.requests import (
    LONGEST,
    FromFile,
    FromStream,
    Lines,
    Request,
    parse_request,
    requests_from,
)
from Testing.lib.case_helpers import each


@each(
    "line, request_",
    [
        ("show case03", Request("show", "case03")),
        ("show case03 2 17", Request("show", "case03", (2, 17))),
        ("show left knee 2 17", Request("show", "left knee", (2, 17))),
        ("show visit 2", Request("show", "visit 2")),
        ("show visit 3 17", Request("show", "visit 3 17")),  # there is no axis 3
        ("  suggest 4\r", Request("suggest", count=4)),
        ("save good one", Request("save", "good one")),
        ("refresh", Request("refresh")),
        ("pause", Request("pause")),
        ("resume", Request("resume")),
        ("stop", Request("stop")),
    ],
)
def test_a_line_is_a_request(line, request_):
    assert parse_request(line) == request_


@each("line", ["", "fly", "Show case"])
def test_other_lines_are_refused_with_what_is_known(line):
    with pytest.raises(InputError, match="Known are show, suggest"):
        parse_request(line)


@each("line", ["show", "suggest", "suggest 0", "suggest -1", "suggest x", "stop now", "save"])
def test_a_request_that_is_written_wrongly_is_refused_with_its_form(line):
    with pytest.raises(InputError, match=f"cannot be read.* Write {line.split()[0]}"):
        parse_request(line)


def test_lines_come_whole_however_bytes_are_cut():
    lines, data = Lines(), "show ä\nstop\n\nsuggest 2\npa".encode()
    found = [text for byte in data for text in lines.feed(bytes([byte]))]
    assert found == ["show ä", "stop", "suggest 2"]
    assert lines.feed(b"use\n") == ["pause"]
    assert [len(text) for text in lines.feed(b"x" * (LONGEST + 1))] == [LONGEST], (
        "memory is bounded"
    )


def test_a_file_is_followed_from_where_it_was_read(tmp_path):
    path = tmp_path / "requests"
    source = FromFile(path)
    assert source.lines() == []
    path.write_text("show a\nsho")
    assert source.lines() == ["show a"]
    with open(path, "a") as stream:
        stream.write("w b\nstop\n")
    assert source.lines() == ["show b", "stop"] and source.lines() == []


def test_the_end_of_the_stream_asks_to_stop():
    reader, writer = os.pipe()
    with open(reader, "rb") as stream:
        source = FromStream(stream)
        os.write(writer, b"show a\n")
        found = _until(source, 1)
        os.close(writer)
        assert [*found, *_until(source, 1)] == ["show a", "stop"]


def test_without_requests_nobody_asks():
    source = requests_from(None)
    started = time.monotonic()
    source.wait(0.02)
    assert source.lines() == [] and time.monotonic() - started >= 0.02


def _until(source, count):
    found, latest = [], time.monotonic() + 10
    while len(found) < count and time.monotonic() < latest:
        source.wait(0.05)
        found += source.lines()
    return found
