"""What an uploaded CSV may look like, and what is said of one that can't be used."""

import csv
import gzip
import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from api.uploads.csv import dialect as dialect_module
from api.uploads.csv.dialect import DELIMITERS, MAX_BLANK_ROWS
from api.uploads.csv.reader import (
    MAX_BAD_ROWS_NAMED,
    MAX_HEADER_BYTES,
    MAX_NAME_CHARS,
    MAX_ROW_BYTES,
    MAX_SERIAL_CHARS,
    CheckedCsv,
    CsvRejected,
    Row,
    check,
    check_in_steps,
    next_step,
    read_rows,
)
from api.uploads.csv.urls import MAX_URL_CHARS, split_urls, url_problem
from streams.events.images import ImageRequested
from streams.projections.csv_format import header as output_header
from streams.projections.csv_format import row as output_row
from streams.projections.csv_format import unprotect

MIB = 1024 * 1024
HEADER = "S. No.,Product Name,Input Image URLs\n"
ROW = "1,Mug,https://a.example/1.jpg\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "upload.csv"


def read(path: Path, data: bytes | str, content_type: str | None = None) -> tuple[CheckedCsv, list[Row]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    checked = check(path, max_images=1000, content_type=content_type)
    rows = list(read_rows(path, checked))
    assert len(rows) == checked.rows
    assert sum(len(row.urls) for row in rows) == checked.images
    assert [row.number for row in rows] == list(range(checked.rows))
    assert all(len(row.cells) == len(checked.header) for row in rows)
    return checked, rows


def refusal(path: Path, data: bytes | str, max_images: int = 1000) -> CsvRejected:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(CsvRejected) as caught:
        check(path, max_images=max_images)
    rejected = caught.value
    assert rejected.errors
    assert rejected.detail
    assert all(error.row >= 1 and error.code and error.message for error in rejected.errors)
    return rejected


def faults(rejected: CsvRejected) -> list[tuple[int, str | None, str]]:
    return [(error.row, error.column, error.code) for error in rejected.errors]


# Encodings


TEXT = HEADER + "1,Tasse „Größe“ • 5 €,https://a.example/ü.jpg\n"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
        ("utf-32-le", b"\xff\xfe\x00\x00"),
        ("utf-32-be", b"\x00\x00\xfe\xff"),
        ("cp1252", b""),
    ],
)
def test_reader_detects_encoding_of_file(file: Path, encoding: str, mark: bytes) -> None:
    checked, [row] = read(file, mark + TEXT.encode(encoding))
    assert checked.header == ("S. No.", "Product Name", "Input Image URLs")
    assert (row.serial, row.product_name) == ("1", "Tasse „Größe“ • 5 €")
    assert row.urls == ("https://a.example/ü.jpg",)


def test_reader_detects_chinese_utf_16_without_bom(file: Path) -> None:
    text = (
        "编号说明,S. No.,Product Name,Input Image URLs\n"
        + "一,1,一一丁七万丈三上下不与丐丑专且世丘,https://a.example/1.jpg\n" * 50
    )
    for encoding in ("utf-16-le", "utf-16-be"):
        assert read(file, text.encode(encoding))[1][49].product_name == "一一丁七万丈三上下不与丐丑专且世丘"


def test_declared_charset_applies_only_to_undecodable_utf_8(file: Path) -> None:
    text = HEADER + "1,カップ,https://a.example/1.jpg\n"
    assert read(file, text.encode("shift_jis"), "text/csv; charset=Shift_JIS")[1][0].product_name == "カップ"
    assert read(file, text.encode(), "text/csv; charset=ISO-8859-1")[1][0].product_name == "カップ"


def test_reader_ignores_unknown_charset(file: Path) -> None:
    data = TEXT.encode("cp1252")
    for charset in ("x-unheard-of", "unicode_escape", "idna", "zlib_codec", ""):
        assert read(file, data, f"text/csv; charset={charset}")[1][0].product_name == "Tasse „Größe“ • 5 €"


def test_reader_rejects_damaged_utf_8(file: Path) -> None:
    data = (HEADER + "1,Größe,https://a.example/1.jpg\n2,").encode() + b"Gr\xc3,https://a.example/1.jpg\n"
    assert faults(refusal(file, data)) == [(3, None, "encoding")]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe" + HEADER.encode("utf-16-le") + b"x",
        b"\xef\xbb\xbf" + HEADER.encode() + b"1,\xff,https://a.example/\n",
        HEADER.encode() + b"1,\x81\x8d,https://a.example/\n",
        b"\xff\xfe" + "S\ud800".encode("utf-16-le", "surrogatepass"),
    ],
)
def test_reader_rejects_undecodable_bytes(file: Path, data: bytes) -> None:
    assert refusal(file, data).errors[0].code == "encoding"


# Delimiters, lines, quotes


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_chosen_by_matching_header(file: Path, delimiter: str) -> None:
    url = "https://a.example/w_1,h_2;v|x.jpg"
    text = (
        delimiter.join(("S. No.", "Product Name", "Input Image URLs")) + "\n" + delimiter.join(("1", "Mug", f'"{url}"'))
    )
    checked, [row] = read(file, text)
    assert checked.dialect.delimiter == delimiter
    assert row.urls == (url,)


def test_commas_in_header_do_not_hide_semicolon_delimiter(file: Path) -> None:
    text = "S. No.;Product Name;Input Image URLs (a, b, c, d, e);Input Image URLs\n1;Mug;;https://a.example/1.jpg\n"
    assert read(file, text)[0].dialect.delimiter == ";"


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "sep=;;;"])
def test_sep_line_of_excel_names_delimiter(file: Path, first: str) -> None:
    text = f"{first}\r\nS. No.;Product Name;Input Image URLs\r\n1;Mug;https://a.example/1.jpg\r\n"
    assert read(file, text)[1][0].product_name == "Mug"
    assert faults(refusal(file, text + "2;;https://a.example/1.jpg"))[0][0] == 4


def test_sep_line_may_name_any_delimiter(file: Path) -> None:
    assert (
        read(file, "sep=^\nS. No.^Product Name^Input Image URLs\n1^Mug^https://a.example/1.jpg\n")[1][0].serial == "1"
    )


def test_a_sep_line_that_is_wrong_does_no_harm(file: Path) -> None:
    assert read(file, "sep=;\n" + HEADER + ROW)[0].dialect.delimiter == ","


def test_line_ends_of_all_systems_may_be_mixed(file: Path) -> None:
    text = HEADER.strip() + "\r1,A,https://a.example/1\n2,B,https://a.example/2\r\n3,C,https://a.example/3\r\r\n"
    assert [row.serial for row in read(file, text)[1]] == ["1", "2", "3"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_cr_and_lf_end_a_line(file: Path, character: str) -> None:
    text = "S. No.,Product Name,Note,Input Image URLs\n" + f"1,Mug,a{character}b,https://a.example/1.jpg\n"
    _, [row] = read(file, text)
    assert row.cells[2] == f"a{character}b"


def test_rows_are_numbered_by_lines_of_file(file: Path) -> None:
    text = (
        '"S. No.","Product\r\nName","Input Image\nURLs"\r\n'
        '1,"Mug,\n""blue""","https://a.example/1.jpg,\nhttps://a.example/2.jpg"\n'
        "\n"
        "2,,https://a.example/3.jpg\n"
    )
    rejected = refusal(file, text)
    assert faults(rejected) == [(8, "Product\r\nName", "name_missing")]
    _, rows = read(file, text.replace("2,,", "2,Cup,"))
    assert rows[0].product_name == 'Mug,\n"blue"'
    assert rows[0].urls == ("https://a.example/1.jpg", "https://a.example/2.jpg")


def test_reader_accepts_space_before_quote(file: Path) -> None:
    _, [row] = read(file, HEADER + '1, "Mug, blue", "https://a.example/1.jpg, https://a.example/2.jpg"\n')
    assert row.product_name == "Mug, blue"
    assert len(row.urls) == 2


def test_an_inch_mark_inside_a_bare_cell_is_text(file: Path) -> None:
    assert read(file, HEADER + '1,Screen 24",https://a.example/1.jpg\n')[1][0].product_name == 'Screen 24"'


def test_reader_ignores_blank_lines_rows_and_columns(file: Path) -> None:
    text = "\n,,\nS. No.,Product Name,Input Image URLs,,\n\n1,Mug,https://a.example/1.jpg,,,,\n , ,\n,,,,\n\n"
    checked, [row] = read(file, text)
    assert checked.header == ("S. No.", "Product Name", "Input Image URLs")
    assert row.cells == ("1", "Mug", "https://a.example/1.jpg")


@pytest.mark.parametrize("end", ["\x1a", "\n\x1a", "\r\n\x1a\x1a"])
def test_the_end_mark_of_dos_is_no_data(file: Path, end: str) -> None:
    _, [row] = read(file, HEADER + ROW.strip() + end)
    assert row.urls == ("https://a.example/1.jpg",)


def test_cell_over_csv_modules_limit_is_row_error(file: Path) -> None:
    urls = ",".join(f"https://a.example/{'x' * 1500}/{n}.jpg" for n in range(300))
    assert len(urls) > 3 * 131_072
    assert faults(refusal(file, HEADER + f'1,Mug,"{urls}"\n')) == [(2, None, "row_too_long")]


@pytest.mark.slow
@pytest.mark.parametrize("filler", ["x", '","\n', "é", "\n", ","])
def test_reader_bounds_memory_of_endless_row(file: Path, filler: str) -> None:
    file.write_text(HEADER + ROW + '2,"' + filler * (24 * MIB // len(filler)), newline="")
    tracemalloc.start()
    try:
        with pytest.raises(CsvRejected) as caught:
            check(file, max_images=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert faults(caught.value) == [(3, None, "row_too_long")]
    assert peak < 16 * MIB


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(file: Path) -> None:
    with file.open("w") as output:
        output.write(HEADER)
        output.writelines(f"{n},Mug {n},https://a.example/{'x' * 1000}/{n}.jpg\n" for n in range(5000))
    tracemalloc.start()
    try:
        checked = check(file, max_images=5000)
        assert sum(len(row.urls) for row in read_rows(file, checked)) == 5000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file.stat().st_size > 4 * MIB
    assert peak < 2 * MIB


def test_reader_rejects_row_larger_than_record(file: Path) -> None:
    text = "S. No.,Product Name,Input Image URLs,Note\n" + ROW.strip() + ",{}\n" + "2,,https://a.example/2.jpg\n"
    fits = MAX_ROW_BYTES - 200
    assert faults(refusal(file, text.format("x" * fits))) == [(3, "Product Name", "name_missing")]
    assert faults(refusal(file, text.format("\x01" * (fits // 5)))) == [
        (2, None, "row_too_long"),
        (3, "Product Name", "name_missing"),
    ]


def test_header_is_bounded_more_tightly_than_rows(file: Path) -> None:
    text = HEADER.strip() + ",{}\n" + ROW
    checked, _ = read(file, text.format("x" * (MAX_HEADER_BYTES - 200)))
    assert checked.rows == 1
    assert faults(refusal(file, text.format("x" * MAX_HEADER_BYTES))) == [(1, None, "row_too_long")]


def test_largest_accepted_row_fits_into_record(file: Path) -> None:
    start = "1," + "\U0001f375" * MAX_NAME_CHARS + ",https://a.example/" + "é" * (MAX_URL_CHARS - 18) + ","
    note = "\x01" * ((MAX_ROW_BYTES - len(start.encode()) - 100) // 6)  # six bytes each in JSON
    _, [row] = read(file, HEADER.replace("\n", ",Note\n") + start + note)
    event = ImageRequested(
        request_id=str(uuid4()), index=0, row=row.number, position=0, serial=row.serial,
        product_name=row.product_name, input_url=row.urls[0], cells=row.cells,
    )  # fmt: skip
    assert MAX_ROW_BYTES < len(event.encode()) < 2 * MAX_ROW_BYTES


def test_an_unclosed_quote_is_reported_where_its_row_begins(file: Path) -> None:
    assert faults(refusal(file, HEADER + ROW + '2,"Mug,https://a.example/1.jpg\n3,Cup,\n')) == [
        (3, None, "quote_unclosed")
    ]


def test_broken_quotes_keep_errors_of_earlier_rows(file: Path) -> None:
    rejected = refusal(
        file, HEADER + ",Mug,https://a.example/1\n" + '2,"Mug" blue,https://a.example/1.jpg\n' + ",,\n,x,"
    )
    assert faults(rejected) == [(2, "S. No.", "serial_missing"), (3, None, "quote_broken")]
    assert rejected.error_count == 2


# The header


@pytest.mark.parametrize(
    "header",
    [
        "S. No.,Product Name,Input Image Urls",
        "Serial Number,Product Name,Input Image Urls",
        "serialNumber,productName,inputImageUrls",
        "S.No,Product,Image URLs",
        "Sr. No.,PRODUCT_NAME,Input Image Url(s)",
        "s no, product name ,INPUT IMAGE URL",
        "Serial No.,product-name,input_image_urls",
        "\ufeff\ufeffS. No.,Product\xa0Name,Input\tImage URLs",
        '"S.\nNo.","Product\r\nName","Input Image\rURLs"',
        "Sl. No.,Name,URL",
    ],
)
def test_the_columns_are_known_by_any_usual_spelling(file: Path, header: str) -> None:
    _, [row] = read(file, header + "\n" + ROW)
    assert (row.serial, row.product_name, row.urls) == ("1", "Mug", ("https://a.example/1.jpg",))


def test_reader_accepts_any_column_order_and_keeps_extras(file: Path) -> None:
    text = "Colour,Input Image URLs,,Product,Product Name,S. No.\n blue,https://a.example/1.jpg,x,P, Mug ,7\n"
    checked, [row] = read(file, text)
    assert checked.header == ("Colour", "Input Image URLs", "", "Product", "Product Name", "S. No.")
    assert row.cells == ("blue", "https://a.example/1.jpg", "x", "P", "Mug ", "7")
    assert (row.serial, row.product_name) == ("7", "Mug")


def test_short_rows_are_filled_up(file: Path) -> None:
    _, [row] = read(file, "S. No.,Product Name,Input Image URLs,Note,Price\n" + ROW)
    assert row.cells == ("1", "Mug", "https://a.example/1.jpg", "", "")


def test_reader_drops_output_columns_of_reuploaded_csv(file: Path) -> None:
    text = "S. No.,Output Image Urls,Product Name,Input Image URLs,Output Image URLs,Errors\n"
    checked, [row] = read(file, text + "1,x,Mug,https://a.example/1.jpg,https://b.example/1.jpg,image 1: no\n")
    assert checked.header == ("S. No.", "Product Name", "Input Image URLs")
    assert row.cells == ("1", "Mug", "https://a.example/1.jpg")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("S. No.,Product Name", [("Input Image URLs", "column_missing")]),
        ("a,b,c", [(t, "column_missing") for t in ("S. No.", "Product Name", "Input Image URLs")]),
        ("S. No.,s_no,Product Name,Input Image URLs", [("S. No.", "column_doubled")]),
        ("S. No.;Product Name;URL;url;", [("Input Image URLs", "column_doubled")]),
        ("S. No.,Product Name,URL" + ",x" * 300, [(None, "too_many_columns")]),
    ],
)
def test_reader_rejects_missing_and_repeated_columns(
    file: Path, header: str, expected: list[tuple[str | None, str]]
) -> None:
    rejected = refusal(file, "\n" + header + "\n" + ROW)
    assert faults(rejected) == [(2, column, code) for column, code in expected]


def test_file_without_header_gets_missing_header_error(file: Path) -> None:
    assert faults(refusal(file, ROW)) == [(1, None, "no_header")]


def test_header_with_broken_quotes_gets_quote_error(file: Path) -> None:
    assert faults(refusal(file, 'S. No.,"Product Name,Input Image URLs\n' + ROW)) == [(1, None, "quote_unclosed")]


# URLs


@pytest.mark.parametrize(
    ("cell", "urls"),
    [
        ("https://a.example/1.jpg", ["https://a.example/1.jpg"]),
        (" https://a/1 , https://a/2 ,, https://a/3 , ", ["https://a/1", "https://a/2", "https://a/3"]),
        ("https://a/1\nhttps://a/2\r\n,HTTP://a/3", ["https://a/1", "https://a/2", "HTTP://a/3"]),
        ("https://a/w_1,h_2/x.jpg,https://a/2", ["https://a/w_1,h_2/x.jpg", "https://a/2"]),
        ("https://a/fetch/https://b/1.jpg", ["https://a/fetch/https://b/1.jpg"]),
        ("https://a/1?to=https%3A//b,https://a/1?to=https%3A//b", ["https://a/1?to=https%3A//b"] * 2),
        ("https://a/my photo.jpg", ["https://a/my photo.jpg"]),
        ("https://a/1.jpg | https://a/2.jpg|  https://a/3.jpg |", [f"https://a/{n}.jpg" for n in (1, 2, 3)]),
        (
            "; https://a/1.jpg; https://a/2.jpg ;https://a/3.jpg ; ",
            ["https://a/1.jpg", "https://a/2.jpg ;https://a/3.jpg"],
        ),
        ("https://a/1.jpg;\nhttps://a/2.jpg ;\nhttps://a/3.jpg", [f"https://a/{n}.jpg" for n in (1, 2, 3)]),
        ("https://a/1;,https://a/2;", ["https://a/1;", "https://a/2;"]),
        (
            "https://a/1 ! alt : Red, blue mug ! title:x | https://a/2 !Alt: | https://a/3",
            ["https://a/1", "https://a/2", "https://a/3"],
        ),
        ("https://a/1!alt:x", ["https://a/1!alt:x"]),
        ("\u200bhttps://a/1\u200b,\u200ehttps://a/2\ufeff \u200b", ["https://a/1", "https://a/2"]),
        ("https://a/1\u2060\u200bhttps://a/2\u200d", ["https://a/1", "https://a/2"]),
        ("https://a/\u200c/1", ["https://a/\u200c/1"]),
        (",, \n", []),
        (" | ;\u200b", []),
        ("", []),
    ],
)
def test_urls_are_split_where_the_next_one_begins(cell: str, urls: list[str]) -> None:
    assert split_urls(cell) == tuple(urls)


def test_repeated_url_counts_twice_in_order(file: Path) -> None:
    checked, [row] = read(file, HEADER + '1,Mug,"https://a/1,https://a/2,https://a/1"\n')
    assert row.urls == ("https://a/1", "https://a/2", "https://a/1")
    assert checked.images == 3


def test_unquoted_urls_belong_to_last_column(file: Path) -> None:
    for header in (HEADER, HEADER.strip() + ",,\n"):
        checked, [row] = read(file, header + "1,Mug,https://a/1.jpg,https://a/2.jpg, https://a/3.jpg,,\n")
        assert row.urls == ("https://a/1.jpg", "https://a/2.jpg", "https://a/3.jpg")
        assert row.cells[2] == "https://a/1.jpg,https://a/2.jpg,https://a/3.jpg"
        assert checked.images == 3


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (HEADER, "1,Mug, blue,https://a/1.jpg"),
        (HEADER, "1,Mug,https://a/1.jpg,x.jpg"),
        ("S. No.,Input Image URLs,Product Name\n", "1,https://a/1.jpg,https://a/2.jpg,Mug"),
        ("S. No.,Input Image URLs,Product Name\n", "1,https://a/1.jpg,Mug,https://a/2.jpg"),
    ],
)
def test_cells_beyond_the_last_column_are_refused(file: Path, header: str, row: str) -> None:
    assert faults(refusal(file, header + row)) == [(2, None, "too_many_cells")]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://a.example/1.jpg", "url_scheme"),
        ("www.example.com/1.jpg", "url_scheme"),
        ("data:image/png;base64,AAAA", "url_scheme"),
        ("file:///etc/passwd", "url_scheme"),
        ("javascript:alert(1)", "url_scheme"),
        ("https:/a.example/1.jpg", "url_scheme"),
        ("-", "url_scheme"),
        ("https://a.example/1.jpg,ftp://a.example/2.jpg", "url_scheme"),
        ("https://a.example/1.jpg, 2.jpg", "url_scheme"),
        ("https://a.example/1.jpg,JavaScript:alert(1)", "url_scheme"),
        ("https://a.example/1.jpg,ftp:/b.example/2.jpg", "url_scheme"),
        ("https://a.example/1.jpg;http://a.example/2.jpg", "url_scheme"),
        ("https://a.example/1.jpg|HTTPS://a.example/2.jpg", "url_scheme"),
        ("https://a.example/1.jpg,//b.example/2.jpg", "url_scheme"),
        ("https://a.example/1.jpg | 2.jpg", "url_scheme"),
        ("https://a.example/1.jpg ; 2.jpg", "url_scheme"),
        ("https://a.example/1.jpg ! size : 3", "url_scheme"),
        ("https://user:secret@a.example/1.jpg", "url_userinfo"),
        ("https://user@a.example/1.jpg", "url_userinfo"),
        ("https:///1.jpg", "url_host"),
        ("https://", "url_host"),
        ("https://a.example:99999/", "url_host"),
        ("https://a.example:80x/", "url_host"),
        ("https://a b/1.jpg", "url_host"),
        ("https://a.example\\@b.example/", "url_userinfo"),
        ("https://a.example\\b", "url_host"),
        ("https://a\u2100b.example/", "url_host"),
        ("https://a.example/\x07.jpg", "url_characters"),
        ("https://a.example/1.jpg\nx.jpg", "url_characters"),
        ("https://a.example/" + "x" * MAX_URL_CHARS, "url_too_long"),
    ],
)
def test_a_url_that_can_never_be_fetched_is_refused(file: Path, url: str, code: str) -> None:
    rejected = refusal(file, HEADER + ROW + f'2,Cup,"{url}"\n')
    assert faults(rejected) == [(3, "Input Image URLs", code)]


def test_error_names_position_of_bad_url(file: Path) -> None:
    [error] = refusal(file, HEADER + '1,Mug,"https://a.example/1.jpg,https:///2.jpg,https:///3.jpg"\n').errors
    assert error.message.startswith("URL 2 has no valid host")


@pytest.mark.parametrize(
    "url",
    [
        "http://a/",
        "HTTPS://A.example:8443/x?y=1,2#z",
        "https://a.example",
        "https://192.0.2.1:80/x",
        "https://[2001:db8::1]:443/x",
        "https://bücher.example/ü.jpg",
        "https://a_b.example/@user/x@2x.jpg",
        "https://a.example/w_300,h_200/x:10,y:20/1.jpg,not-a-url",
        "https://a.example/1.jpg;v=2|small?u=https://b.example/1.jpg",
        "https://a.example/" + "x" * (MAX_URL_CHARS - len("https://a.example/")),
    ],
)
def test_reader_keeps_url_of_any_usual_form(url: str) -> None:
    assert split_urls(url) == (url,)
    assert url_problem(url) is None


def test_the_message_about_a_password_does_not_repeat_it(file: Path) -> None:
    rejected = refusal(file, HEADER + "1,Mug,https://user:secret@a.example/1.jpg\n")
    assert "secret" not in rejected.detail + rejected.errors[0].message


@settings(max_examples=100)
@given(st.text(alphabet=st.sampled_from("a1.:/@,?#[]\\ \u2100\uff0f\uff20"), max_size=12))
@example("a@b/")
@example("a\\@b/")
@example("a\uff0fb/")
def test_reader_rejects_url_that_parsers_read_differently(rest: str) -> None:
    url = "https://" + rest
    try:
        parts = urlsplit(url)
        suspicious = not parts.hostname or "@" in parts.netloc or "\\" in parts.netloc
    except ValueError:
        suspicious = "[" not in rest  # a bracketed host that is no address fails when it is connected to
    assert not suspicious or url_problem(url) is not None


# Rows


def test_each_column_of_a_bad_row_is_named(file: Path) -> None:
    rejected = refusal(file, HEADER + ROW + " , ,x\n3,Mug,\n4,Mug\n")
    assert faults(rejected) == [
        (3, "S. No.", "serial_missing"),
        (3, "Product Name", "name_missing"),
        (3, "Input Image URLs", "url_scheme"),
        (4, "Input Image URLs", "urls_missing"),
        (5, "Input Image URLs", "urls_missing"),
    ]
    assert rejected.error_count == 3
    assert rejected.detail == "3 of 4 rows are invalid"


def test_reader_counts_all_and_names_hundred_bad_rows(file: Path) -> None:
    rejected = refusal(file, HEADER + ROW * 10 + ",,x\n" * 250)
    assert rejected.error_count == 250
    assert len({error.row for error in rejected.errors}) == MAX_BAD_ROWS_NAMED
    assert len(rejected.errors) == 3 * MAX_BAD_ROWS_NAMED


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("1," + "x" * (MAX_NAME_CHARS + 1), "name_too_long"),
        ("1" * (MAX_SERIAL_CHARS + 1) + ",Mug", "serial_too_long"),
        ("1,Mu\x07g", "name_control_character"),
        ("1,Mu\x9bg", "name_control_character"),
        ("1\x1b[2J,Mug", "serial_control_character"),
    ],
)
def test_reader_rejects_nonsensical_names_and_serials(file: Path, row: str, code: str) -> None:
    assert refusal(file, HEADER + row + ",https://a.example/1.jpg\n").errors[0].code == code


def test_reader_trims_names_and_serials_but_not_cells(file: Path) -> None:
    _, [row] = read(file, HEADER + '" 007 ","\u3000Mug\n",https://a.example/1.jpg\n')
    assert (row.serial, row.product_name) == ("007", "Mug")
    assert row.cells[:2] == (" 007 ", "\u3000Mug\n")


def test_serials_are_text_and_need_not_differ(file: Path) -> None:
    assert [row.serial for row in read(file, HEADER + ROW.replace("1,", "A-01,", 1) * 3)[1]] == ["A-01"] * 3


def test_reader_stops_at_first_image_over_limit(file: Path) -> None:
    file.write_text(HEADER + ROW * 5)
    assert check(file, max_images=5).images == 5
    rejected = refusal(file, HEADER + ",Mug,https://a.example/1.jpg\n" + ROW * 7, max_images=5)
    assert faults(rejected) == [(2, "S. No.", "serial_missing"), (7, None, "too_many_images")]
    assert rejected.error_count == 2


def test_bad_rows_without_end_are_not_all_read(file: Path) -> None:
    rejected = refusal(file, HEADER + "1,Mug,\n" * 9, max_images=5)
    assert faults(rejected)[-1] == (7, None, "too_many_images")
    assert rejected.error_count == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "row"),
    [
        (HEADER, f"1,{'x' * 890_000},https://a.example/1.jpg\n"),
        (HEADER, "," * 890_000 + "\n"),
        ("", "," * 890_000 + "\n"),
        (HEADER, "1," + '"' + "\n" * 890_000 + '"' + ",https://a.example/1.jpg\n"),
    ],
    ids=["long cells", "blank rows", "blank rows before the header", "long blank cells"],
)
def test_step_reads_at_most_two_megabytes(file: Path, header: str, row: str) -> None:
    # Measured by the characters that the csv module takes: another 890 KB row may follow the first MiB.
    file.write_text(header + row * 6 + (HEADER if not header else "") + ROW)
    steps = check_in_steps(file, max_images=100)
    taken: list[int] = []
    with monitored_lines(taken), suppress(CsvRejected):
        while next_step(steps) is None:
            taken.append(0)
    assert sum(taken) > file.stat().st_size
    assert max(taken) < 2 * 1024 * 1024


@contextmanager
def monitored_lines(taken: list[int]) -> Iterator[None]:
    """Add the length of each line that is parsed to the last number of ``taken``."""
    original = dialect_module._Lines.__iter__

    def counted(lines: dialect_module._Lines) -> Iterator[str]:
        for line in original(lines):
            taken[-1:] = [sum(taken[-1:]) + len(line)]
            yield line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect_module._Lines, "__iter__", counted)
        yield


@pytest.mark.slow
def test_reader_bounds_number_of_blank_rows(file: Path) -> None:
    blank = "\n" * (MAX_BLANK_ROWS // 2)
    assert len(read(file, blank + HEADER + blank + ROW)[1]) == 1
    assert refusal(file, HEADER + blank + ROW + blank + "\n").errors[0].code == "too_many_blank_rows"
    assert refusal(file, blank + blank + "\n").errors[0].code == "too_many_blank_rows"


def test_reader_removes_one_formula_apostrophe(file: Path) -> None:
    _, [row] = read(file, HEADER + "'-A1,''=SUM(A1),https://a.example/1.jpg\n")
    assert (row.serial, row.product_name) == ("-A1", "'=SUM(A1)")
    assert read(file, HEADER + "1,'n' Mug,https://a.example/1.jpg\n")[1][0].product_name == "'n' Mug"


# What is no CSV


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"\r\n \r\n,,\r\n", "empty"),
        (b"sep=;\r\n", "empty"),
        (HEADER.encode(), "no_rows"),
        (HEADER.encode() + b"\r\n,,\r\n", "no_rows"),
        (b"%PDF-1.7\n", "not_csv"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "not_csv"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not_csv"),
        (gzip.compress((HEADER + ROW).encode(), mtime=0), "not_csv"),
        (b"<!DOCTYPE html><html>", "not_csv"),
        (b'\n<?xml version="1.0"?>', "not_csv"),
        (json.dumps([{"S. No.": 1, "Product Name": "Mug"}]).encode(), "not_csv"),
        (json.dumps({"rows": []}, indent=1).encode(), "not_csv"),
        (rb"{\rtf1\ansi S. No.}", "not_csv"),
        (HEADER.encode() + b"1,M\x00g,https://a.example/1.jpg\n" + ROW.encode() * 9, "binary"),
        (b"\x7fELF\x02\x01\x01" + bytes(64), "binary"),
    ],
)
def test_what_is_no_csv_is_refused_by_its_kind(file: Path, data: bytes, code: str) -> None:
    rejected = refusal(file, data)
    assert [error.code for error in rejected.errors] == [code]
    assert rejected.error_count == 1


# Properties

# The file is overwritten by each example; a busy machine is not a fault of the code.
FILE_PROPERTY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)

PRINTABLE = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"))
LATIN = st.characters(codec="cp1252", exclude_categories=["Cc"])
URLS = st.lists(
    st.builds(
        "{}://{}/{}".format,
        st.sampled_from(["http", "https", "HTTPS"]),
        st.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{2,5}){0,2}(:[1-9][0-9]{0,3})?", fullmatch=True),
        st.from_regex(r"[a-z0-9._~%,;|'()=-]{0,12}[a-z0-9]", fullmatch=True),
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str, tuple[str, ...]]]]:
    """A table as csv.writer writes it in some dialect and encoding, and what it says."""
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"]))
    character = LATIN if encoding == "cp1252" else PRINTABLE
    text = st.text(character | st.sampled_from("\n\t',;|\"=+-@"), max_size=20)
    named = text.filter(lambda cell: unprotect(cell).strip() != "")
    order = draw(st.permutations(["S. No.", "Product Name", "Input Image URLs", "Extra"]))
    rows = draw(st.lists(st.tuples(named, named, URLS, text), min_size=1, max_size=5))
    joint = draw(st.sampled_from([",", ", ", "\n", " ,\r\n"]))
    buffer = io.StringIO()
    writer = csv.writer(
        buffer,
        delimiter=draw(st.sampled_from(DELIMITERS)),
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
        quoting=draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
    )
    if draw(st.booleans()):
        buffer.write(f"sep={writer.dialect.delimiter}{writer.dialect.lineterminator}")
    writer.writerow(order)
    for serial, name, urls, extra in rows:
        # What is bare loses the spaces before it; see csv_dialect.records.
        cells = {"S. No.": serial, "Product Name": name, "Input Image URLs": joint.join(urls), "Extra": extra}
        writer.writerow([cells[title].lstrip(" ") for title in order])
    data = buffer.getvalue().encode(encoding)
    if encoding == "cp1252":
        try:
            assume(data.decode() == buffer.getvalue())
        except UnicodeDecodeError as error:
            assume(data[: error.start].isascii())
    meant = [
        (unprotect(serial.lstrip(" ")).strip(), unprotect(name.lstrip(" ")).strip(), tuple(urls))
        for serial, name, urls, _ in rows
    ]
    assume(all(serial and name for serial, name, _ in meant))
    # An apostrophe before a formula inside a URL is taken for one of the output CSV's.
    assume(all(unprotect(cell) == cell for cell in (joint.join(urls) for _, _, urls, _ in rows)))
    return data, meant


@pytest.mark.slow
@FILE_PROPERTY
@given(tables())
def test_any_table_reads_back_the_same(file: Path, table: tuple[bytes, list[tuple[str, str, tuple[str, ...]]]]) -> None:
    data, meant = table
    _, rows = read(file, data)
    assert [(row.serial, row.product_name, row.urls) for row in rows] == meant


PIECES = st.sampled_from(
    [
        *(
            HEADER.encode(),
            ROW.encode(),
            HEADER.encode("utf-16"),
            b"S. No.",
            b"https://",
            b"sep=;\n",
            b"<html>",
        ),
        *(b'"', b",", b";", b"'=1", b"\r", b"\n", b"\r\n", b"\x1a", b"\x00"),
        *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xe9"),
    ]
)


@FILE_PROPERTY
@given(st.binary(max_size=200) | st.lists(PIECES | st.binary(max_size=3), max_size=12).map(b"".join))
@example((HEADER + ROW).encode())
def test_any_bytes_are_accepted_or_rejected_with_reason(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    try:
        checked = check(file, max_images=100)
    except CsvRejected as error:
        rejected = error
    else:
        rows = list(read_rows(file, checked))
        assert len(rows) == checked.rows > 0
        assert all(row.serial and row.product_name and row.urls for row in rows)
        return
    assert rejected.errors
    assert rejected.error_count >= 1
    assert rejected.detail


@pytest.mark.slow
@FILE_PROPERTY
@given(tables())
def test_reuploaded_output_csv_gives_same_output(
    file: Path, table: tuple[bytes, list[tuple[str, str, tuple[str, ...]]]]
) -> None:
    def output(checked: CheckedCsv, rows: list[Row]) -> bytes:
        lines = [output_row(row.cells, [None for _ in row.urls], ["failed"] * len(row.urls)) for row in rows]
        return output_header(checked.header, with_errors=True) + b"".join(lines)

    first = read(file, table[0])
    written = output(*first)
    second = read(file, written)
    assert [(row.serial, row.product_name, row.urls) for row in second[1]] == table[1]
    assert [row.cells for row in second[1]] == [row.cells for row in first[1]]
    assert output(*second) == written


@settings(max_examples=100)
@given(st.text(alphabet=st.sampled_from(", \n\t|;https://a.x"), max_size=60))
def test_splitting_loses_nothing_but_separators(cell: str) -> None:
    assert re.sub(r"[,\s|;]", "", "".join(split_urls(cell))) == re.sub(r"[,\s|;]", "", cell)
