"""The smallest Word, PowerPoint and PDF files that say something: what readers of documents are tested with."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from xml.sax.saxutils import escape

_OFFICE = "http://schemas.openxmlformats.org"
_W = f'xmlns:w="{_OFFICE}/wordprocessingml/2006/main"'
_P = (
    f'xmlns:p="{_OFFICE}/presentationml/2006/main" xmlns:a="{_OFFICE}/drawingml/2006/main" '
    f'xmlns:r="{_OFFICE}/officeDocument/2006/relationships"'
)


def word(paragraphs: Sequence[str]) -> bytes:
    """A Word document; a tab in a paragraph is one of Word's."""
    tabs = "<w:pPr><w:tabs><w:tab/></w:tabs></w:pPr>"
    texts = ["<w:t>" + escape(text).replace("\t", "</w:t><w:tab/><w:t>") + "</w:t>" for text in paragraphs]
    body = "".join(f"<w:p>{tabs}<w:r>{text}</w:r></w:p>" for text in texts)
    return _archive({"word/document.xml": f"<w:document {_W}><w:body>{body}</w:body></w:document>"})


def slides(texts: Sequence[Sequence[str]]) -> bytes:
    """A PowerPoint file: per slide the texts of its shapes, lines of which are paragraphs. Stored in another order."""
    files = {}
    for number, shapes in enumerate(texts, 1):
        bodies = [
            "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in one.split("\n")) for one in shapes
        ]
        tree = "".join(f"<p:sp><p:txBody>{body}</p:txBody></p:sp>" for body in bodies)
        name = f"ppt/slides/slide{len(texts) - number + 1}.xml"
        files[name] = f"<p:sld {_P}><p:cSld><p:spTree>{tree}</p:spTree></p:cSld></p:sld>"
    listed = "".join(f'<p:sldId id="{number}" r:id="r{number}"/>' for number in range(1, len(texts) + 1))
    files["ppt/presentation.xml"] = f"<p:presentation {_P}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"
    related = "".join(
        f'<Relationship Id="r{number}" Target="slides/slide{len(texts) - number + 1}.xml"/>'
        for number in range(1, len(texts) + 1)
    )
    space = f'xmlns="{_OFFICE}/package/2006/relationships"'
    files["ppt/_rels/presentation.xml.rels"] = f"<Relationships {space}>{related}</Relationships>"
    return _archive(files)


def _lines(text: str) -> str:
    return "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in text.split("\n"))


def pdf(text: str) -> bytes:
    """One page with one line in Helvetica."""
    content = f"BT /F1 18 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, starts = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        starts.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % start for start in starts)
    size = len(objects) + 1
    return data + b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        table,
        size,
        len(data),
    )


def _archive(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return made.getvalue()
