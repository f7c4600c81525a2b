"""Pictures: PNG files, heat maps, overlays, captions, contact sheets. Arrays: uint8 RGB [H, W, 3] or gray [H, W]."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path

import cv2
import numpy as np

from utils.files import write_bytes

CYAN, GREEN = (0, 229, 255), (64, 255, 96)  # colours of predictions and ground truth
PAPER, INK, FAINT = (24, 24, 28), (240, 240, 244), (160, 160, 170)  # caption strip, its text, its remarks
FONT = cv2.FONT_HERSHEY_SIMPLEX
READABLE_WIDTH = 480  # pixels, to which pictures for people are enlarged by a whole factor
CAPTION_LINES = 8  # longer captions are cut
# OpenCV 5 draws most scripts, OpenCV 4 a question mark for every byte that is not ASCII.
DRAWS_UNICODE = int(cv2.__version__.split(".")[0]) >= 5
LOOKALIKES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "ß": "ss"})
REMARK = "(? = a letter that cannot be drawn here)"


def encode(image: np.ndarray, suffix: str, quality: int = 85) -> bytes:
    """Return the bytes of an image file; `suffix` is ".png" or ".jpg", `quality` is for the latter."""
    bgr = image[..., ::-1] if image.ndim == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    ok, data = cv2.imencode(suffix, np.ascontiguousarray(bgr), options)
    assert ok, f"OpenCV could not encode {image.shape} {image.dtype} as {suffix}"
    return data.tobytes()


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write a .png or .jpg atomically.

    Raises:
        UserError: if the file cannot be written, such as on a full disk (`cv2.imwrite` would only return False).
    """
    write_bytes(path, encode(image, Path(path).suffix))


def data_uri(image: np.ndarray, max_width: int) -> str:
    """Return a `data:` address of the picture as a JPEG, at most `max_width` pixels wide."""
    jpeg = encode(scale_to_width(image, min(image.shape[1], max_width)), ".jpg", 82)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def scale_to_width(picture: np.ndarray, width: int) -> np.ndarray:
    """Scale a picture to a width in pixels."""
    if picture.shape[1] == width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    shrinks = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def enlarge(photo: np.ndarray) -> np.ndarray:
    """Enlarge a photo by the smallest whole factor k that makes it `READABLE_WIDTH` wide."""
    height, width = photo.shape[:2]
    factor = -(-READABLE_WIDTH // width)
    return photo if factor == 1 else cv2.resize(photo, (factor * width, factor * height), interpolation=cv2.INTER_CUBIC)


def draw_heat_map(probability: np.ndarray) -> np.ndarray:
    """Draw values in 0..1, [H, W], as colours (Inferno: black 0, orange 0.7, light yellow 1); NaN is drawn as 0."""
    levels = np.clip(np.nan_to_num(probability) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def overlay(photo: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = CYAN) -> np.ndarray:
    """Tint and outline the masked region of a photo; the rest is dimmed and half gray.

    The outline lies just outside the region, so small objects stay visible, and has a dark rim, so it stands out from
    light and dark surroundings.

    Args:
        photo: uint8 RGB [H, W, 3].
        mask: bool [H, W].
        color: RGB of tint and outline.

    Returns:
        The picture, uint8 RGB [k H, k W, 3], k as in `enlarge`.
    """
    photo = enlarge(photo)
    factor = photo.shape[0] // mask.shape[0]
    mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    gray = photo.mean(axis=2, keepdims=True)
    outside = 0.6 * (0.5 * photo + 0.5 * gray)
    inside = 0.72 * photo + 0.28 * np.array(color)
    picture = np.where(mask[..., None], inside, outside).astype(np.uint8)
    line = max(1, round(photo.shape[1] / 320))
    region = mask.astype(np.uint8)
    picture[(_dilate(region, 2 * line) > 0) & ~mask] = (0, 0, 0)
    picture[(_dilate(region, line) > 0) & ~mask] = color
    return picture


def _dilate(region: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.dilate(region, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1)))


def transliterate(text: str) -> str:
    """Return the nearest ASCII: accents are dropped, quotes and dashes made plain, other letters become "?"."""
    plain = unicodedata.normalize("NFKD", text.translate(LOOKALIKES))
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))


def add_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Add text under a picture, wrapped to its width; at most `CAPTION_LINES` lines.

    Letters are at least 9 pixels high. Letters that OpenCV cannot draw become "?", and a remark says so.
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    drawn = text if DRAWS_UNICODE else transliterate(text)
    lost = drawn.count("?") > text.count("?")
    width = picture.shape[1]
    scale = min(1.5, max(0.42, width / 1000))
    stroke = max(1, round(1.3 * scale))
    margin = round(14 * scale) + 2
    lines = _wrap(drawn, width - 2 * margin, scale, stroke)
    if len(lines) > CAPTION_LINES:
        lines = [*lines[: CAPTION_LINES - 1], lines[CAPTION_LINES - 1] + " ..."]
    remarks = _wrap(REMARK, width - 2 * margin, scale, stroke) if lost else []
    step = round(34 * scale)
    strip = np.full((step * len(lines + remarks) + 2 * margin - round(8 * scale), width, 3), PAPER, np.uint8)
    for row, line in enumerate(lines + remarks):
        ink = INK if row < len(lines) else FAINT
        place = (margin, margin + row * step + round(20 * scale))
        cv2.putText(strip, line, place, FONT, scale, ink, stroke, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def _wrap(text: str, width: int, scale: float, stroke: int) -> list[str]:
    """Break text into lines that fit into `width` pixels, words too where needed. At least one line."""

    def fits(candidate: str) -> bool:
        return cv2.getTextSize(candidate, FONT, scale, stroke)[0][0] <= width

    lines, line = [], ""
    for word in text.split():
        if line and fits(f"{line} {word}"):
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and not fits(line + letter):
                lines.append(line)
                line = ""
            line += letter
        if len(lines) > CAPTION_LINES:
            break
    return [*lines, line]


def contact_sheet(rows: list[list[np.ndarray]], cell_width: int = 400, gap: int = 6) -> np.ndarray:
    """Arrange pictures in a grid, scaled to `cell_width` pixels; rows are as high as their highest picture."""
    columns = max(len(row) for row in rows)
    strips = []
    for row in rows:
        cells = [scale_to_width(picture, cell_width) for picture in row]
        height = max(cell.shape[0] for cell in cells)
        strip = np.full((height + gap, columns * (cell_width + gap) + gap, 3), PAPER, np.uint8)
        for column, cell in enumerate(cells):
            left = gap + column * (cell_width + gap)
            strip[: cell.shape[0], left : left + cell_width] = cell
        strips.append(strip)
    return np.concatenate([np.full((gap, strips[0].shape[1], 3), PAPER, np.uint8), *strips])
