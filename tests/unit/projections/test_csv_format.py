"""The bytes of the output CSV."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.projections.csv_format import header, protect, row, unprotect


def parsed(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))


def test_file_begins_with_bom_and_header() -> None:
    data = header(["S. No.", "Product Name", "Input Image URLs"], with_errors=False)
    assert data == b"\xef\xbb\xbfS. No.,Product Name,Input Image URLs,Output Image URLs\r\n"


def test_errors_column_is_last_and_optional() -> None:
    assert header(["a"], with_errors=True).decode("utf-8-sig") == "a,Output Image URLs,Errors\r\n"
    assert row(["1"], ["https://b/1"], [None]) == b"1,https://b/1,\r\n"
    assert row(["1"], ["https://b/1"], None) == b"1,https://b/1\r\n"


def test_failed_image_has_empty_url_and_error() -> None:
    data = row(["7"], ["https://a/1.jpg", None, "https://a/3.jpg"], [None, "fetch_http_404", None])
    assert parsed(data) == [["7", "https://a/1.jpg,,https://a/3.jpg", "image 2: fetch_http_404"]]


def test_every_failed_image_is_named() -> None:
    [[_, urls, errors]] = parsed(row(["7"], [None, None, None], ["a", "b", "c"]))
    assert urls == ",,"
    assert errors == "image 1: a; image 2: b; image 3: c"


def test_only_cells_that_need_quotes_have_them() -> None:
    data = row(["a b", 'say "x"', "a,b", "a\nb", "a\rb", "a;b"], ["https://b/1"], None)
    assert data == b'a b,"say ""x""","a,b","a\nb","a\rb",a;b,https://b/1\r\n'


def test_quotes_keep_outer_white_space() -> None:
    assert row([" a", "b ", "\u00a0c", "d e"], [], None) == '" a","b ","\u00a0c",d e,\r\n'.encode()


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        '=HYPERLINK("https://evil.example","x")',
        "+1+1",
        "-1+1",
        "-A1",
        "@SUM(A1)",
        "+49-170-123",
        "-12.5+cmd|' /C calc'!A0",
        "-5\n=1",
        "\tx",
        "\rx",
        "\nx",
        " =1",
        "\u00a0=1",
        "\ufeff=1",
        '"=1',
        "'=1",
        "''  =1",
        "\uff1d1+1",
        "\uff0bA1",
        "\uff0dA1",
        "\uff20A1",
    ],
)
def test_formula_cell_gets_apostrophe(cell: str) -> None:
    assert parsed(row([cell], [], None))[0][0] == "'" + cell
    assert parsed(header([cell], with_errors=False))[0][0] == "'" + cell


@pytest.mark.parametrize(
    "cell",
    [
        "-12.5",
        "+49 170 1234567",
        "-1.5e-3",
        "-1,234.50",
        "-5 %",
        "-",
        "--",
        "+",
        "",
        "12-3",
        "a=b",
        "it's",
        "'n'",
        "x@y.z",
    ],
)
def test_numbers_and_plain_text_stay_as_they_are(cell: str) -> None:
    assert protect(cell) == cell


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("foo;=cmd|' /C calc'!A0;", "foo;'=cmd|' /C calc'!A0;"),
        ("a\t=1+1", "a\t'=1+1"),
        ("a; @SUM(A1)", "a;' @SUM(A1)"),
        ("a;'=1", "a;''=1"),
        ("a;-1+1;b", "a;'-1+1;b"),
        ("=1;=2", "'=1;'=2"),
        ("a;-12.5;+49 170 1234567;-;b", "a;-12.5;+49 170 1234567;-;b"),
        ("red; blue;a=b", "red; blue;a=b"),
    ],
)
def test_formula_after_inner_separator_gets_an_apostrophe(cell: str, shown: str) -> None:
    assert protect(cell) == shown
    assert unprotect(shown) == cell


@given(st.text(alphabet=st.sampled_from("'\"=+-@ 1\t;\n\uff1d")))
def test_no_separator_makes_a_part_a_formula(cell: str) -> None:
    for separator in ";\t":
        assert not any(part[:1] in ("=", "@", "\uff1d") for part in protect(cell).split(separator))


@given(st.text() | st.text(alphabet=st.sampled_from("'\"=+-@ 1\t;\n\uff1d")))
def test_unprotect_inverts_protect_and_no_formula_remains(cell: str) -> None:
    assert unprotect(protect(cell)) == cell
    shown = protect(cell)
    if shown[:1] in ("=", "@", "\t", "\r", "\n", "\uff1d", "\uff20"):
        pytest.fail(f"{shown!r} would run")
    if shown[:1] in ("+", "-"):
        assert not any(character in "=@('\"!|*/" or character.isalpha() for character in shown.lower().replace("e", ""))


@given(
    st.lists(st.text(), min_size=1),
    st.lists(st.tuples(st.none() | st.just("https://b/x.jpg"), st.none() | st.just("fetch_timeout")), min_size=1),
)
def test_what_is_written_reads_back_through_any_csv_reader(
    cells: list[str], outcome: list[tuple[str | None, str | None]]
) -> None:
    urls = [url for url, _ in outcome]
    errors = [error for _, error in outcome]
    data = header(cells, with_errors=True) + row(cells, urls, errors)
    assert data.endswith(b"\r\n")
    head, line = parsed(data)
    assert [unprotect(cell) for cell in head[:-2]] == [unprotect(cell) for cell in line[:-2]] == cells
    assert head[-2:] == ["Output Image URLs", "Errors"]
    assert line[-2].split(",") == [url or "" for url in urls]
    assert line[-1].count("image ") == sum(error is not None for error in errors)
