"""Names of a form's parts, as browsers and other clients write them."""

import time

import pytest

from api.uploads.disposition import Disposition, parse_disposition


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        ('name="file"; filename="products.csv"', "products.csv"),
        ('name="file"; filename="shoes; bags; hats.csv"', "shoes; bags; hats.csv"),
        ('name="file"; filename=";;;name=x;.csv"', ";;;name=x;.csv"),
        ('filename="a; b.csv" ; name="file"', "a; b.csv"),
        ("name=file; filename=products(1).csv", "products(1).csv"),
        ("name=file; filename=products (1).csv", "products (1).csv"),
        ('name="file"; filename="a \\"b\\" c.csv"', 'a "b" c.csv'),
        ('name="file"; filename="a "b" c.csv"', 'a "b" c.csv'),
        ('name="file"; filename="a%22b.csv"', "a%22b.csv"),
        ('name="file"; filename="C:\\shop\\new.csv"', "C:\\shop\\new.csv"),
        ('name="file"; filename=""', ""),
        ('name="file"; filename="x.csv"; filename*=UTF-8\'\'%e2%82%ac%20rates.csv', "€ rates.csv"),
        ("NAME=file; FileName*=utf-8'en'%C3%BC.csv", "ü.csv"),
        ("name=file; filename*=iso-8859-1''%FC.csv", "ü.csv"),
        ("name=file; filename*=klingon''%C3%BC.csv", "ü.csv"),
        ("name=file; filename*=x.csv", "x.csv"),
        ('name="file"; filename*0="it\'s a very long"; filename*1=".csv"', "it's a very long.csv"),
        ('name="file"', None),
    ],
)
def test_file_name_is_read_as_clients_write_it(header: str, filename: str | None) -> None:
    assert parse_disposition(f"form-data; {header}") == Disposition("file", filename)


@pytest.mark.parametrize("header", ["", "form-data", 'form-data; "', "form-data; ; =", 'form-data; x="unclosed'])
def test_header_without_names_has_none(header: str) -> None:
    assert parse_disposition(header) == Disposition(None, None)


@pytest.mark.parametrize("piece", ['"', '\\"', '" ', ";", 'a="', ' ; filename="', "\\"])
def test_hostile_header_takes_no_time(piece: str) -> None:
    started = time.process_time()
    parse_disposition("form-data; filename=" + piece * (8000 // len(piece)))
    assert time.process_time() - started < 1
