"""balance: run it, and show what became of each chain, as a table or as JSON (`snaudit.balance/1`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from snaudit import balancing
from snaudit.commands import sink
from snaudit.findings import Settings
from snaudit.numerals import at_most
from snaudit.report import View
from snaudit.report.jsonreport import bound, dumps, envelope, number
from snaudit.report.page import Column, Page, Row

if TYPE_CHECKING:
    from snaudit.balancing import Balance

SCHEMA = "snaudit.balance/1"


def balance(
    path: Path, target: Path | None, settings: dict[str, Any], force: bool, dry_run: bool, as_json: bool
) -> int:
    """Balance the model and render what was done; 0."""
    with sink.Meter() as meter:
        done = balancing.balance(
            path, target, settings=Settings(**settings), force=force, dry_run=dry_run, progress=meter
        )
    sink.emit(render_json(done) if as_json else render_table(done, View(**sink.view_facts(to_file=False))))
    return 0


def render_table(done: Balance, view: View) -> str:
    """Every layer of the chains that changed, with its norm before and after and its factor."""
    page = Page(view)
    page.paragraph(f"{done.source}: chains of layers, balanced", "bold", 2)
    columns = [
        Column("layer", flexible=True), Column("op"), Column("dtype"),
        Column("before", right=True), Column("after", right=True), Column("factor", right=True),
    ]  # fmt: skip
    for chain in done.chains:
        if any(layer.exponent for layer in chain):
            page.blank()
            page.table(columns, [
                Row([layer.name, layer.op, layer.dtype, at_most(layer.before.upper), at_most(layer.after.upper),
                     f"2^{layer.exponent}" if layer.exponent else "1"])
                for layer in chain
            ])  # fmt: skip
    page.blank()
    if done.outputs:
        names = ", ".join(output.name for output in done.outputs)
        page.paragraph(f"outputs bit for bit the same, on random input: {names}", "", 2)
    for note in done.notes:
        page.paragraph(f"note: {note}", "dim", 2)
    page.wrapped((summary(done), "bold"))
    return page.text()


def summary(done: Balance) -> str:
    """The run in one line."""
    held = sum(len(chain) for chain in done.chains)
    changed = sum(bool(layer.exponent) for chain in done.chains for layer in chain)
    where = f"written to {done.target}" if done.written else f"dry run: {done.target} was not written"
    return f"{changed} layers scaled, of {held} in {len(done.chains)} chains, of {done.layers} in all; {where}"


def render_json(done: Balance) -> str:
    """What was done as a JSON document."""
    return dumps(envelope(SCHEMA, {
        "model": {"path": done.source},
        "target": done.target,
        "written": done.written,
        "layers": done.layers,
        "chains": [
            [
                {
                    "name": layer.name, "op": layer.op, "dtype": layer.dtype, "before": bound(layer.before),
                    "after": bound(layer.after), "exponent": layer.exponent,
                }
                for layer in chain
            ]
            for chain in done.chains
        ],
        "outputs": [
            {"name": output.name, "max_relative": number(output.max_relative), "on": output.on}
            for output in done.outputs
        ],
        "notes": list(done.notes),
    }))  # fmt: skip
