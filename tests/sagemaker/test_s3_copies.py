"""Copies of S3 objects, and base models in archives: what is transferred, what is kept, what is refused."""

from __future__ import annotations

import io
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from runner.container.settings import with_open_models
from runner.errors import ModelError
from runner.families.files import (
    check_fetched,
    check_model,
    fingerprint,
    folder_hash,
    planning_folder,
    snapshot,
)
from runner.families.stored import laid_out, source_of
from runner.s3 import Location
from runner.s3.access import NoAccess
from runner.s3.mirror import Mirror
from runner.s3.objects import download
from runner.system.archive import lay_out
from tests.sagemaker.buckets import fetched, packed, put, settings_of, write
from tests.sagemaker.stand_in import StandIn


class Mirrored:
    """A mirror of a prefix."""

    def __init__(self, aws: StandIn, uri: str) -> None:
        self.aws, self.mirror = aws, Mirror(Location.of_input(uri, files=(".parquet",)))

    def bring(self) -> tuple[dict[str, str], list[str]]:
        """Bring the mirror up to date; returns its files, and the keys that were transferred."""
        self.aws.requests.clear()
        path = self.mirror.bring()
        files = {file.relative_to(path).as_posix(): file.read_text() for file in path.rglob("*") if file.is_file()}
        return files, sorted(fetched(self.aws))


def test_only_what_changed_travels_and_what_is_gone_disappears(aws: StandIn) -> None:
    for name in ("a.txt", "b/c.txt", "b/d.txt", ".hidden", "e/"):
        write(aws, f"data/{name}", f"first {name}" if not name.endswith("/") else "")
    write(aws, "data2/x.txt", "a neighbour")
    copy = Mirrored(aws, f"s3://{aws.bucket}/data")
    files, travelled = copy.bring()
    assert files == {name: f"first {name}" for name in ("a.txt", "b/c.txt", "b/d.txt")}
    assert travelled == ["data/a.txt", "data/b/c.txt", "data/b/d.txt"]

    assert copy.bring() == (files, [])

    write(aws, "data/a.txt", "other a.txt")
    aws.s3.delete_object(Bucket=aws.bucket, Key="data/b/c.txt")
    (copy.mirror.path / "b" / "stray.txt").write_text("nobody's")
    assert copy.bring() == ({"a.txt": "other a.txt", "b/d.txt": "first b/d.txt"}, ["data/a.txt"])
    assert copy.mirror.is_complete

    # A folder becomes an object, and a copy is damaged.
    aws.s3.delete_object(Bucket=aws.bucket, Key="data/b/d.txt")
    write(aws, "data/b", "b")
    (copy.mirror.path / "a.txt").write_text("OTHER a.txt")
    assert not copy.mirror.is_complete
    assert copy.bring() == ({"a.txt": "other a.txt", "b": "b"}, ["data/a.txt", "data/b"])


@pytest.mark.parametrize("place", ["data/", "data/a.parquet"])
def test_what_is_written_anew_while_it_is_copied_is_not_taken_for_what_was_there(
    place: str, aws: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(aws, "data/a.parquet", "first")
    copy = Mirrored(aws, f"s3://{aws.bucket}/{place}")

    def late(*given: Any) -> None:
        write(aws, "data/a.parquet", "other")
        download(*given)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("runner.s3.mirror.download", late)
        with pytest.raises(NoAccess, match=r"a\.parquet was changed in S3 while it was copied"):
            copy.mirror.bring()
    assert not copy.mirror.is_complete
    copy.mirror.bring()
    assert copy.mirror.is_complete


def test_many_at_once_copy_each_file_once(aws: StandIn) -> None:
    for number in range(20):
        write(aws, f"data/{number}.txt", str(number))
    copies = [Mirror(Location(aws.bucket, "data/")) for _ in range(6)]
    threads = [threading.Thread(target=copy.bring) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(copy.is_complete for copy in copies)
    assert sorted(fetched(aws)) == sorted(f"data/{number}.txt" for number in range(20))


def test_an_archive_in_s3_is_fetched_once_and_known_by_its_listing(
    aws: StandIn, sdxl_folder: Path, tmp_path: Path
) -> None:
    archive = packed(sdxl_folder, tmp_path / "model.tar.gz", top="./sdxl")
    aws.s3.put_object(Bucket=aws.bucket, Key="models/model.tar.gz", Body=archive.read_bytes())
    settings = settings_of(f"s3://{aws.bucket}/models/model.tar.gz")
    assert check_model(settings) == []
    planned = fingerprint(settings)
    assert (fetched(aws), planning_folder(settings)) == ([], None)
    folder = snapshot(settings)
    check_fetched(settings, planned)
    assert folder_hash(folder) == folder_hash(sdxl_folder)
    # It is neither kept twice nor transferred twice.
    assert not Mirror(source_of(settings.path)).path.exists()
    assert planning_folder(settings) == snapshot(settings) == folder
    assert fetched(aws) == ["models/model.tar.gz"]
    # Without access to S3, the copy is used.
    aws.permissions.deny("s3:*")
    assert snapshot(settings) == folder

    # An archive on this machine equals the folder that was packed.
    assert check_model(settings_of(archive)) == []
    assert fingerprint(settings_of(archive)) == fingerprint(settings_of(sdxl_folder))


def test_an_archive_in_a_channel_is_unpacked_for_the_container(sdxl_folder: Path, tmp_path: Path) -> None:
    archive = packed(sdxl_folder, tmp_path / "model.tar.gz")
    raw = with_open_models({"steps": 3, "model": {"path": str(archive), "vae": "owner/vae"}}, tmp_path / "models")
    assert folder_hash(Path(raw["model"]["path"])) == folder_hash(sdxl_folder)
    assert (raw["steps"], raw["model"]["vae"]) == (3, "owner/vae")
    with pytest.raises(ValueError, match=r"the folder has no model_index\.json"):
        with_open_models(
            {"model": {"path": str(packed(sdxl_folder / "vae", tmp_path / "vae.tar.gz"))}}, tmp_path / "models"
        )


def test_a_changed_object_is_another_model(aws: StandIn, sdxl_folder: Path) -> None:
    settings = settings_of(put(aws, sdxl_folder, "sdxl/"))

    def looked_at() -> str:
        assert check_model(settings) == []
        return fingerprint(settings)

    first = looked_at()
    write(aws, "sdxl/README.md", "says nothing of the model")
    assert looked_at() == first
    snapshot(settings)
    check_fetched(settings, first)
    write(aws, "sdxl/unet/diffusion_pytorch_model.safetensors", "other weights")
    snapshot(settings)
    with pytest.raises(ModelError, match="have changed since the job was planned"):
        check_fetched(settings, first)
    assert looked_at() != first


def hostile(kind: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo({"outside": "../x", "absolute": "/tmp/x"}.get(kind, "x"))
    if kind in ("link", "hard link"):
        member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
        member.linkname = "/etc/passwd"
    return member


@pytest.mark.parametrize("kind", ["outside", "absolute", "link", "hard link", "damaged"])
def test_an_archive_that_leads_outside_is_refused(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(hostile(kind), io.BytesIO(b""))
    if kind == "damaged":
        archive.write_bytes(archive.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"holds '.*x', which|is damaged"):
        laid_out(archive)
    assert not list((tmp_path / "cache" / "archives").glob("*[0-9a-f]"))
    (fault,) = check_model(settings_of(archive))
    assert fault.startswith(f"model.path = {str(archive)!r}: model.tar.gz "), fault


def test_a_hidden_link_in_an_archive_is_passed_over_as_all_that_is_hidden(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        link = hostile("link")
        link.name = "./.latest"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("./unet/.hidden"))
        tar.addfile(tarfile.TarInfo("./model_index.json"))
    assert [file.name for file in lay_out(tmp_path / "model.tar.gz", tmp_path / "model").iterdir()] == [
        "model_index.json"
    ]
