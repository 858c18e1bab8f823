"""Spreadsheets that are made, friendly and hostile ones; those of other programs are in ``tests/spreadsheets``."""

import io
import zipfile
from collections.abc import Iterable
from xml.sax.saxutils import escape

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def xlsx(rows: Iterable[Iterable[str]], *, extra: bytes = b"") -> bytes:
    """A workbook of one sheet of texts; ``extra``: XML at the end of its rows."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{PACKAGE}"><Relationship Id="r1" Type="{RELATIONS}/officeDocument"'
            ' Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{MAIN}" xmlns:r="{RELATIONS}"><sheets>'
            '<sheet name="Sheet" sheetId="1" r:id="r1"/></sheets></workbook>',
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{PACKAGE}"><Relationship Id="r1" Type="{RELATIONS}/worksheet"'
            ' Target="worksheets/sheet1.xml"/></Relationships>',
        )
        with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as sheet:
            sheet.write(f'<worksheet xmlns="{MAIN}"><sheetData>'.encode())
            for number, row in enumerate(rows, 1):
                cells = "".join(
                    f'<c r="{chr(65 + column)}{number}" t="inlineStr"><is><t>{escape(cell)}</t></is></c>'
                    for column, cell in enumerate(row)
                )
                sheet.write(f'<row r="{number}">{cells}</row>'.encode())
            sheet.write(extra + b"</sheetData></worksheet>")
    return buffer.getvalue()


def cell_in_the_last_corner() -> bytes:
    """An XLSX of a kilobyte whose two cells span 17 thousand million."""
    return xlsx([["a"]], extra=b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')


def zip_bomb() -> bytes:
    """An XLSX of which each file declares to have 2 GB, as those of a bomb do."""
    data = bytearray(xlsx([["a"]]))
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:  # entries of the central directory
        data[at + 24 : at + 28] = (2_000_000_000).to_bytes(4, "little")
    return bytes(data)
