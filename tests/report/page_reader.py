"""Reads a finished page: parsed as HTML, or opened in a headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "wbr"})
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
)  # fmt: skip


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]


@dataclass
class Page(HTMLParser):
    """The elements and the text of a page; `unclosed` must be empty at the end."""

    html: str
    elements: list[Element] = field(default_factory=list)
    text: str = ""
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.unclosed.append(tag)
        if tag == "wbr":  # a place for a line end, inside a word
            self.text = self.text.removesuffix(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        opened = self.unclosed.pop() if self.unclosed else "nothing"
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        if not self.unclosed or self.unclosed[-1] not in ("style", "script"):
            self.text += data + " "

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def tags(self) -> Counter[str]:
        return Counter(element.tag for element in self.elements)


class Browser:
    """A headless Chromium with a fresh profile for each call."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def _run(self, page: Path, *flags: str, fragment: str = "") -> str:
        address = page.resolve().as_uri() + (f"#{fragment}" if fragment else "")
        profile = self._folder / "profile"
        shutil.rmtree(profile, ignore_errors=True)
        command = [self._program, *FLAGS, f"--user-data-dir={profile}", *flags, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def dom(self, page: Path, *flags: str, fragment: str = "") -> str:
        """The document after its scripts have run, opened at a place in it."""
        return self._run(page, "--dump-dom", *flags, fragment=fragment)

    def screenshot(self, page: Path, *flags: str, size: tuple[int, int] = (1280, 900)) -> Image.Image:
        """What a reader sees first."""
        target = self._folder / "screenshot.png"
        self._run(page, f"--screenshot={target}", f"--window-size={size[0]},{size[1]}", *flags)
        return Image.open(target).convert("RGB")


def find_browser(folder: Path) -> Browser:
    """A browser, or a skip with the reason."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        # A browser is not a Python package; .ci/run installs one, so nothing is skipped there.
        pytest.skip("no Chromium on the PATH: the page cannot be looked at as a reader sees it")
    return Browser(program, folder)
