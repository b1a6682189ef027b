"""Writes docs/correctness.md from the docstrings of the tests beside it: python -m tests.correctness.page"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "correctness.md"
PACKAGES = ("diffusers", "peft", "accelerate", "transformers", "torch")
SCRIPTS = "diffusers' example scripts at commit 58eb52c (2026-08-23)"
HEAD = """# Correctness

This page lists what is known to go wrong in other trainers, and what happens here. Each entry is a test: it computes
what happens elsewhere, with the library's own function or the same arithmetic, beside what happens here. Run them all:

```
.venv/bin/python -m pytest tests/correctness
```

Examined: {scripts};
{versions}.
Later versions may differ: if a test no longer finds the fault, it fails, and its entry is removed. No entry says more
than its test shows.

Other tests show that a training [equals](../tests/train/test_reference.py) plain calls to diffusers, peft and torch on
the same samples, that every [saved file](../tests/artifacts/test_files.py) is loaded back and compared, and that a job
[in a pack](../tests/train/test_packing.py) gives the same result as alone.

(This page is written by `python -m tests.correctness.page`.)
"""


def page() -> str:
    """The whole page."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    versions = [f"{name} {found[1]}" for name in PACKAGES if (found := re.search(rf"^{name}==(\S+)", pinned, re.M))]
    parts = [HEAD.format(scripts=SCRIPTS, versions=", ".join(versions))]
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and "Elsewhere:" in _doc(node):
                parts.append(_entry(node, file))
    return "\n".join(parts)


def _entry(node: ast.FunctionDef, file: Path) -> str:
    title, elsewhere, here = _doc(node).split("\n\n")
    said = [textwrap.fill(" ".join(text.split()), 120).replace(f"{word}:", f"**{word}:**", 1)
            for word, text in (("Elsewhere", elsewhere), ("Here", here))]  # fmt: skip
    command = f".venv/bin/python -m pytest {file.relative_to(ROOT)} -k {node.name}"
    return "\n".join([f"## {title}", "", *(f"{text}\n" for text in said), f"```\n{command}\n```\n"])


def _doc(node: ast.FunctionDef) -> str:
    return ast.get_docstring(node) or ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
