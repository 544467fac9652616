"""Facts about marked elements from a DOM snapshot, and a screenshot with the marks drawn on it. Pure but for Pillow."""

from __future__ import annotations

import base64
import importlib
import io
from typing import Any

_NAMES = {"bid": "bid", "browsergym_visibility_ratio": "visibility", "browsergym_set_of_marks": "set_of_marks"}


def element_properties(dom: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """bid → visibility (0..1), bbox [x, y, width, height] in the viewport or None, clickable, set_of_marks."""
    found: dict[str, dict[str, Any]] = {}
    origins: dict[int, tuple[float, float]] = {}
    documents, strings = dom["documents"], dom["strings"]
    for number, document in enumerate(documents):
        x, y = origins.get(number, (0.0, 0.0))
        x, y = x - document.get("scrollOffsetX", 0), y - document.get("scrollOffsetY", 0)
        nodes, layout = document["nodes"], document["layout"]
        boxes = {
            node: [bounds[0] + x, bounds[1] + y, bounds[2], bounds[3]]
            for node, bounds, rect in zip(layout["nodeIndex"], layout["bounds"], layout["clientRects"], strict=False)
            if rect
        }
        places = dict(zip(layout["nodeIndex"], layout["bounds"], strict=False))
        content = nodes["contentDocumentIndex"]
        for node, child in zip(content["index"], content["value"], strict=True):
            bounds = places.get(node, [0.0, 0.0])
            origins[child] = (x + bounds[0], y + bounds[1])
        clickable = set(nodes["isClickable"]["index"])
        for node, attributes in enumerate(nodes["attributes"]):
            named = {
                _NAMES[name]: strings[attributes[at + 1]]
                for at in range(0, len(attributes), 2)
                if (name := strings[attributes[at]]) in _NAMES
            }
            if bid := named.get("bid"):
                found[bid] = {
                    "visibility": _number(named.get("visibility", "0")),
                    "bbox": boxes.get(node),
                    "clickable": node in clickable,
                    "set_of_marks": named.get("set_of_marks") == "1",
                }
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def draw_marks(png: str, properties: dict[str, dict[str, Any]]) -> str:
    """The screenshot (base64) with a dashed box and a label on every marked element; "" where there is no Pillow."""
    try:
        image_module: Any = importlib.import_module("PIL.Image")
        draw_module: Any = importlib.import_module("PIL.ImageDraw")
        font_module: Any = importlib.import_module("PIL.ImageFont")
    except ImportError:
        return ""
    image = image_module.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    draw = draw_module.Draw(image)
    font = font_module.load_default(size=12)
    for bid, facts in properties.items():
        box = facts["bbox"]
        if not facts["set_of_marks"] or not box or box[2] * box[3] < 20:
            continue
        x, y, width, height = box
        if x + width < 0 or y + height < 0 or x > image.width or y > image.height:
            continue
        _dashed(draw, (x, y, x + width, y + height))
        left, top, right, bottom = font.getbbox(bid)
        tag_x, tag_y = max(0, x), max(0, y - (bottom - top + 6) / 2 + 4)
        corner = (tag_x + right - left + 6, tag_y + bottom - top + 6)
        draw.rectangle((tag_x, tag_y, *corner), fill="black", outline="white")
        draw.text((tag_x + 3 - left, tag_y + 3 - top), bid, font=font, fill="white")
    out = io.BytesIO()
    image.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def _dashed(draw: Any, box: tuple[float, float, float, float], dash: int = 4, gap: int = 8) -> None:
    x0, y0, x1, y1 = (max(-16.0, min(4096.0, value)) for value in box)
    for at in range(int(x0), int(x1), dash + gap):
        end = min(at + dash, x1)
        draw.line((at, y0, end, y0), fill="black", width=2)
        draw.line((at, y1, end, y1), fill="black", width=2)
    for at in range(int(y0), int(y1), dash + gap):
        end = min(at + dash, y1)
        draw.line((x0, at, x0, end), fill="black", width=2)
        draw.line((x1, at, x1, end), fill="black", width=2)
