"""Image files of every kind are seen as a viewer shows them, or refused in one line that names the file."""

import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from adjoined.data import DataInfo, load_image, preprocess
from adjoined.data.levels import plain
from adjoined.data.preprocessing import MOST_PIXELS, to_tensor
from adjoined.data.segmentation import read_mask
from adjoined.errors import AdjoinedError
from made_by_hand import bmp, png, tiff

GREY = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
COLOUR = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)


def seen(path: Path) -> np.ndarray:
    return np.asarray(load_image(path)).astype(int)


DEEP = GREY.astype(np.uint16) * 257


@pytest.mark.parametrize(
    "content",
    [
        png(256, 1, 16, 0, b"\0" + DEEP[0].astype(">u2").tobytes()),
        b"P5\n256 4\n65535\n" + DEEP.astype(">u2").tobytes(),
        tiff(DEEP, bits=16),
        tiff(65535 - DEEP, bits=16, photometric=0),
        tiff(DEEP.astype(np.uint32), bits=32),
        tiff(DEEP.astype(np.int32), bits=32, sample_format=2),
        tiff((GREY / 255).astype(np.float32), bits=32, sample_format=3),
        tiff(GREY, bits=8),
    ],
    ids=["png", "pgm", "tiff", "white is zero", "uint32", "int32", "float", "8 bits"],
)
def test_a_gradient_of_many_bits_looks_as_it_does_in_eight(tmp_path, content):
    path = tmp_path / "gradient.image"
    path.write_bytes(content)
    assert np.abs(seen(path) - GREY[0]).max() <= 1


def test_twelve_bits_in_a_tiff_are_scaled_by_its_own_white(tmp_path):
    path = tmp_path / "twelve.tif"
    path.write_bytes(tiff(np.array([[0x00, 0x0F, 0xFF]], np.uint8), bits=12).replace(
        struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 2)
    ))  # fmt: skip
    assert seen(path).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("values", "bits", "sample_format"),
    [
        (np.array([[0, 200]], np.int32), 32, 2),  # black, if 65535 is white
        (np.array([[-1, 65535]], np.int32), 32, 2),
        (np.array([[0, 65536]], np.int32), 32, 2),
        (np.array([[0, 2**31]], np.uint32), 32, 1),
        (np.array([[0, 9000]], np.int16), 16, 2),
        (np.array([[0, 255]], np.float32), 32, 3),
        (np.array([[-0.5, 0.5]], np.float32), 32, 3),
        (np.array([[0, np.nan]], np.float32), 32, 3),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path, values, bits, sample_format):
    path = tmp_path / "unknown.tif"
    path.write_bytes(tiff(values, bits=bits, sample_format=sample_format))
    with pytest.raises(AdjoinedError, match=r"^[^\n]*unknown\.tif: the range of the image's values is unknown"):
        load_image(path)


def test_signed_bytes_are_refused(tmp_path):
    path = tmp_path / "signed.tif"
    path.write_bytes(tiff(np.array([[-128, 127]], np.int8), bits=8, sample_format=2))
    with pytest.raises(AdjoinedError, match=r"signed\.tif: a TIFF file of this layout .*got 8 bits, signed"):
        load_image(path)


def written(tags: dict[int, int | tuple[int, ...]], *strips: bytes) -> bytes:
    """A TIFF of 20 x 16 pixels with these tags."""
    directory, file = ImageFileDirectory_v2(prefix=b"II"), BytesIO()
    places = tuple(sum(map(len, strips[:number])) for number in range(len(strips)))  # `save` adds its own length
    shape = {256: 20, 257: 16, 278: 16, 259: 1, 273: places, 279: tuple(map(len, strips))}
    for tag, value in (shape | tags).items():
        directory[tag] = value
    directory.save(file)
    return file.getvalue() + b"".join(strips)


@pytest.mark.parametrize(("bits", "read"), [(8, True), (16, False)])
def test_colours_in_planes_are_read_or_refused(tmp_path, bits, read):
    path = tmp_path / "planes.tif"
    values = COLOUR.astype(f"<u{bits // 8}") * (257 if bits == 16 else 1)
    strips = [np.ascontiguousarray(values[..., colour]).tobytes() for colour in range(3)]
    path.write_bytes(written({258: (bits,) * 3, 262: 2, 277: 3, 284: 2}, *strips))
    if read:
        assert (seen(path) == COLOUR).all()
    else:
        with pytest.raises(AdjoinedError, match=r"planes\.tif: .*got 16 bits, a plane for each colour"):
            load_image(path)


@pytest.mark.parametrize(
    ("tags", "missing"),
    [({278: 4}, 0), ({278: 4}, 1), ({278: 4, 284: 2}, 0), ({278: 4, 284: 2}, 1), ({278: 16, 284: 2}, 1), ({278: 8}, 1)],
)
def test_a_tiff_without_all_of_its_strips_is_refused_by_whatever_reads_it(tmp_path, tags, missing):
    """Pillow leaves what is missing black."""
    planes = [np.ascontiguousarray(COLOUR[..., colour]) for colour in range(3)] if 284 in tags else [COLOUR]
    strips = [plane[at : at + tags[278]].tobytes() for plane in planes for at in range(0, 16, tags[278])]
    path = tmp_path / "cut.tif"
    path.write_bytes(written({258: (8,) * 3, 262: 2, 277: 3} | tags, *strips[: len(strips) - missing]))
    if not missing:
        assert (seen(path) == COLOUR).all()
        return
    with pytest.raises(AdjoinedError, match=r"^[^\n]*cut\.tif: parts of the TIFF file are missing"):
        load_image(path)


def test_a_mask_without_all_of_its_strips_is_refused_too(tmp_path):
    values = np.ones((16, 20), np.uint8)
    for name, strips in (("whole", [values[:8], values[8:]]), ("cut", [values[:8]])):
        tags = {258: 8, 262: 1, 277: 1, 278: 8}
        (tmp_path / f"{name}.tif").write_bytes(written(tags, *(strip.tobytes() for strip in strips)))
    assert (read_mask(str(tmp_path / "whole.tif")) == 1).all()
    with pytest.raises(AdjoinedError, match=r"cut\.tif: parts of the TIFF file are missing"):
        read_mask(str(tmp_path / "cut.tif"))


@pytest.mark.parametrize("factor", [1, 257])
def test_a_colour_map_of_eight_bits_is_read_like_one_of_sixteen(tmp_path, factor):
    path = tmp_path / "palette.tif"
    colours = np.random.default_rng(0).integers(0, 256, (3, 256))
    values = COLOUR[..., 0]
    path.write_bytes(written({258: 8, 262: 3, 277: 1, 320: tuple(factor * colours.ravel())}, values.tobytes()))
    assert (seen(path) == colours.T[values]).all()


def test_a_bitmap_of_which_nothing_is_opaque_is_shown_without_its_transparency(tmp_path):
    Image.fromarray(np.dstack([COLOUR, np.zeros((16, 20), np.uint8)])).save(tmp_path / "unset.bmp")
    Image.fromarray(np.dstack([COLOUR, np.zeros((16, 20), np.uint8)])).save(tmp_path / "clear.png")
    assert (seen(tmp_path / "unset.bmp") == COLOUR).all()
    assert (seen(tmp_path / "clear.png") == 255).all()


BLACK_WHITE, GREYS = [0, 255], list(range(16))


@pytest.mark.parametrize(
    ("content", "values", "indices"),
    [
        (bmp(1, b"\x50\0\0\0", BLACK_WHITE, 4), [0, 255, 0, 255], [0, 1, 0, 1]),
        (bmp(1, b"\x50\0\0\0", BLACK_WHITE, 4, old=True), [0, 255, 0, 255], [0, 1, 0, 1]),
        (bmp(8, b"\0\1\0\1", BLACK_WHITE[::-1], 4), [255, 0, 255, 0], [0, 1, 0, 1]),
        (bmp(4, b"\x01\x01\0\0", BLACK_WHITE[::-1], 4), [255, 0, 255, 0], [0, 1, 0, 1]),
        (bmp(8, b"\0\1\7\x0f", GREYS, 4), [0, 1, 7, 15], [0, 1, 7, 15]),
        (bmp(8, b"\0\1\7\x0f", list(range(256)), 4, old=True), [0, 1, 7, 15], [0, 1, 7, 15]),
    ],
)
def test_bitmaps_with_palettes_are_read(tmp_path, content, values, indices):
    (tmp_path / "a.bmp").write_bytes(content)
    assert np.asarray(load_image(tmp_path / "a.bmp").convert("L")).tolist() == [values]
    assert read_mask(str(tmp_path / "a.bmp")).tolist() == [indices]


@pytest.mark.parametrize(
    "content",
    [
        bmp(8, b"\0\1\0\1", BLACK_WHITE, 4),
        bmp(4, b"\x01\x01\0\0", BLACK_WHITE, 4),
        bmp(4, b"\x0f\x3c\0\0", GREYS, 4),
    ],
)
def test_bitmaps_whose_bits_pillow_takes_from_the_palette_are_refused(tmp_path, content):
    """It reads the first two as black, and the third as 15, 60, 0, 0 instead of 0, 15, 3, 12."""
    (tmp_path / "a.bmp").write_bytes(content)
    for read in (load_image, read_mask):
        with pytest.raises(AdjoinedError, match=r"a\.bmp: a BMP file of this layout cannot be read .* Save it as PNG"):
            read(str(tmp_path / "a.bmp"))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_sixteen_bits_in_any_order_of_bytes(mode):
    order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (3, 1), np.array([0, 0x8000, 0xFFFF]).astype(order).tobytes())
    assert to_tensor(image, 1).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize(
    ("mode", "close"), [("RGB", 0), ("RGBA", 0), ("RGBX", 0), ("CMYK", 0), ("YCbCr", 2), ("LAB", 2), ("HSV", 1)]
)
def test_colours_are_the_same_in_every_mode(mode, close):
    image = plain(Image.fromarray(COLOUR).convert(mode))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - COLOUR).mean() <= close


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
@pytest.mark.parametrize("opacity", [0, 51, 255])
def test_transparent_parts_lie_on_white(mode, opacity):
    image = Image.new("L", (3, 2), 40).convert({"L": "LA", "P": "PA", "R": "RGBA"}[mode[0]])
    image.putalpha(opacity)
    for channels in (1, 3):
        pixels = to_tensor(image.convert(mode), channels)
        assert (pixels.float() - (255 - (255 - 40) * opacity / 255)).abs().max() <= 2.5  # premultiplied: 51 levels


@pytest.mark.parametrize(
    ("depth", "kind", "rows", "key", "right"),
    [
        (1, 0, b"\0\x40", b"\0\0", [255, 255]),
        (2, 0, b"\0\x60", b"\0\1", [255, 170]),
        (4, 0, b"\0\x36", b"\0\3", [255, 102]),
        (8, 0, b"\0\x30\x60", b"\0\x30", [255, 0x60]),
        (16, 0, b"\0\x30\x30\x60\x60", b"\x30\x30", [255, 0x60]),
        (8, 2, b"\0\1\2\3\4\5\6", b"\0\1\0\2\0\3", [[255] * 3, [4, 5, 6]]),
        (16, 2, b"\0\1\1\2\2\3\3\4\4\5\5\6\6", b"\1\1\2\2\3\3", [[255] * 3, [4, 5, 6]]),
        (8, 3, b"\0\0\1", b"\0", [[255] * 3, [7, 8, 9]]),
    ],
)
def test_the_transparent_colour_of_a_png_is_white(tmp_path, depth, kind, rows, key, right):
    path = tmp_path / "keyed.png"
    palette = [(b"PLTE", bytes([1, 2, 3, 7, 8, 9]))] if kind == 3 else []
    path.write_bytes(png(2, 1, depth, kind, rows, *palette, (b"tRNS", key)))
    assert seen(path).tolist() == [right]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "grey.tif"])
def test_photos_stand_upright(tmp_path, orientation, suffix):
    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
             Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE,
             Image.Transpose.ROTATE_270]  # fmt: skip
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16, :16] = 255
    turn = turns[orientation - 1]
    held = Image.fromarray(upright).transpose(turn) if turn is not None else Image.fromarray(upright)
    if suffix == "grey.tif":  # Pillow maps such files into memory
        held, upright = held.convert("L"), upright[..., 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    held.save(tmp_path / f"photo.{suffix}", exif=exif)
    pixels = seen(tmp_path / f"photo.{suffix}")
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < 2
    with Image.open(tmp_path / f"photo.{suffix}") as image:  # an image that a user has opened
        assert to_tensor(image, 1).squeeze().numpy().astype(int) == pytest.approx(pixels.reshape(48, 32, -1)[..., 0])


def test_a_photo_is_rotated_by_an_orientation_that_only_xmp_has(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(COLOUR).save(tmp_path / "photo.webp", lossless=True, xmp=xmp)
    assert (seen(tmp_path / "photo.webp") == np.rot90(COLOUR, -1)).all()


def test_a_damaged_exif_tag_is_ignored(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "photo.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert seen(tmp_path / "photo.jpg").shape == COLOUR.shape


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
    assert seen(tmp_path / f"moving.{suffix}").min() > 250


# What is not read


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        png(9, 9, 8, 0, b"")[:60],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "text", "signature", "cut off", "PostScript"],
)
def test_what_is_not_an_image_is_refused(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(AdjoinedError, match=r"^[^\n]*image\.png: the image cannot be read"):
        load_image(path)


def test_what_is_not_a_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (("pipe.png", "regular file"), (".", "regular file"), ("none.png", "no such image")):
        with pytest.raises(AdjoinedError, match=message):
            load_image(tmp_path / name)


@pytest.mark.parametrize("side", [8200, 9500, 20000])
def test_a_small_file_with_a_huge_image_is_refused_by_its_header(tmp_path, side):
    path = tmp_path / "huge.png"
    path.write_bytes(png(side, side, 1, 0, b""))  # no pixels: they are not asked for
    with pytest.raises(AdjoinedError, match=r"huge\.png: the image has too many pixels"):
        load_image(path)


def test_an_image_that_resizing_would_make_huge_is_refused():
    info = DataInfo("any", 2, ("a", "b"), 1, image_size=224, resize=256, mean=(0.5,), std=(1,))
    longest = MOST_PIXELS // 256**2
    assert preprocess(info, Image.new("L", (longest // 4, 1))).shape == (1, 1, 224, 224)
    with pytest.raises(AdjoinedError, match="too elongated"):
        preprocess(info, Image.new("L", (1, longest + 1)))


def test_the_file_is_named_whoever_notices(tmp_path):
    from adjoined.data import DataSettings, open_data

    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.new("L", (5000, 1)).save(tmp_path / label / f"{number}.png")
    data = open_data(DataSettings(name=f"folder:{tmp_path}"))
    with pytest.raises(AdjoinedError, match=r"[ab]/[01]\.png: the image is too elongated"):
        data.val[0]
    assert torch.isfinite(data.train[0][0]).all()  # a random crop is taken before it is resized
