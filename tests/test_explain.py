"""`explain ops` prints the table that the code holds."""

from __future__ import annotations

import csv
import io
import json

import pytest

from rich.cells import cell_len

from snaudit import cli, lowered, rules
from snaudit.commands import sink


def test_the_table_of_ops_is_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "ops", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = told["ops"]
    assert [(row["op"], row["written_as"]) for row in told["rewritten"]] == [(r.op, r.becomes) for r in lowered.ROWS]
    assert [(row["op"], row["domain"]) for row in found] == [(r.op, r.domain or "ai.onnx") for r in rules.ROWS]
    for shown, row in zip(found, rules.ROWS, strict=True):
        wanted = (row.since, row.constant, row.condition, row.theorem, list(row.norms))
        assert tuple(shown[key] for key in ("since", "constant", "condition", "theorem", "norms")) == wanted
    assert cli.main(["explain", "ops", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    told = [{**row, "since": str(row["since"]), "norms": " ".join(row["norms"])} for row in found]
    assert lines == told
    assert cli.main(["explain", "ops"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rules.ROWS) + len(lowered.ROWS) + 7 and lines[0].split() == ["op", "since", "constant", "condition", "theorem"]
    assert lines[1].startswith(rules.ROWS[0].op)


def test_an_unknown_topic_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "nothing"]) == 2
    assert "`snaudit explain ops` lists all" in capsys.readouterr().err


@pytest.mark.parametrize("op", ["Conv", "conv", f"{lowered.ROWS[0].domain}.{lowered.ROWS[0].op}"])
def test_one_op_is_explained_alone(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", op]) == 0
    found = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()]
    assert any(name.lower().rpartition(".")[2] == op.lower().rpartition(".")[2] for name in found) and "Relu" not in found and "ConvTranspose" not in found
    assert cli.main(["explain", op, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["op"].lower() for row in (*told["ops"], *told["rewritten"])} == {op.lower().rpartition(".")[2]}


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_narrow_terminal_rows_become_paragraphs(width: int, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"width": width, "colour": False, "unicode": True, "terminal": True}
    monkeypatch.setattr(sink, "view_facts", lambda to_file: facts)
    assert cli.main(["explain", "ops"]) == 0
    out = capsys.readouterr().out
    assert max(cell_len(line) for line in out.split("\n∞")[0].splitlines()) <= width
    for row in rules.ROWS:
        assert row.constant.replace(" ", "") in "".join(out.split())
