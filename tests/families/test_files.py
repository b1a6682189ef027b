"""A base model is known by the content of its files, wherever they lie."""

from __future__ import annotations

from pathlib import Path

from runner.families.files import folder_hash


def test_a_part_that_is_a_link_counts_by_what_it_leads_to(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_text(name)
    (model := tmp_path / "model").mkdir()
    (model / "model_index.json").write_text("{}")
    seen = {folder_hash(model)}
    for name in ("one", "other"):
        (model / "unet").unlink(missing_ok=True)
        (model / "unet").symlink_to(tmp_path / name)
        seen.add(folder_hash(model))
    assert len(seen) == 3
    (model / "unet").unlink()
    (tmp_path / "other").rename(model / "unet")
    assert folder_hash(model) in seen, "as if it lay there"
    (model / "unet" / "above").symlink_to(model)
    assert folder_hash(model) in seen
