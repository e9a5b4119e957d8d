"""Laws of files: content decides the format, text is not converted, errors name the file."""

import gzip
import json
import os

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedjax_post.data import cached
from fedjax_post.data.source import load_splits

TEXTS = [
    "01",
    "1.50",
    "1e3",
    "true",
    "NA",
    "None",
    "null",
    "2021-03-04",
    "-0",
    'say "x"',
    "a\u2028b",
]
ROWS = [{"prompt": f"p{i}", "response": text} for i, text in enumerate(TEXTS)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
CHAT = json.dumps({"messages": TURNS})


def read(path, content):
    """Rows of a file of this content, and of a packed copy of it."""
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(content)
    rows = load_splits(str(path)).train.to_list()
    packed = path.with_name(f"packed-{path.name}.gz")
    packed.write_bytes(gzip.compress(content, mtime=0))
    if path.suffix != ".parquet":
        assert load_splits(str(packed)).train.to_list() == rows
    return rows


def csv_of(rows, *, separator=",", quoted=True):
    cell = (lambda text: '"' + text.replace('"', '""') + '"') if quoted else str
    lines = ["prompt,response".replace(",", separator)]
    lines += [separator.join(map(cell, row.values())) for row in rows]
    return "\r\n".join(lines) + "\r\n"


_CUT = gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", csv_of(ROWS)),
        ("a.csv", csv_of(ROWS[:9], quoted=False)),
        ("a.csv", "\ufeff" + csv_of(ROWS)),
        ("a.tsv", csv_of(ROWS, separator="\t", quoted=False)),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)),
        ("a.jsonl", "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("a.json", json.dumps({"version": 1.0, "data": ROWS})),
        ("a.json", "".join(json.dumps(row) + "\n" for row in ROWS)),
    ],
)
def test_text_is_learned_as_it_is_written(tmp_path, name, content):
    rows = read(tmp_path / name, content)
    assert rows == ROWS[: len(rows)]
    assert len(rows) >= 9


def test_numbers_and_booleans_of_json_keep_their_spelling(tmp_path):
    spelled = ["1.50", "1e3", "-0", "12345678901234567890123", "true", "false"]
    text = "".join(f'{{"prompt": "q", "response": {x}}}\n' for x in [*spelled, "null", "NaN"])
    rows = read(tmp_path / "a.jsonl", text)
    assert [row["response"] for row in rows] == [*spelled, None, None]


def test_structures_keep_their_form_with_scalars_as_text(tmp_path):
    text = '{"messages": [{"role": "u", "weight": 0, "parts": [{"t": true}, "x", null]}]}\n'
    text += '{"messages": "4"}'
    rows = read(tmp_path / "a.jsonl", text)
    turn = {"role": "u", "weight": "0", "parts": [{"t": "true"}, "x", None]}
    assert rows == [{"messages": [turn]}, {"messages": "4"}]


def test_columns_that_come_late_are_read(tmp_path):
    rows = [{"a": "x"}] * 1200 + [{"a": ["y"], "b": "z"}]
    found = read(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert found[0] == {"a": "x", "b": None}
    assert found[-1] == {"a": ["y"], "b": "z"}


def test_empty_cells_are_none_and_quoted_line_breaks_are_kept(tmp_path):
    rows = read(tmp_path / "a.csv", 'prompt,context,response\nq,,"two\nlines"\n\n')
    assert rows == [{"prompt": "q", "context": None, "response": "two\nlines"}]


@pytest.mark.parametrize("header", ["question\tanswer\n", ""])
def test_quotes_in_tab_separated_files_are_characters(tmp_path, header):
    body = '"Hello he said\t1\nbye" now\t0\nnext\t1\n'
    rows = read(tmp_path / "a.tsv", header + body)
    assert [list(row.values()) for row in rows] == [
        ['"Hello he said', "1"],
        ['bye" now', "0"],
        ["next", "1"],
    ]


def test_a_known_name_in_the_first_line_makes_it_a_header(tmp_path):
    rows = read(tmp_path / "a.csv", "question,answer\nwhich word is this,answer\n")
    assert rows == [{"question": "which word is this", "answer": "answer"}]


def test_a_first_line_that_is_read_as_a_row_is_told(tmp_path, caplog):
    read(tmp_path / "a.csv", "good,1\nbad,0\nfine,1\n")
    assert (
        "a.csv has no column names: its first line is read as a row of text and label"
        in caplog.text
    )


def test_a_cell_may_be_long(tmp_path):
    long = "x" * 200_000
    assert read(tmp_path / "a.csv", f"prompt,response\nq,{long}\n")[0]["response"] == long


@pytest.mark.parametrize(
    "text", [CHAT, CHAT + "\n" + CHAT, json.dumps({"messages": TURNS}, indent=1)]
)
def test_a_chat_is_a_row_and_no_file_of_rows(tmp_path, text):
    rows = read(tmp_path / "chat.json", text)
    assert rows == [{"messages": TURNS}] * len(rows)


def test_parquet_is_known_by_its_content(tmp_path):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    assert load_splits(str(path.rename(tmp_path / "a.json"))).train.to_list() == ROWS


BROKEN = [
    ("a.jsonl", "", "the file is empty"),
    ("a.jsonl", " \n", "it is empty"),
    ("a.jsonl", '{"a": 1}\nnull\n', "line 2: holds null, but a row must be an object"),
    ("a.jsonl", "null\n", "line 1: Expecting value|line 1: holds null"),
    ("a.jsonl", '{"a": ' * 50_000, "line 1: lists and objects are nested too deeply"),
    ("a.jsonl", '{"a": ' + "[" * 80 + "]" * 80 + "}", "line 1: .* more than 64 deep"),
    ("a.jsonl", '{"a": 1}\n\n{"a": 2,}\n', "line 3: (Expecting|Illegal)[a-z ]*$"),
    ("a.jsonl", '{"a": 1}\n{"a": "x\n', "line 2: Invalid control character$"),
    ("a.jsonl", '{"a": 1}\n{"a":\n{"b"\n', "line 2: Expecting ':' delimiter on line 4$"),
    ("a.jsonl", '{"a": 1}\n["b"]\n', "line 2: holds a list"),
    ("a.jsonl", '{"a": "\\ud800"}\n', "line 1: half of a surrogate pair"),
    ("a.jsonl", '{"a": 1, "a": 2}\n', "line 1: an object has the key 'a' twice"),
    ("a.json", '[{"a": 1}, {', "line 1: "),
    ("a.json", '[{"a": 1}\n{"a": 1}]', "line 2: expected ','"),
    ("a.json", '[{"a": 1}]\n[]', "line 2: there is more text after the array"),
    ("a.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', "rows under train, test; put each"),
    ("a.csv", "prompt,response\na,b\nc\n", "line 3 has 1 cells, but there are 2 columns"),
    ("a.csv", 'prompt,response\n"a\nb",c\nd,e,f\n', "line 4 has 3 cells"),
    ("a.csv", 'prompt,response\na,"b\nc,d\n', "line 2: unexpected end of data"),
    ("a.csv", 'prompt,response\n"a" b,c\n', "line 2: ',' expected after '\"'"),
    ("a.csv", "prompt,response,prompt\na,b,c\n", "names prompt twice"),
    ("a.tsv", "prompt\tresponse\na\tb\tc\n", "line 2 has 3 cells"),
    ("a.csv", "prompt,response\na,caf\u00e9\n".encode("latin-1"), "line 2 is not UTF-8.*latin-1"),
    ("a.csv", "prompt,response\na,b\n".encode("utf-16"), "not UTF-8.*utf-16"),
    ("a.csv", "prompt,response\na,b\n".encode("utf-16-le"), "not UTF-8.*utf-16"),
    ("a.json", b"PK\x03\x04rest", "a zip archive; unpack it first"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ("a.jsonl.gz", _CUT, "end-of-stream marker|cannot be read"),
    ("a.parquet", b"no parquet", "does not begin like a parquet file"),
    ("a.parquet", b"PAR1 and no more", "Parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_broken_files_are_named_with_the_place(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(
        ValueError, match=rf"(?s)dataset=.*{name} cannot be read: .*({said})"
    ) as caught:
        load_splits(str(path))
    assert len(str(caught.value)) < 400


def test_a_column_for_every_row_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"k{i}": 1}}\n' for i in range(1001)))
    with pytest.raises(ValueError, match=r"dataset=.*a\.jsonl has more than 1000 columns"):
        load_splits(str(tmp_path / "a.jsonl"))


def test_what_is_no_regular_file_is_refused_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"a\.jsonl cannot be read: it is not a regular file"):
            load_splits(str(path))


def test_columns_of_one_name_in_parquet_are_refused(tmp_path):
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet cannot be read: a column name occurs twice \(a, a\)"
    ):
        load_splits(str(tmp_path / "a.parquet"))


def bomb(path):
    """A small file of 40 MB of text."""
    text = "x" * 200_000
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(json.dumps({"prompt": text}).encode() + b"\n" * 10) * 200)
    else:
        parquet.write_table(pa.table({"prompt": [text] * 200}), path)
    assert path.stat().st_size < 200_000
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_small_file_does_not_fill_the_disk(tmp_path, monkeypatch, name):
    path = bomb(tmp_path / name)
    usage = type("Usage", (), {"free": 30_000_000})
    monkeypatch.setattr(cached.shutil, "disk_usage", lambda folder: usage)
    before = set(cached.cache_folder().iterdir())
    with pytest.raises(
        ValueError, match=f"{name} cannot be read: it unpacks to more than the 30,000,000"
    ):
        load_splits(str(path))
    assert set(cached.cache_folder().iterdir()) == before


def test_what_unpacks_to_much_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cached, "_MUCH", 1_000_000)
    load_splits(str(bomb(tmp_path / "a.parquet")))
    assert "a.parquet unpacks to 40," in caplog.text


def test_a_reader_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "b"}\n' * 2000 + "{")
    with pytest.raises(ValueError, match="line 2001"):
        load_splits(str(tmp_path / "a.jsonl"))
    assert not [path for path in cached.cache_folder().iterdir() if path.name.startswith(".")]
