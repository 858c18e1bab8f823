"""Files whose columns have other names: the value of ``columns`` and the columns that it finds."""

from pathlib import Path

import pytest

from api.http.problems import Problem
from api.uploads.csv.header import HeaderMismatch, match_header, parse_mapping
from api.uploads.csv.reader import CsvRejected, Row, check, read_rows
from api.uploads.options import UploadOptions
from infra.outbound.addresses import AllowList
from infra.settings import Settings

SHOPIFY = "Handle,Title,Image Src,Errors\n"


def read(path: Path, text: str, columns: str) -> list[Row]:
    path.write_text(text)
    return list(read_rows(path, check(path, max_images=10, mapping=parse_mapping(columns))))


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ("", {}),
        ("product:Title,urls:Image Src", {"product": "Title", "urls": "Image Src"}),
        (" Product : Title , URLS: Image Src ,", {"product": "Title", "urls": "Image Src"}),
        ("urls:https: address", {"urls": "https: address"}),
        ('"urls:Image, ""large""",serial:No', {"urls": 'Image, "large"', "serial": "No"}),
    ],
)
def test_mapping_is_a_line_of_csv(text: str, mapping: dict[str, str]) -> None:
    assert parse_mapping(text) == mapping


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name:Title", "unknown role 'name': use serial, product, urls"),
        ("Title", "unknown role 'Title'"),
        ("product:", "the role 'product' needs a column"),
        ("product:Title,urls:Image,product:Name", "the role 'product' occurs twice"),
        ('product:Title,"urls:Image', "broken quotes"),
    ],
)
def test_mapping_errors_name_the_role(text: str, said: str) -> None:
    with pytest.raises(Problem) as caught:
        UploadOptions.of({"columns": [text]}, Settings(), AllowList(()))
    assert caught.value.code == "bad-columns"
    assert said in caught.value.detail


def test_first_value_of_a_role_wins() -> None:
    given = {"columns": ["product:Title", "product:Name,urls:Image"]}
    options = UploadOptions.of(given, Settings(), AllowList(()))
    assert options.columns == {"product": "Title", "urls": "Image"}


def test_mapped_columns_are_read_and_rows_numbered(tmp_path: Path) -> None:
    text = SHOPIFY + "mug,Mug,https://a.example/1.jpg,\n\nhat,Hat,https://a.example/2.jpg https://a.example/3.jpg,\n"
    rows = read(tmp_path / "a.csv", text, "product:title,urls:IMAGE_SRC")
    assert [(row.serial, row.product_name, len(row.urls)) for row in rows] == [("1", "Mug", 1), ("2", "Hat", 2)]
    assert rows[0].cells == ("mug", "Mug", "https://a.example/1.jpg")  # an output CSV's column is written again


def test_roles_that_are_not_mapped_have_usual_names(tmp_path: Path) -> None:
    text = "S. No.,Product Name,Picture,Images\n7,Mug,https://a.example/1.jpg,none\n"
    (row,) = read(tmp_path / "a.csv", text, "urls:Picture")
    assert (row.serial, row.product_name, row.urls) == ("7", "Mug", ("https://a.example/1.jpg",))


def test_mapped_column_has_no_other_role() -> None:
    columns = match_header(["Name", "Product", "No"], parse_mapping("urls:Name,product:No"))
    assert (columns.serial, columns.product_name, columns.urls) == (None, 2, 0)
    with pytest.raises(HeaderMismatch, match="“Product Name” is missing"):
        match_header(["Name", "Image"], parse_mapping("urls:Name"))


def test_exact_name_takes_precedence() -> None:
    assert match_header(["image src", "Image Src", "Title"], parse_mapping("product:Title,urls:Image Src")).urls == 1
    assert match_header(["名前", "画像 (1)"], parse_mapping("product:名前,urls:画像1")).urls == 1


def test_mapped_output_column_is_kept() -> None:
    columns = match_header(["Title", "Output Image URLs"], parse_mapping("product:Title,urls:Output Image URLs"))
    assert columns.kept == (0, 1)


@pytest.mark.parametrize(
    ("header", "columns", "column", "code", "said"),
    [
        ("Title;Image", "product:Name,urls:Image", "Name", "column_missing", "“Name” (mapped to product) is missing"),
        ("Title,Src,SRC.", "product:Title,urls:src", "src", "column_doubled", "“src” (mapped to urls) occurs 2 times"),
        ("A,B", "product:A,urls:a", "a", "column_doubled", "“a” (mapped to urls) is mapped to another role, too"),
        ("A,B", "product:A,urls:B,serial:C", "C", "column_missing", "“C” (mapped to serial) is missing"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, header: str, columns: str, column: str, code: str, said: str
) -> None:
    with pytest.raises(CsvRejected) as caught:
        read(tmp_path / "a.csv", f"{header}\nx,https://a.example/1.jpg\n", columns)
    (error,) = caught.value.errors
    assert (error.row, error.column, error.code) == (1, column, code)
    assert said in error.message


def test_rejection_has_the_names_in_the_file(tmp_path: Path) -> None:
    """Of the delimiter that splits the header, although no column is known."""
    with pytest.raises(CsvRejected) as caught:
        read(tmp_path / "a.csv", "Titel;Bild;Preis\nTasse;https://a.example/1.jpg;5\n", "")
    assert caught.value.header == ("Titel", "Bild", "Preis")
    assert [error.code for error in caught.value.errors] == ["column_missing"] * 3


def test_serial_stays_required_without_mapping(tmp_path: Path) -> None:
    with pytest.raises(CsvRejected, match=r"“S\. No\.” is missing"):
        read(tmp_path / "a.csv", "Product Name,Input Image URLs\nMug,https://a.example/1.jpg\n", "")
