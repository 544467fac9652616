"""The agent-skills functions that read documents, as they run in the sandbox's kernel. All print.

Names and texts are those of OpenHands' plugin. Word and PowerPoint files are zip archives of XML and need no library;
PDF needs `pypdf` (the template has it); what a model has to look at or listen to goes to the OpenAI-compatible endpoint
of the environment. Runs inside: the standard library only, shipped as source by `skills.py`.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import posixpath
import re
import shutil
import subprocess
import tempfile
import urllib.request
import uuid
import zipfile
from typing import Any
from xml.etree import ElementTree

__all__ = ["parse_audio", "parse_docx", "parse_image", "parse_latex", "parse_pdf", "parse_pptx", "parse_video"]

WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
SLIDES = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
REFERENCE = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
DESCRIBE = "Describe this image as detail as possible."
MAX_FRAMES = 30
REQUEST_S = 300


def parse_pdf(file_path: str) -> None:
    """Prints the text of a PDF file, page by page."""
    print(f"[Reading PDF file from {file_path}]")
    try:
        from pypdf import PdfReader  # type: ignore[import-not-found]
    except ImportError:
        print("ERROR: reading PDF needs the library pypdf: run `pip install pypdf`.")
        return
    pages = [page.extract_text() for page in PdfReader(file_path).pages]
    print("\n\n".join(f"@@ Page {number} @@\n{text}" for number, text in enumerate(pages, 1)).strip())


def parse_docx(file_path: str) -> None:
    """Prints the paragraphs of a Word document."""
    print(f"[Reading DOCX file from {file_path}]")
    with zipfile.ZipFile(file_path) as archive:
        body = _xml(archive, "word/document.xml").find(f"{WORD}body")
    paragraphs = [] if body is None else [_word_text(one) for one in body.findall(f"{WORD}p")]
    print("".join(f"@@ Page {number} @@\n{text}\n\n" for number, text in enumerate(paragraphs, 1)))


def parse_pptx(file_path: str) -> None:
    """Prints the texts of a PowerPoint file, slide by slide."""
    print(f"[Reading PowerPoint file from {file_path}]")
    try:
        lines = []
        with zipfile.ZipFile(file_path) as archive:
            for number, name in enumerate(_slides(archive), 1):
                lines.append(f"@@ Slide {number} @@")
                shapes = _xml(archive, name).iterfind(f"{SLIDES}cSld/{SLIDES}spTree/{SLIDES}sp")
                lines += [_shape_text(shape) for shape in shapes]
        print("\n".join(lines))
    except Exception as error:
        print(f"Error reading PowerPoint file: {error}")


def parse_latex(file_path: str) -> None:
    """Prints the text of a LaTeX file without its commands."""
    print(f"[Reading LaTex file from {file_path}]")
    with open(file_path, errors="replace") as file:
        source = file.read()
    try:
        from pylatexenc.latex2text import LatexNodes2Text  # type: ignore[import-not-found]

        print(LatexNodes2Text().latex_to_text(source).strip())
    except ImportError:
        print(_without_commands(source).strip())


def parse_audio(file_path: str, model: str = "whisper-1") -> None:
    """Prints the transcript of an audio file, in English."""
    print(f"[Transcribing audio file from {file_path}]")
    try:
        with open(file_path, "rb") as file:
            body, kind = _form({"model": model}, os.path.basename(file_path), file.read())
        print(_ask("audio/translations", body, kind)["text"])
    except Exception as error:
        print(f"Error transcribing audio file: {error}")


def parse_image(file_path: str, task: str = DESCRIBE) -> None:
    """Prints what a model says of an image."""
    print(f"[Reading image file from {file_path}]")
    try:
        with open(file_path, "rb") as file:
            print(_look_at(task, file.read(), mimetypes.guess_type(file_path)[0] or "image/jpeg"))
    except Exception as error:
        print(f"Error with the request: {error}")


def parse_video(file_path: str, task: str = DESCRIBE, frame_interval: int = 30) -> None:
    """Prints what a model says of every `frame_interval`-th frame of a video, thirty at most."""
    print(f"[Processing video file from {file_path} with frame interval {frame_interval}]")
    try:
        frames = _frames(file_path, max(1, frame_interval))
    except Exception as error:
        print(f"Error reading the video: {error}")
        return
    print(f"Totally {len(frames)} would be analyze...\n")
    for number, frame in enumerate(frames, 1):
        print(f"Process the {file_path}, current No. {number * frame_interval} frame...")
        try:
            print(f"Frame {number}'s content: {_look_at(task, frame, 'image/jpeg')}\n")
        except Exception as error:
            print(f"Error with the request: {error}")


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    data = archive.read(name)
    if b"<!DOCTYPE" in data:
        raise ValueError(f"{name} has a document type declaration, which such a file has no use for")
    return ElementTree.fromstring(data)


def _word_text(paragraph: ElementTree.Element) -> str:
    text = ""
    for part in (part for run in paragraph.iter(f"{WORD}r") for part in run):
        if part.tag == f"{WORD}t":
            text += part.text or ""
        elif part.tag == f"{WORD}tab":
            text += "\t"
        elif part.tag in (f"{WORD}br", f"{WORD}cr") and part.get(f"{WORD}type") not in ("page", "column"):
            text += "\n"
    return text


def _slides(archive: zipfile.ZipFile) -> list[str]:
    """Names of the slides in the order in which they are shown."""
    listed = _xml(archive, "ppt/_rels/presentation.xml.rels")
    targets = {one.get("Id"): posixpath.normpath(posixpath.join("ppt", one.get("Target") or "")) for one in listed}
    shown = _xml(archive, "ppt/presentation.xml").iterfind(f"{SLIDES}sldIdLst/{SLIDES}sldId")
    return [targets[one.get(REFERENCE)].lstrip("/") for one in shown]


def _shape_text(shape: ElementTree.Element) -> str:
    paragraphs = shape.iterfind(f"{SLIDES}txBody/{DRAWING}p")
    return "\n".join(
        "".join("\v" if part.tag == f"{DRAWING}br" else part.text or "" for part in paragraph.iter()
                if part.tag in (f"{DRAWING}t", f"{DRAWING}br"))
        for paragraph in paragraphs
    )  # fmt: skip


def _without_commands(source: str) -> str:
    """What a reader would see of simple LaTeX: no comments, preamble, environments; the arguments of commands stay."""
    text = re.sub(r"(?<!\\)%.*", "", source)
    if begin := re.search(r"\\begin\{document\}", text):
        text = text[begin.end() :].partition(r"\end{document}")[0]
    text = re.sub(r"\\(?:begin|end)\{[^}]{0,200}\}(?:\[[^\]]{0,200}\])?", "", text)
    text = re.sub(r"\\(?:label|ref|cite|usepackage|includegraphics)(?:\[[^\]]{0,200}\])?\{[^}]{0,200}\}", "", text)
    text = re.sub(r"\\(?:part|chapter|(?:sub){0,2}section)\*?\{([^}]{0,200})\}", r"\n\n§ \1\n", text)
    text = text.replace(r"\\", "\n").replace("~", " ").replace("``", '"').replace("''", '"')
    text = re.sub(r"\\item\b\s*", "\n* ", text)
    text = re.sub(r"\\([%&$#_{}])", "\0\\1", text)
    text = re.sub(r"\\[a-zA-Z]+\*?(?:\[[^\]]{0,200}\])?\s?|(?<!\0)[{}$]", "", text)
    return re.sub(r"\n{3,}", "\n\n", text.replace("\0", ""))


def _frames(path: str, interval: int) -> list[bytes]:
    """JPEG images. By OpenCV or ffmpeg, whichever is there."""
    try:
        import cv2  # type: ignore[import-not-found]
    except ImportError:
        if shutil.which("ffmpeg") is None:
            raise RuntimeError("it needs `pip install opencv-python-headless` or the program ffmpeg") from None
        with tempfile.TemporaryDirectory() as folder:
            chosen = f"select=not(mod(n\\,{interval}))"
            command = ["ffmpeg", "-v", "error", "-i", path, "-vf", chosen, "-vsync", "vfr", f"{folder}/%06d.jpg"]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
            found = [open(f"{folder}/{name}", "rb").read() for name in sorted(os.listdir(folder))]  # noqa: SIM115
        return _spread(found)
    video, found, number = cv2.VideoCapture(path), [], 0
    while video.isOpened():
        good, frame = video.read()
        if not good:
            break
        if number % interval == 0:
            found.append(bytes(cv2.imencode(".jpg", frame)[1]))
        number += 1
    video.release()
    return _spread(found)


def _spread(frames: list[bytes]) -> list[bytes]:
    step = -(-len(frames) // MAX_FRAMES) or 1
    return frames[::step]


def _look_at(task: str, image: bytes, kind: str) -> str:
    url = f"data:{kind};base64,{base64.b64encode(image).decode()}"
    content = [{"type": "text", "text": task}, {"type": "image_url", "image_url": {"url": url}}]
    asked = {
        "model": os.environ.get("OPENAI_MODEL", "gpt-4o"),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": int(os.environ.get("MAX_TOKEN", "500")),
    }
    answer = _ask("chat/completions", json.dumps(asked).encode(), "application/json")
    return str(answer["choices"][0]["message"]["content"])


def _form(fields: dict[str, str], name: str, data: bytes) -> tuple[bytes, str]:
    """(body, content type) of a form with one file."""
    mark = uuid.uuid4().hex
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
    safe = name.replace('"', "_")
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{safe}"\r\n'
    body = "".join(parts).encode() + f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
    return body + data + f"\r\n--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"


def _ask(path: str, body: bytes, kind: str) -> Any:
    if not os.environ.get("OPENAI_API_KEY"):
        raise RuntimeError("OPENAI_API_KEY is not set in the sandbox")
    base = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    headers = {"Content-Type": kind, "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    request = urllib.request.Request(f"{base.rstrip('/')}/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
        return json.load(answer)
