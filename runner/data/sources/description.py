"""`dataset_info.json` in a folder of images: the prompts of a DreamBooth data set and where its class images are."""

from __future__ import annotations

import json
import os
from typing import Any

from runner.data.faults import Faults, listed, nearest
from runner.data.sources.found import Found
from runner.data.sources.listing import DESCRIPTION_NAME
from runner.system.printable import whole
from runner.system.values import as_typed

KEYS = ("instance_prompt", "class_prompt", "class_data_dir")


def read_description(found: Found, faults: Faults) -> None:
    """Set the prompts and the class folder of `found` if its root has such a file; adds to `faults`.

    A relative `class_data_dir` is relative to the data set's folder.
    """
    path = found.root / DESCRIPTION_NAME
    if not path.is_file():
        return
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        faults.add("description", f"{DESCRIPTION_NAME}: not valid JSON ({error}). Repair or remove it.")
        return
    if not isinstance(described, dict):
        faults.add("description", f"{DESCRIPTION_NAME}: must be an object with keys among {listed(KEYS)}.")
        return
    if "features" in described:
        # The `datasets` library writes a file with the same name, which says nothing about prompts.
        return
    values = {key: _text(key, value, faults) for key, value in described.items()}
    found.instance_prompt = values.get("instance_prompt")
    found.class_prompt = values.get("class_prompt")
    if folder := values.get("class_data_dir"):
        found.class_folder = found.root / folder
        if not os.path.isdir(found.class_folder):  # Path.is_dir raises for names the system does not allow
            faults.add(
                "description",
                f"{DESCRIPTION_NAME}: class_data_dir={folder!r} is not a folder. Correct the path or remove the key.",
            )


def _text(key: str, value: Any, faults: Faults) -> str | None:
    if key not in KEYS:
        hint = nearest(key, KEYS) or f"; known keys: {listed(KEYS)}"
        faults.add("description", f"{DESCRIPTION_NAME}: unknown key {key!r}{hint}. Rename or remove it.")
        return None
    if value is not None and not isinstance(value, str):
        faults.add("description", f"{DESCRIPTION_NAME}: {key}={as_typed(value)} must be text. Put it in quotes.")
        # It may be the caption: do not report missing captions as well.
        return str(value) if key == "instance_prompt" else None
    if value is not None and whole(value) != value:
        faults.add("description", f"{DESCRIPTION_NAME}: {key}={value!r} contains half a character. Type it again.")
        return None
    return value
