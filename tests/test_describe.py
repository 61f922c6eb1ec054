"Images and texts as tables: formulas against other implementations and closed forms, every kind of input, what cannot be described"
import colorsys
import json
import math
import tracemalloc
import unicodedata
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage, stats
from sklearn.datasets import load_sample_image

from mlnb.core.errors import ParameterError, SchemaError
from mlnb.monitor import images as mi
from mlnb.monitor.drift import drift
from mlnb.monitor.images import describe_images
from mlnb.monitor.text import Vocabulary, describe_text, fold, split_words, vocabulary

COLUMNS = ["width", "height", "resolution", "aspect_ratio", "channels", "brightness", "contrast", "saturation", "sharpness", "noise", "entropy",
           "red", "green", "blue", "tilt", "extent"]


@pytest.fixture(scope="module")
def china() -> np.ndarray:
    return load_sample_image("china.jpg")


def plain(x: np.ndarray) -> dict[str, float]:
    "The same descriptors of one RGB image, uint8, written down naively with other libraries"
    y = x[..., 0] * .299 / 255 + x[..., 1] * .587 / 255 + x[..., 2] * .114 / 255
    laplacian = ndimage.laplace(y)[1:-1, 1:-1]
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    residual = ndimage.convolve(y, mask)[1:-1, 1:-1]
    h, w = y.shape
    background = np.median([*y[0], *y[-1], *y[1:-1, 0], *y[1:-1, -1]])
    away = np.abs(y - background)
    weight = np.where(away > away.max() / 2, away - away.max() / 2, 0)
    row, column = np.mgrid[:h, :w]
    cov = np.cov(np.stack([column.ravel(), row.ravel()]), aweights=weight.ravel(), ddof=0) if weight.any() else np.zeros((2, 2))
    values, vectors = np.linalg.eigh(cov)
    dx, dy = vectors[:, -1]
    tilt = math.degrees(math.atan2(dx, -dy))
    shades = np.bincount(np.rint(y * 255).astype(int).ravel())
    return {"width": w, "height": h, "resolution": w * h, "aspect_ratio": w / h, "channels": 3, "brightness": y.mean(), "contrast": y.std(),
            "saturation": np.mean([colorsys.rgb_to_hsv(*p)[1] for p in x.reshape(-1, 3) / 255]), "sharpness": laplacian.var() / y.var(),
            "noise": math.sqrt(math.pi / 2) * np.abs(residual).sum() / (6 * (w - 2) * (h - 2)), "entropy": stats.entropy(shades, base=2),
            "red": x[..., 0].mean() / 255, "green": x[..., 1].mean() / 255, "blue": x[..., 2].mean() / 255,
            "tilt": (tilt + 90) % 180 - 90, "extent": math.sqrt(np.trace(cov) / ((w * w + h * h - 2) / 12))}


# -- formulas


def test_equals_other_implementations(china):
    crops = [china[:150, :200], china[100:171, 300:480], load_sample_image("flower.jpg")[60:300, 200:330]]
    table = describe_images(crops)
    assert list(table.columns) == COLUMNS
    for i, crop in enumerate(crops):
        expected = plain(crop)
        for name in COLUMNS: assert table[name][i] == pytest.approx(expected[name], rel=1e-6, abs=1e-8), (i, name)


def test_luma_is_pillows(china):
    grey = np.asarray(Image.fromarray(china).convert("L"))
    assert np.abs(mi.luma(mi.scaled(china)) * 255 - grey).max() < .51
    a, b = describe_images([china]).iloc[0], describe_images([grey]).iloc[0]
    assert a["brightness"] == pytest.approx(b["brightness"], abs=1e-3) and a["contrast"] == pytest.approx(b["contrast"], abs=1e-3)
    assert (a["channels"], b["channels"]) == (3, 1)


@pytest.mark.parametrize("cell", [1, 4])
def test_checkerboard(cell):
    board = np.kron((np.indices((8, 8)).sum(0) % 2).astype(np.uint8) * 255, np.ones((cell, cell), np.uint8))
    row = describe_images([board]).iloc[0]
    assert (row["brightness"], row["contrast"], row["entropy"]) == pytest.approx((.5, .5, 1))
    if cell == 1: assert row["sharpness"] == pytest.approx(16 / .25)  # the Laplacian is +-4


@pytest.mark.parametrize("sigma", [.01, .03, .06])
@pytest.mark.parametrize("channels", [1, 3])
def test_known_noise_is_found(sigma, channels):
    rng = np.random.default_rng(1)
    ramp = np.linspace(.35, .65, 300)[None, :, None] + np.zeros((300, 1, channels))
    noisy = ramp + sigma * rng.normal(size=ramp.shape)
    expected = sigma if channels == 1 else sigma * math.hypot(.299, .587, .114)  # luma of independent channels
    assert describe_images([noisy])["noise"][0] == pytest.approx(expected, rel=.02)
    assert describe_images([ramp])["noise"][0] < 1e-12


def letter(angle: float, size: float = 1.0) -> np.ndarray:
    "A long L on a dark ground, turned clockwise and scaled about the middle"
    im = Image.new("L", (480, 480), 20)
    draw = ImageDraw.Draw(im)
    draw.rectangle((210, 100, 250, 380), fill=230)
    draw.rectangle((210, 350, 300, 380), fill=230)
    n = round(480 / size)
    return np.asarray(im.rotate(-angle, Image.Resampling.BICUBIC, fillcolor=20).transform((480, 480), Image.Transform.EXTENT, (240 - n / 2, 240 - n / 2, 240 + n / 2, 240 + n / 2),
                                                                                    Image.Resampling.BILINEAR, fillcolor=20).reduce(4))


def test_known_turns_and_sizes_are_found():
    straight = describe_images([letter(0)]).iloc[0]
    turns = [-70, -45, -10, 5, 20, 40, 60]
    found = describe_images(np.stack([letter(a) for a in turns]))
    assert (found["tilt"] - straight["tilt"]).to_numpy() == pytest.approx(turns, abs=.6)
    assert (found["extent"] / straight["extent"]).to_numpy() == pytest.approx(np.ones(7), abs=.02)
    sizes = [.5, .7, 1.2]
    assert (describe_images([letter(0, s) for s in sizes])["extent"] / straight["extent"]).to_numpy() == pytest.approx(sizes, rel=.04)
    assert describe_images([letter(130)])["tilt"][0] == pytest.approx(130 - 180 + straight["tilt"], abs=.6)


def test_light_does_not_move_the_content():
    x = letter(25) / 255
    kept = ["tilt", "extent", "sharpness"]
    same = describe_images(np.stack([x, x / 2, x / 2 + .4, 1 - x]))
    for name in kept: assert same[name].to_numpy() == pytest.approx(np.full(4, same[name][0]), rel=1e-9)
    noisy = describe_images([np.clip(x + np.random.default_rng(0).normal(0, .1, x.shape), 0, 1)]).iloc[0]
    assert noisy["tilt"] == pytest.approx(same["tilt"][0], abs=1) and noisy["extent"] == pytest.approx(same["extent"][0], rel=.05)


def test_direction_of_each_change(china):
    base = china[::2, ::2].astype(float) / 255
    def change(x: np.ndarray, name: str) -> float: return describe_images([np.clip(x, 0, 1)])[name][0] / describe_images([base])[name][0]
    assert change(base / 2, "brightness") == pytest.approx(.5) and change(base / 2, "contrast") == pytest.approx(.5)
    assert change(base / 2, "sharpness") == pytest.approx(1) and change(base / 2, "saturation") == pytest.approx(1)
    assert change(ndimage.gaussian_filter(base, (1, 1, 0)), "sharpness") < .3
    assert change(base + np.random.default_rng(0).normal(0, .1, base.shape), "noise") > 1.5
    assert change(base * [1, 1, .5], "blue") == pytest.approx(.5) and change(base * [1, 1, .5], "red") == 1
    assert change(.5 * base + .5 * base.mean(-1, keepdims=True), "saturation") < .6


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (7, 1), (3, 3), (50, 40), (50, 40, 1), (50, 40, 3), (50, 40, 4), (300, 400)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_images_have_no_nan(shape, value):
    table = describe_images([np.full(shape, value, np.uint8), np.full(shape, value / 255)], colour=True)
    assert not table.isna().any().any() and np.isfinite(table.to_numpy()).all()
    if shape[-1] != 4: assert table["brightness"].to_numpy() == pytest.approx([value / 255] * 2)
    assert (table[["contrast", "sharpness", "noise", "entropy", "tilt", "extent", "saturation"]].to_numpy() == 0).all()


@settings(max_examples=60)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4]))))
def test_any_pixels_give_finite_numbers_in_range(x):
    row = describe_images([x], colour=True).iloc[0]
    assert np.isfinite(row.to_numpy(float)).all()
    for name in ("brightness", "saturation", "red", "green", "blue"): assert -1e-12 <= row[name] <= 1 + 1e-12
    assert 0 <= row["contrast"] <= .5 + 1e-12 and 0 <= row["entropy"] <= 8 and -90 <= row["tilt"] <= 90 and 0 <= row["extent"] <= 2


# -- one by one, in stacks, in bands, from files


@pytest.mark.parametrize("shape", [(150, 28, 28), (40, 60, 50, 3), (9, 30, 30, 4), (5, 3, 70), (3, 200, 400, 3)])
def test_a_stack_equals_one_by_one(shape, monkeypatch):
    stack = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = pd.concat([describe_images([x]) for x in stack], ignore_index=True)
    for given_ in (stack, list(stack), iter(stack), (x for x in stack), [Image.fromarray(x) for x in stack], stack.astype(float) / 255, stack.astype(np.uint16) * 257):
        pd.testing.assert_frame_equal(describe_images(given_), expected, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(mi, "BLOCK", 701)  # odd bands
    pd.testing.assert_frame_equal(describe_images(stack), expected, rtol=1e-9, atol=1e-12)
    mixed = [stack[0], stack[1, :3], stack[1], stack[2], stack[0, :, :3]]
    pd.testing.assert_frame_equal(describe_images(mixed), pd.concat([describe_images([x]) for x in mixed], ignore_index=True), rtol=1e-9, atol=1e-12)


def test_files_equal_arrays(tmp_path, china, monkeypatch):
    pictures = {"a.png": china[:50], "b.PNG": china[:40, :60, 0], "sub/c.tiff": china[100:200], "sub/d.bmp": china[:30, :30]}
    for name, x in pictures.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(x).save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no image")
    expected = describe_images(list(pictures.values()))
    def check(table: pd.DataFrame, names: list[str]) -> None:
        assert list(table.index) == names and table.index.name == "file"
        pd.testing.assert_frame_equal(table.reset_index(drop=True), expected)
    check(describe_images(tmp_path), list(pictures))
    check(describe_images(str(tmp_path)), list(pictures))
    paths = [tmp_path / name for name in pictures]
    check(describe_images(paths), [str(p) for p in paths])
    check(describe_images(str(p) for p in paths), [str(p) for p in paths])
    monkeypatch.chdir(tmp_path)
    assert list(describe_images("*.png").index) == ["a.png"] and list(describe_images("**/*.*p*").index) == ["a.png", "sub/d.bmp"]
    assert list(describe_images("a.png").index) == ["a.png"]
    (tmp_path / "[x].png").write_bytes((tmp_path / "a.png").read_bytes())
    assert list(describe_images("[x].png").index) == ["[x].png"]  # a file of that name, not a pattern
    assert list(describe_images([paths[0], china]).index) == [0, 1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "PA", "RGBX", "La", "RGBa"])
def test_modes_of_pillow(mode, china):
    im = Image.fromarray(china[:80, :90])
    if mode == "F": im = Image.fromarray(np.asarray(im.convert("L"), np.float32) / 255)
    elif mode in ("I", "I;16"): im = Image.fromarray(np.asarray(im.convert("L")).astype(np.int32 if mode == "I" else np.uint16) * 257)
    elif mode == "PA": im = im.convert("P").convert("PA")
    else: im = im.convert("RGBA").convert(mode) if mode == "RGBa" else im.convert("LA").convert(mode) if mode == "La" else im.convert(mode)
    assert im.mode == mode
    row = describe_images([im]).iloc[0]
    assert row["brightness"] == pytest.approx(mi.luma(mi.scaled(china[:80, :90])).mean(), abs=.02)
    assert row["channels"] == (1 if mode in ("1", "L", "LA", "La", "I", "F", "I;16") else 3)


def test_sixteen_bits_survive_a_file(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65_536, (40, 30)).astype(np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(deep).save(tmp_path / name)
        assert describe_images([tmp_path / name])["brightness"].to_numpy() == pytest.approx(deep.mean() / 65_535)
    swapped = tmp_path / "b.tiff"
    Image.fromarray(deep.astype(">u2")).save(swapped)
    assert describe_images([swapped])["brightness"].to_numpy() == pytest.approx(deep.mean() / 65_535)


@pytest.mark.parametrize("orientation,upright", [(1, True), (3, True), (6, False), (8, False)])
def test_orientation_is_that_of_the_viewer(tmp_path, china, orientation, upright):
    exif = Image.Exif()
    exif[274] = orientation
    file = tmp_path / "a.jpg"
    Image.fromarray(china).save(file, exif=exif)
    row = describe_images([file]).iloc[0]
    assert (row["width"], row["height"]) == ((640, 427) if upright else (427, 640))
    with Image.open(file) as im:
        pd.testing.assert_series_equal(describe_images([im]).iloc[0], row, check_names=False)
        assert im.size == (640, 427)  # the user's object is left alone


def test_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = 0, 0, 0, 255
    pixels[1, 1] = 0, 0, 0, 128
    assert describe_images([pixels])["brightness"][0] == pytest.approx((0 + 1 + 1 + 127 / 255) / 4)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=1)
    assert describe_images([tmp_path / "p.png"])["brightness"].iloc[0] == pytest.approx(1)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "q.png", transparency=(9, 9, 9))
    assert describe_images([tmp_path / "q.png"])["brightness"].iloc[0] == pytest.approx(1)


def test_first_frame_of_many(tmp_path):
    frames = [Image.new("L", (5, 5), v) for v in (0, 128, 255)]
    for name in ("a.gif", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert describe_images([tmp_path / name])["brightness"].iloc[0] == 0


def test_memory_stays_bounded():
    big = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)  # 18 MB
    tracemalloc.start()
    describe_images([big])
    one = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    describe_images(big[i:i + 200, :200] for i in range(300))
    many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one < 27e6 and many < 15e6  # a copy of the picture and some megabytes; and a few small ones


# -- colour columns


def test_colour_columns_are_there_for_all_or_none(china):
    grey, colour = china[:30, :30, 0], china[:30, :30]
    without = [c for c in COLUMNS if c not in ("saturation", "red", "green", "blue")]
    assert list(describe_images([grey, grey]).columns) == without == list(describe_images([colour], colour=False).columns)
    both = describe_images([grey, colour])
    assert list(both.columns) == COLUMNS and both["channels"].tolist() == [1, 3]
    assert both["saturation"][0] == 0 and (both.loc[0, ["red", "green", "blue"]] == both["brightness"][0]).all()
    assert list(describe_images([grey], colour=True).columns) == COLUMNS
    assert drift(describe_images([colour] * 50), describe_images([grey] * 50, colour=True))["channels"].alarm


# -- bad input


def test_every_bad_file_is_named(tmp_path, china):
    Image.fromarray(china).save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    Image.fromarray(china).save(tmp_path / "good.png")
    png = (tmp_path / "good.png").read_bytes()
    bad = {"cut.jpg": whole[:5_000], "cut.png": png[:9_000], "empty.png": b"", "text.png": b"hello", "flipped.png": png[:200] + bytes(255 - b for b in png[200:]), "header.jpg": whole[:30]}
    for name, content in bad.items(): (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SchemaError, match="the set of images has 2 problems") as e: describe_images(tmp_path)
        table = describe_images(tmp_path, errors="report")
    assert all(name in str(e.value) for name in bad) and "good" not in str(e.value)
    assert len(table) == 8 and (table["problem"] != "").sum() == 6 and set(table["problem"]) == {"", "damaged file", "not an image file"}
    assert table.loc[table["problem"] != "", "width"].isna().all() and table.loc[["good.png", "good.jpg"]].notna().all().all()
    with pytest.raises(SchemaError, match="lost.png: no such file; check the path"): describe_images([tmp_path / "lost.png", china])
    json.dumps(table.reset_index().to_dict("records"), default=str)


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch, china):
    Image.fromarray(china).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for limit in (200_000, 100_000):  # over the limit, and over twice the limit, where Pillow itself refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(SchemaError, match="too many pixels.*MAX_IMAGE_PIXELS"): describe_images(tmp_path)


def test_bad_arrays_are_all_named(china):
    ok = np.zeros((4, 4))
    given_ = [ok, np.full((4, 4), np.nan), np.full((4, 4), 255.0), np.zeros(4), np.zeros((3, 9, 9)), np.zeros((0, 4)), np.zeros((4, 4), int), np.full((4, 4), -.1), "lost.png", 7, [[0, 1]], None,
              np.full((4, 4), np.inf), np.zeros((4, 4), complex)]
    with pytest.raises(SchemaError) as e: describe_images(given_)
    told = str(e.value)
    for part in ("image 1, image 12: NaN or infinite pixels", "image 2, image 7: pixels outside [0, 1] (255 to 255); divide by", "image 3, image 4: not the shape of an image ((4,))",
                 "image 5: no pixels", "image 6, image 13: pixels without a scale (int64)", "lost.png: no such file", "image 9, image 10, image 11: not an image (a int)"):
        assert part in told, part
    table = describe_images(given_, errors="report")
    assert (table["problem"] == "").tolist() == [True] + [False] * 13 and len(table) == 14
    many = np.full((5_000, 3, 5), 200.0)
    with pytest.raises(SchemaError, match="image 9 and 4,990 more: pixels outside"): describe_images(many)
    assert set(describe_images(many, errors="report")["problem"]) == {"pixels outside [0, 1]"}


@pytest.mark.parametrize("images", [np.zeros((4, 5)), np.zeros((28, 28, 3)), np.zeros((5, 9, 4), np.uint8), np.zeros(3), np.zeros(()), np.zeros((2, 4, 4, 5)), np.zeros((2, 0, 4)), np.zeros((2, 4, 4), int), 5, None,
                                    "nowhere/*.png", np.zeros((1, 2, 3, 4, 5))])
def test_what_is_no_set_of_images(images):
    with pytest.raises(ParameterError, match="images"): describe_images(images)


def test_other_arguments(tmp_path):
    with pytest.raises(ParameterError, match="errors='ignore'"): describe_images([], errors="ignore")
    with pytest.raises(ParameterError, match="colour='rgb'"): describe_images([], colour="rgb")
    with pytest.raises(ParameterError, match="holds no image file"): describe_images(tmp_path)


@pytest.mark.parametrize("images", [[], iter([]), np.zeros((0, 28, 28), np.uint8), np.zeros((0, 28, 28, 3))])
def test_no_images_are_an_empty_table(images, china):
    table = describe_images(images)
    assert table.shape == (0, 16) and table.dtypes["width"] == "int64" and table.dtypes["tilt"] == "float64"
    report = drift(describe_images([china[:9], china[9:20]]), table)
    assert not report.alarm and "no rows" in report.reasons[0]


def test_reported_problems_drift(china):
    good = [china[i:i + 20, :30] for i in range(200)]
    reference, window = (describe_images(x, errors="report") for x in (good, [np.zeros(3) if i % 3 == 0 else g for i, g in enumerate(good)]))
    report = drift(reference, window)
    assert "problem" in report.drifted and any("'not the shape of an image'" in r for r in report.reasons)


def test_no_false_alarm_in_crops_of_one_photograph(china):
    "Twelve or sixteen descriptors, budget 0.05: of 40 windows at most 7 may alarm (binomial, p = .001 at .05)"
    rng = np.random.default_rng(0)
    def crops(n: int) -> pd.DataFrame: return describe_images([china[r:r + 40, c:c + 40] for r, c in rng.integers(0, (387, 600), (n, 2))])
    reference = crops(2_000)
    assert sum(drift(reference, crops(200)).alarm for _ in range(40)) <= stats.binom.isf(1e-3, 40, .05)


# -- texts

TEXTS = ["Tested & TRIED: 5 stars!", "", "Schöne Größe, 3½ m²", "とても良い商品です。", "отлично!!!", "😀🎉 ❤️", "हिन्दी में लिखा", "한국어 리뷰", "\tx\u00a0y\u2003z\n", "don't rock'n'roll ’tis", "\ud800 lone", "\x00\x01"]


def by_hand(text: str) -> dict[str, float]:
    "Shares of characters by a plain loop; a mark counts as what it stands on"
    kinds: list[str] = []
    for c in text:
        category = unicodedata.category(c)
        if category[0] == "M" or category == "Cf": kinds.append(kinds[-1] if kinds else "?")
        else: kinds.append("Z" if c.isspace() else category)
    n = len(text)
    letters = sum(k[0] == "L" for k in kinds)
    def share(count: int, of: int) -> float: return count / of if of else math.nan
    return {"characters": n, "non_letters": share(n - letters, n), "digits": share(sum(k[0] == "N" for k in kinds), n), "punctuation": share(sum(k[0] == "P" for k in kinds), n),
            "symbols": share(sum(k[0] == "S" for k in kinds), n), "whitespace": share(sum(k == "Z" for k in kinds), n),
            "upper": share(sum(k in ("Lu", "Lt") for k in kinds), letters), "non_ascii": share(sum(not c.isascii() for c in text), n)}


def test_characters_equal_a_plain_loop():
    table = describe_text(TEXTS)
    for i, text in enumerate(TEXTS):
        for name, value in by_hand(text).items(): assert float(table[name][i]) == pytest.approx(value, nan_ok=True), (text, name)


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.text(max_size=30), st.text(alphabet="aB1 .'’é\u0301語カ😀\u200d\n_", max_size=20)), max_size=6))
def test_any_texts(texts):
    table = describe_text(texts)
    assert len(table) == len(texts) and [bool(x) for x in table["characters"].isna()] == [t is None for t in texts]
    for i, text in enumerate(texts):
        if text is None: assert table.iloc[i].isna().all()
        else:
            for name, value in by_hand(text).items(): assert float(table[name].iloc[i]) == pytest.approx(value, nan_ok=True), (text, name)
        alone = describe_text([text])
        pd.testing.assert_series_equal(alone.iloc[0], table.iloc[i], check_names=False, check_dtype=False)
    shares = table[["non_letters", "digits", "punctuation", "symbols", "whitespace", "upper", "non_ascii", "repeated"]].to_numpy(float)
    assert ((shares >= 0) & (shares <= 1) | np.isnan(shares)).all()


@given(st.text(alphabet="aBcß1 -.,'", max_size=40))
def test_ascii_words_equal_a_pattern(text):
    import re
    expected = re.findall(r"[^\W_]+(?:'[^\W_]+)*", fold(text))
    assert split_words([text])[0] == expected


@pytest.mark.parametrize("text,words", [
    ("日本語です", ["日", "本", "語", "で", "す"]), ("カタカナ", ["カ", "タ", "カ", "ナ"]), ("ｶﾞｲﾄﾞ", ["ガ", "イ", "ド"]), ("日本のJRに乗る", ["日", "本", "の", "jr", "に", "乗", "る"]), ("中文。中文", ["中", "文", "中", "文"]),
    ("葛\U000e0100城", ["葛\U000e0100", "城"]), ("한국어 리뷰", ["한국어", "리뷰"]), ("สวัสดีครับ ผม", ["สวัสดีครับ", "ผม"]), ("می‌خواهم", ["می‌خواهم"]), ("हिन्दी में", ["हिन्दी", "में"]), ("e\u0301t\u00e9", ["été"]), ("STRASSE straße", ["strasse", "strasse"]),
    ("l'été qu’il 'quoted'", ["l'été", "qu’il", "quoted"]), ("3.14 a_b x-y", ["3", "14", "a", "b", "x", "y"]), ("❤️👩‍👩‍👧 1️⃣", ["1️⃣"]), ("\u0301\u0301a", ["a"]), ("ＷＩＤＥ", ["wide"]), ("", []), ("...", [])])
def test_words_of_many_scripts(text, words):
    assert split_words([text])[0] == [unicodedata.normalize("NFKC", w) for w in words]


def test_words_do_not_run_over_the_end_of_a_text():
    words, place = split_words(["a'", "'b", "", "c", "\u0301d"])
    assert words == ["a", "b", "c", "d"] and place.tolist() == [0, 1, 3, 4]


def test_words_by_hand():
    row = describe_text(["The cat and the dog and THE bird"]).iloc[0]
    assert (row["words"], row["word_length"], row["repeated"]) == (8, 25 / 8, 3 / 8)


# -- vocabulary


def test_vocabulary_counts_texts_not_words():
    v = vocabulary(["a a a b", "a b", "c", None, ""], least=1)
    assert v.counts == {"a": 2, "b": 2, "c": 1} and v.texts == 4 and len(v) == 3
    assert vocabulary(["a b", "a c", "b c"], size=2).counts == {"a": 2, "b": 2}
    assert Vocabulary.from_json(v.to_json()) == v and json.loads(v.to_json())
    assert list(Vocabulary.from_json(vocabulary(["z a", "z a", "z"]).to_json()).counts) == ["z", "a"]  # the order is kept
    with pytest.raises(ParameterError, match="newer"): Vocabulary.from_json(v.to_json().replace('"version":1', '"version":2'))


def test_out_of_vocabulary_by_hand():
    v = vocabulary(["red rose", "red tulip", "rose"])
    assert describe_text(["red rose", "RED tulip", "blue", "..."], v)["out_of_vocabulary"].tolist()[:3] == [0, .5, 1]
    own = describe_text(["red rose", "red tulip", "rose"], v, own=True)["out_of_vocabulary"]
    assert own.tolist() == [1, 1, 1]  # two texts know red, so each has only one other
    assert "out_of_vocabulary" not in describe_text(["a"])


def test_own_words_are_as_strange_as_those_of_new_texts():
    "Good and Turing: leaving each text out makes the share of unknown words unbiased; within 3 standard errors"
    rng = np.random.default_rng(5)
    def texts(n: int) -> list[str]: return [" ".join(f"w{k}" for k in rng.zipf(1.3, 12)) for _ in range(n)]
    training, new = texts(3_000), texts(3_000)
    for least in (1, 2, 4):
        v = vocabulary(training, size=100_000, least=least)
        own, plain_, fresh = describe_text(training, v, own=True), describe_text(training, v), describe_text(new, v)
        a, b = own["out_of_vocabulary"], fresh["out_of_vocabulary"]
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 3 * error
        assert b.mean() - plain_["out_of_vocabulary"].mean() > 3 * error


# -- inputs


def test_texts_of_any_container():
    texts = ["one", None, "two three", ""]
    expected = describe_text(texts)
    ways = [tuple(texts), np.array(texts, dtype=object), pd.Series(texts, dtype=object), pd.Series(texts, dtype="string"), pa.array(texts), pa.chunked_array([texts[:1], texts[1:]]), pl.Series(texts), iter(texts), pd.Series(texts).astype("category"),
            pd.Series(texts, dtype=pd.ArrowDtype(pa.string())), ["one", float("nan"), "two three", ""], ["one", pd.NA, "two three", ""]]
    for x in ways: pd.testing.assert_frame_equal(describe_text(x), expected)
    assert describe_text(np.array(["one", "two"]))["characters"].tolist() == [3, 3]
    assert describe_text(pd.Series(["a", "b"], index=[7, 3])).index.tolist() == [7, 3]
    assert [str(t) for t in expected.dtypes[["characters", "words", "upper"]]] == ["Int64", "Int64", "float64"]


def test_pieces_do_not_show(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [None if rng.random() < .1 else " ".join(rng.choice(["a", "bb", "CCC", "語", "1"], rng.integers(0, 9))) for _ in range(500)]
    v = vocabulary(texts[:250])
    whole = describe_text(texts, v)
    monkeypatch.setattr("mlnb.monitor.text.PIECE", 37)
    pd.testing.assert_frame_equal(describe_text(texts, v), whole)
    assert vocabulary(texts[:250]) == v


@pytest.mark.parametrize("texts", ["text", b"text", 5, None, {"a": ["x"]}, pd.DataFrame({"a": ["x"]}), pa.table({"a": ["x"]}), pl.DataFrame({"a": ["x"]})])
def test_what_is_no_column_of_texts(texts):
    with pytest.raises(ParameterError, match="texts"): describe_text(texts)
    with pytest.raises(ParameterError, match="texts"): vocabulary(texts)


def test_what_is_no_text_is_counted():
    with pytest.raises(SchemaError, match=r"7 of 9 are no texts: 0 at 1, 1 at 2, 2 at 3, 3 at 4, 4 at 5, \.\.\.; convert"): describe_text(["a", *range(7), None])
    with pytest.raises(SchemaError, match="b'a' at 0"): describe_text([b"a"])
    for options in ({"size": 0}, {"least": 0}, {"size": 1.5}, {"least": True}):
        with pytest.raises(ParameterError, match=f"{next(iter(options))}="): vocabulary(["a"], **options)


def test_no_texts_are_an_empty_table():
    table = describe_text([])
    assert len(table) == 0 and len(table.columns) == 11 and list(table.dtypes) == list(describe_text(["a"]).dtypes)
    assert not drift(describe_text(["a b", "c"]), table).alarm
    assert describe_text([None, None]).isna().all().all() and vocabulary([]).texts == 0
    assert not drift(describe_text(["a b", "c d", None] * 30), describe_text(["a b", "c d", None] * 10)).alarm
