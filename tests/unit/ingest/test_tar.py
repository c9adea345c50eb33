"""What is in a tar file of samples."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensordb_data.errors import CorruptBlobError
from tensordb_data.ingest.readers.shards.tar import TarIndex, is_litter, split_name


def packed(*members: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def index(data: bytes) -> tuple[TarIndex, dict[str, dict[str, bytes]], list[str]]:
    notes: list[str] = []
    found = TarIndex(io.BytesIO(data), len(data), lambda name, why: notes.append(f"{name} {why}"))
    samples = {each.key: {suffix: found.read(member) for suffix, member in each.members.items()}
               for each in found.samples}  # fmt: skip
    return found, samples, notes


def test_a_key_ends_at_the_first_dot_of_the_base_name() -> None:
    _, samples, notes = index(packed(("x.seg.png", b"1"), ("x.JPG", b"2"), ("./x.json", b"3"), ("a.b/y.cls", b"4")))
    assert samples == {"x": {"seg.png": b"1", "jpg": b"2", "json": b"3"}, "a.b/y": {"cls": b"4"}} and not notes
    assert split_name("./d/x.tar.gz") == ("d/x", "tar.gz") and split_name("README") == ("README", "")


def test_the_last_of_two_members_of_one_name_is_taken_and_this_is_said() -> None:
    _, samples, notes = index(packed(("x.jpg", b"1"), ("y.jpg", b"2"), ("x.jpg", b"3"), ("x.JPG", b"4")))
    assert samples == {"x": {"jpg": b"4"}, "y": {"jpg": b"2"}}
    assert notes == ["x.jpg is there twice: the last one is taken", "x.JPG is there twice: the last one is taken"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_those_that_were_given(format: int) -> None:
    name = "d" * 150 + "/größe-日本.png"
    _, samples, _ = index(packed((name, b"1"), format=format))
    assert samples == {name.removesuffix(".png"): {"png": b"1"}}


def test_what_systems_add_is_left_out_and_counted() -> None:
    found, samples, _ = index(packed(("._x.png", b"1"), ("__MACOSX/x.png", b"2"), (".DS_Store", b"3"), ("x.png", b"4")))
    assert samples == {"x": {"png": b"4"}} and len(found.ignored) == 3 and is_litter("a/._b.png")


def test_links_are_other_names() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("d/x.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        for name, kind, target in (
            ("y.png", tarfile.LNKTYPE, "d/x.png"), ("d/z.png", tarfile.SYMTYPE, "x.png"),
            ("e/v.png", tarfile.SYMTYPE, "../d/z.png"), ("w.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("u.png", tarfile.LNKTYPE, "u.png"), ("fifo.png", tarfile.FIFOTYPE, ""),
        ):  # fmt: skip
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    _, samples, notes = index(file.getvalue())
    assert samples == {key: {"png": b"abc"} for key in ("d/x", "y", "d/z", "e/v")}
    assert sorted(note.split()[0] for note in notes) == ["fifo.png", "u.png", "w.png"]


def test_sparse_files_are_read_whole() -> None:
    # A file of 4,608 bytes: 512 of them at the end, after a hole.
    info = tarfile.TarInfo("x.bin")
    info.size, info.pax_headers = 1024, {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x.bin", "GNU.sparse.realsize": "4608",
    }  # fmt: skip
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1\n4096\n512\n".ljust(512, b"\0") + b"z" * 512))
    found, samples, _ = index(file.getvalue())
    assert samples == {"x": {"bin": bytes(4096) + b"z" * 512}} and found.samples[0].members["bin"].sparse is not None


def test_gzip_is_removed() -> None:
    _, samples, _ = index(gzip.compress(packed(("x.png", b"1" * 999))))
    assert samples == {"x": {"png": b"1" * 999}}


def test_what_is_cut_off_or_no_tar_file_is_said() -> None:
    whole = packed(("x.png", b"1" * 2000), ("y.png", b"2" * 2000))
    for data in (b"", b"no tar file" * 100, whole[:1500], whole[:4000], gzip.compress(whole)[:-40]):
        with pytest.raises(CorruptBlobError):
            index(data)


@given(st.binary(max_size=2048), st.integers(0, 2047))
def test_damage_is_one_error(noise: bytes, at: int) -> None:
    data = bytearray(packed(("x.png", b"1" * 300), ("y.png", b"2" * 300)))
    data[at : at + len(noise)] = noise
    try:
        index(bytes(data))
    except CorruptBlobError:
        pass
