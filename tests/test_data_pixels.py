"""Pixel formats: every one right or refused, and nothing too large decoded."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_loaders import HTML, encoded, idx_bytes, pictures, write_parquet

from cl_bench import UserError
from cl_bench.data.cifar_c import cifar_c
from cl_bench.data.idx import read_idx, read_idx_pair
from cl_bench.data.parquet import read_parquet
from cl_bench.data.pixels import LARGEST, decode_image

RAMP = np.linspace(0, 65535, 24 * 32).round().astype(np.uint16).reshape(24, 32)


def saved(picture: Image.Image, kind: str, **how: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(pictures(1, 24, 32)[0])


def forms() -> dict[str, tuple[bytes, np.ndarray]]:
    """Encoded pictures and the RGB values that they mean."""
    plain = np.asarray(rgb())
    grey = plain[..., 0]
    palette = rgb().quantize(64)
    clear = rgb()
    clear.putalpha(Image.fromarray(grey))  # half transparent everywhere: the colour stays
    bits = grey > 127
    eight = np.round(RAMP.astype(float) * 255 / 65535).astype(np.uint8)
    cmyk = rgb().convert("CMYK")
    three = lambda g: np.repeat(g[..., None], 3, 2)  # noqa: E731
    return {
        "RGB PNG": (saved(rgb(), "PNG"), plain),
        "RGB BMP": (saved(rgb(), "BMP"), plain),
        "RGB TIFF": (saved(rgb(), "TIFF"), plain),
        "RGB PPM": (saved(rgb(), "PPM"), plain),
        "RGB WebP": (saved(rgb(), "WEBP", lossless=True), plain),
        "RGB TGA": (saved(rgb(), "TGA"), plain),
        "grey PNG": (saved(Image.fromarray(grey), "PNG"), three(grey)),
        "grey and alpha PNG": (saved(Image.merge("LA", [Image.fromarray(grey)] * 2), "PNG"), three(grey)),
        "RGBA PNG": (saved(clear, "PNG"), plain),
        "RGBA WebP": (saved(clear, "WEBP", lossless=True, exact=True), plain),
        "palette PNG": (saved(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "palette PNG with a clear colour": (saved(palette, "PNG", transparency=3), np.asarray(palette.convert("RGB"))),
        "palette PNG with alpha": (saved(palette, "PNG", transparency=bytes(range(64))), np.asarray(palette.convert("RGB"))),
        "palette GIF": (saved(palette, "GIF"), np.asarray(palette.convert("RGB"))),
        "1-bit PNG": (saved(Image.fromarray(bits), "PNG"), three(bits * np.uint8(255))),
        "1-bit TIFF": (saved(Image.fromarray(bits), "TIFF"), three(bits * np.uint8(255))),
        "16-bit grey PNG": (saved(Image.fromarray(RAMP), "PNG"), three(eight)),
        "16-bit grey TIFF": (saved(Image.fromarray(RAMP), "TIFF"), three(eight)),
        "16-bit grey TIFF, big-endian": (big_endian_tiff(), three(eight)),
        "16-bit grey PGM": (b"P5 32 24 65535\n" + RAMP.astype(">u2").tobytes(), three(eight)),
        "16-bit RGB PNG": (png(RAMP.astype(">u2").repeat(3).reshape(24, 32, 3), 16, 2), three((RAMP >> 8).astype(np.uint8))),
        "4-bit grey PNG": (png(np.full((24, 16), 0x5A, np.uint8), 4, 0), three(np.tile(np.uint8([85, 170]), (24, 16)))),
        "CMYK TIFF": (saved(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
    }


def big_endian_tiff() -> bytes:
    out = io.BytesIO()
    Image.frombytes("I;16B", (32, 24), RAMP.astype(">u2").tobytes()).save(out, "TIFF")
    return out.getvalue()


def png(rows: np.ndarray, depth: int, kind: int) -> bytes:
    """A PNG written by hand, for the depths that Pillow does not write."""
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", 32, len(rows), depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", forms())
def test_every_form_becomes_the_rgb_that_it_means(form: str, tmp_path: Path) -> None:
    content, expected = forms()[form]
    file = tmp_path / "picture"
    file.write_bytes(content)
    parquet = write_parquet(tmp_path / "a.parquet", [content], [0])
    for found in (decode_image(content), decode_image(file), read_parquet(parquet).data.x[0]):
        assert found.dtype == torch.uint8
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    small = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((10, 8), Image.Resampling.BILINEAR))[:, 1:9]
    assert np.array_equal(decode_image(content, 8).permute(1, 2, 0).numpy(), small)


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_are_pillows(mode: str, quality: int, tmp_path: Path) -> None:
    content = saved(rgb().convert(mode), "JPEG", quality=quality)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode_image(content).permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_keep_their_levels() -> None:
    """Once all but 17 of them were lost: Pillow clips."""
    content = saved(Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)), "PNG")
    assert len(decode_image(content)[0].unique()) == 256


@pytest.mark.parametrize(("form", "told"), [
    ("32-bit TIFF", "32-bit pixels, whose range is unknown"), ("float TIFF", "floating-point pixels, whose range"),
    ("EPS", "in no format that is read"), ("a web page", "web page"), ("half a JPEG", "cannot be decoded"),
    ("half a PNG", "cannot be decoded"), ("half a GIF", "cannot be decoded"), ("text", "in no format that is read"),
    ("nothing", "in no format that is read"), ("zeros", "in no format"), ("PNG with a bad chunk", "cannot be decoded"),
])  # fmt: skip
def test_what_cannot_be_read_right_is_refused(form: str, told: str, tmp_path: Path) -> None:
    grey = np.asarray(rgb())[..., 0]
    big = Image.fromarray(pictures(1, 64, 64)[0])
    content = {
        "32-bit TIFF": lambda: saved(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "float TIFF": lambda: saved(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
        "EPS": lambda: saved(rgb(), "EPS"),
        "a web page": lambda: HTML,
        "half a JPEG": lambda: saved(big, "JPEG")[:900],
        "half a PNG": lambda: saved(big, "PNG")[:3000],
        "half a GIF": lambda: saved(big.quantize(64), "GIF")[:700],
        "text": lambda: b"no picture at all",
        "nothing": lambda: b"",
        "zeros": lambda: bytes(2000),
        "PNG with a bad chunk": lambda: saved(big, "PNG").replace(b"IDAT", b"IDAX"),
    }[form]()
    file = tmp_path / "photo.png"
    file.write_bytes(content)
    for size in (None, 8):
        with pytest.raises(UserError, match=rf"row 3 .*{told}"):
            decode_image(content, size, "row 3")
        with pytest.raises(UserError, match=rf"photo\.png.*{told}"):
            decode_image(file, size)


# ---------------------------------------------------------------------------------------------- sizes
def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 20,000 x 20,000 pixels."""
    plain = bytearray(saved(Image.new("RGB", (8, 8)), "PNG"))
    plain[16:24] = struct.pack(">II", 20_000, 20_000)
    plain[29:33] = struct.pack(">I", zlib.crc32(bytes(plain[12:29])))
    return bytes(plain)


def large_jpeg() -> bytes:
    plain = bytearray(saved(rgb(), "JPEG"))
    at = plain.index(b"\xff\xc0")
    plain[at + 5 : at + 9] = struct.pack(">HH", 20_000, 20_000)
    return bytes(plain)


@pytest.mark.parametrize("content", [bomb(), large_jpeg()], ids=["PNG", "JPEG"])
def test_images_over_the_limit_are_refused_before_they_are_decoded(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for size in (None, 32):
        for source in (content, tmp_path / "a.png"):
            with pytest.raises(UserError, match="where 1 to 89,478,485 pixels are decoded"):
                decode_image(source, size)
        with pytest.raises(UserError, match=r"row 1 of .*b\.parquet.*where 1 to 89,478,485"):
            read_parquet(write_parquet(tmp_path / "b.parquet", [encoded(pictures(1)[0]), content], [0, 1]), size=size)
    assert LARGEST == 89_478_485


def test_a_sliver_is_not_blown_up() -> None:
    """60,000 x 1 pixels are few, but with a short side of 224 they would be three billion."""
    sliver = saved(Image.new("RGB", (60_000, 1)), "PNG")
    assert decode_image(sliver).shape == (3, 1, 60_000)
    with pytest.raises(UserError, match="resized to a short side of 224"):
        decode_image(sliver, 224)


def test_headers_of_arrays_are_not_believed(tmp_path: Path) -> None:
    """Nothing is reserved for what a header promises and the file cannot hold."""
    import gzip

    def header(*shape: int) -> bytes:
        return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()

    for name, pack in (("x", bytes), ("x.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(header(2**31, 28, 28) + bytes(784)))
        with pytest.raises(UserError, match="too short for"):
            read_idx(tmp_path / name)
        (tmp_path / name).write_bytes(pack(header(1, 20_000, 20_000) + bytes(784)))
        with pytest.raises(UserError, match="20000 x 20000 pixels"):
            read_idx(tmp_path / name)
    (tmp_path / "zeros.gz").write_bytes(gzip.compress(header(3, 2, 2) + bytes(50_000_000)))  # a bomb behind a small header
    with pytest.raises(UserError, match="more than the 12 bytes"):
        read_idx(tmp_path / "zeros.gz")
    (tmp_path / "none").write_bytes(idx_bytes(np.zeros((0, 4, 4), np.uint8)))
    (tmp_path / "labels").write_bytes(idx_bytes(np.zeros(0, np.uint8)))
    with pytest.raises(UserError, match="holds no images"):
        read_idx_pair(tmp_path / "none", tmp_path / "labels")


def test_headers_of_npy_files_are_not_believed(tmp_path: Path) -> None:
    def npy(shape: str, dtype: str = "|u1", content: bytes = b"x" * 99) -> bytes:
        head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        head += b" " * (64 - (10 + len(head) + 1) % 64) + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content

    np.save(tmp_path / "labels.npy", np.arange(3))
    cases = {"(3, 20000, 20000, 3)": "cut short|damaged", "(-1, 4, 4, 3)": "damaged", "(2**40, 4, 4, 3)": "damaged",
             "__import__('os')": "damaged", "()": "not uint8 images"}  # fmt: skip
    for shape, told in cases.items():
        (tmp_path / "fog.npy").write_bytes(npy(shape))
        with pytest.raises(UserError, match=told):
            cifar_c(tmp_path, "fog")
    for array in (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 3), np.uint8)):
        np.save(tmp_path / "fog.npy", array)
        with pytest.raises(UserError, match=r"fog\.npy"):
            cifar_c(tmp_path, "fog")
    with open(tmp_path / "fog.npy", "wb") as f:  # a file with a hole: large, and costs no disk
        f.write(npy("(1, 20000, 20000, 3)", content=b""))
        f.truncate(1_300_000_000)
    with pytest.raises(UserError, match="20000 x 20000 pixels"):
        cifar_c(tmp_path, "fog")
