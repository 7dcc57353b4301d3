"""OpenWebText's tars of compressed tars: the documents that the hub's own script makes of them."""

import io
import json
import lzma
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from outpace.cli.main import main
from outpace.core.errors import DataError
from outpace.data.sources import unpack
from outpace.data.sources.tars import is_tar, normalised, tar_chunks

TEXTS = {
    "urlsf_subset00-10_data.xz": {
        "0000002-b.txt": "\n\nTen\n\n\n\nb ",
        "0000001-a.txt": "Ten a\r\nx",
    },
    "urlsf_subset00-2_data.xz": {"0000005-c.txt": "Two c\n\n\nand é 漢字\t\n"},
    "urlsf_subset01-1_data.xz": {"0000009-d.txt": "d\rd\n\n\n\n\n\r\n\r\nd", "0000008-e.txt": ""},
}


def tar(files: dict[str, bytes], mode: str = "w:") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def inner(texts: dict[str, str]) -> bytes:
    return lzma.compress(tar({f"openwebtext/{n}": t.encode() for n, t in texts.items()}))


def archives() -> dict[str, bytes]:
    return {f"openwebtext/{name}": inner(texts) for name, texts in TEXTS.items()}


def hubs_documents(folder: Path) -> list[str]:
    """As huggingface/datasets makes them (openwebtext.py), from files unpacked to a disk."""
    found = []
    for name in sorted(TEXTS):
        (folder / name).mkdir(parents=True)
        for text, content in TEXTS[name].items():
            (folder / name / text).write_bytes(content.encode())
        for path in sorted((folder / name).iterdir()):
            with open(path, encoding="utf-8") as f:
                found.append(re.sub("\n\n\n+", "\n\n", f.read()).strip())
    return found


def documents(*paths: Path) -> list[str]:
    return [t for chunk in tar_chunks(paths) for batch in chunk.read() for t in batch.texts]


def test_subsets_give_the_hubs_documents_in_its_order(tmp_path):
    everything = archives()
    for subset in ("00", "01"):
        members = {n: d for n, d in everything.items() if f"subset{subset}" in n}
        (tmp_path / f"urlsf_subset{subset}.tar").write_bytes(tar(members))
    found = documents(tmp_path / "urlsf_subset01.tar", tmp_path / "urlsf_subset00.tar")
    assert found == hubs_documents(tmp_path / "unpacked")


def test_the_one_compressed_tar_and_loose_archives_give_the_same(tmp_path):
    expected = hubs_documents(tmp_path / "unpacked")
    whole = tmp_path / "openwebtext.tar.xz"
    whole.write_bytes(lzma.compress(tar(archives())))
    assert documents(whole) == expected
    loose = []
    for name, data in archives().items():
        loose.append(tmp_path / Path(name).name)
        loose[-1].write_bytes(data)
    assert all(map(is_tar, [whole, *loose]))
    assert documents(*reversed(loose)) == expected


def test_each_archive_inside_is_a_chunk_that_says_where_its_texts_are_from(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar(archives()))
    chunks = tar_chunks([path])
    assert [c.name for c in chunks] == [f"{path}#{n}" for n in sorted(TEXTS)]
    (batch,) = chunks[0].read()
    assert batch.labels == [f"{chunks[0].name}/0000001-a.txt", f"{chunks[0].name}/0000002-b.txt"]
    with pytest.raises(DataError, match="url"):
        list(chunks[0].read(["url"]))


@pytest.mark.parametrize(
    "text", ["a\n\n\nb", "\n\n\n", "a\n\n \n\n\nb", "\u2028a\u3000", "a\r\r\rb", "\ufeffa"]
)
def test_the_normalisation_is_the_hubs(text, tmp_path):
    path = tmp_path / "t"
    path.write_bytes(text.encode())
    with open(path, encoding="utf-8") as f:
        assert normalised(text) == re.sub("\n\n\n+", "\n\n", f.read()).strip()


def link_to(name: str) -> bytes:
    """A tar whose only members lead elsewhere: a link and a device."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{name}.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return out.getvalue()


def test_names_and_links_that_lead_elsewhere_do_nothing(tmp_path):
    inside = {"../../escaped.txt": b"only text", "/etc/absolute.txt": b"too"}
    path = tmp_path / "x.tar"
    path.write_bytes(
        tar({"../a_data.xz": lzma.compress(tar(inside)), "b_data.xz": lzma.compress(link_to("x"))})
    )
    assert sorted(documents(path)) == ["only text", "too"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_damage_is_told_in_one_line(tmp_path, monkeypatch):
    def refused(name: str, data: bytes, match: str) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match=match) as caught:
            documents(path)
        assert caught.value.exit_code == 3 and "\n" not in str(caught.value)

    whole = tar(archives())
    refused("cut.tar", whole[:2200], "cut")
    refused("none.tar", tar({"readme.txt": b"x"}), "contains no .xz")
    refused("rubbish.tar", b"rubbish" * 1000, "not a whole tar")
    refused("flip.tar", whole.replace(b"\xfd7zXZ", b"\xfd7zXY", 1), "flip.tar#urlsf_subset00-10_")
    refused("cut_data.xz", inner(TEXTS["urlsf_subset00-2_data.xz"])[:-30], "cut_data")
    refused("text_data.xz", lzma.compress(b"no tar" * 200), "text_data")
    refused("latin.tar", tar({"a_data.xz": lzma.compress(tar({"x.txt": b"\xe9"}))}), "UTF-8")
    monkeypatch.setattr(unpack, "MOST_BYTES", 10_000)
    bomb = lzma.compress(tar({"x.txt": bytes(10_000_000)}))
    refused("bomb.tar", tar({"a_data.xz": bomb}), "unpacks to more")
    refused("bomb_data.xz", bomb, "unpacks to more")


def test_the_command_makes_the_shards_of_the_hubs_parquet(tmp_path, capsys):
    (tmp_path / "urlsf_subset00.tar").write_bytes(tar(archives()))
    rows = hubs_documents(tmp_path / "unpacked")
    pq.write_table(pa.table({"text": rows}), tmp_path / "train.parquet")
    for source, given in (("openwebtext", "urlsf_subset00.tar"), ("files", "train.parquet")):
        argv = ["prepare", source, "--input", str(tmp_path / given), "--tokenizer", "bytes"]
        assert main([*argv, "--output", str(tmp_path / source), "--val_fraction", "0.3"]) == 0
    ours, theirs = (
        {p.name: p.read_bytes() for p in (tmp_path / s).glob("*.bin")}
        for s in ("openwebtext", "files")
    )
    assert ours == theirs and len(ours) == 2
    source = json.loads((tmp_path / "openwebtext" / "manifest.json").read_text())["source"]
    assert source["kind"] == "openwebtext" and source["files"] == ["urlsf_subset00.tar"]
    assert main(["prepare", "openwebtext", "--input", str(tmp_path / "train.parquet")]) == 3
    assert "error[NO-INPUT]" in capsys.readouterr().err
    assert main(["prepare", "openwebtext", "--sample", "100BT"]) == 2
    assert "--sample is not for openwebtext" in capsys.readouterr().err
    assert main(["prepare", "openwebtxt"]) == 2
    assert "did you mean openwebtext?" in capsys.readouterr().err
