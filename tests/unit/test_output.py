"""The forms of output, for people and for programs: which there are, what each prints, how a table fits a terminal."""

from __future__ import annotations

import io
import json

import pytest
import yaml

from common.errors import ConfigError
from common.model import Phase
from eschedule.arguments import parse
from eschedule.output import columns_of, emit, found, parse_form, rendered
from eschedule.screen import Screen
from eschedule.tables import Coloured, Column, Look, fitting, table

ROWS = [
    {"name": "web-1", "host": {"name": "node1"}, "addresses": ["10.0.0.5", "fd00::5"], "size": 3, "old": None},
    {"name": "web-2", "host": {"name": "node2"}, "addresses": [], "size": 4, "old": True},
]


class TestForms:
    def test_json_and_yaml_say_the_same(self) -> None:
        assert json.loads(rendered(ROWS, "json")) == yaml.safe_load(rendered(ROWS, "yaml")) == ROWS
        assert rendered({"name": "ü", "phase": Phase.RUNNING}, "yaml") == "name: ü\nphase: Running\n"

    def test_names_are_one_a_line_of_one_or_several(self) -> None:
        assert rendered(ROWS, "name") == "web-1\nweb-2\n"
        assert rendered(ROWS[0], "name") == "web-1\n"

    def test_columns_of_ones_own(self) -> None:
        form = parse_form("custom-columns=NAME:.name,ON:.host.name,FIRST:.addresses[0],ALL:.addresses,OLD:.old,SIZE:.size")
        assert rendered(ROWS, form) == (
            'NAME   ON     FIRST     ALL                      OLD     SIZE\n'
            'web-1  node1  10.0.0.5  ["10.0.0.5", "fd00::5"]  <none>  3\n'
            'web-2  node2  <none>    []                       true    4\n'
        )  # fmt: skip

    def test_a_field_with_dots_in_its_name_is_quoted(self) -> None:
        ((_, path),) = columns_of("X:.a['b.c']")
        assert found({"a": {"b.c": 7}}, path) == 7

    @pytest.mark.parametrize("text", ["xml", "", "custom-columns=", "custom-columns=NAME", "custom-columns=:.x", "custom-columns=X:",
                                      "custom-columns=X:name", "custom-columns=X:.a[b]", "custom-columns=X:.a,"])  # fmt: skip
    def test_what_is_no_form_is_said(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"json, yaml, name, wide|\.name"):
            parse_form(text)

    def test_the_command_line_takes_one_and_the_last_counts(self) -> None:
        assert parse(["list"]).output is None
        assert parse(["list", "--json"]).output == "json"
        assert parse(["list", "--json", "-o", "yaml"]).output == "yaml"
        assert parse(["network", "show", "lan", "-o", "name"]).output == "name"
        with pytest.raises(ConfigError, match="-o"):
            parse(["list", "-o", "table"])

    def test_only_what_was_asked_for_is_made(self) -> None:
        output = io.StringIO()
        screen = Screen(output=output, errors=io.StringIO())
        emit(screen, parse(["list", "-o", "name"]), lambda: ROWS, lambda _: pytest.fail("nobody asked for it"))
        emit(
            screen, parse(["list", "-o", "wide"]), lambda: pytest.fail("nobody asked for it"), lambda look: f"{look.is_wide}\n"
        )
        assert output.getvalue() == "web-1\nweb-2\nTrue\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestLook:
    def test_colour_and_width_are_a_terminals(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "77")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        screen = Screen(output=Terminal(), errors=io.StringIO())
        assert screen.look() == Look(77, has_colour=True)
        assert screen.look(is_wide=True) == Look(None, is_wide=True, has_colour=True)
        monkeypatch.setenv("NO_COLOR", "1")
        assert screen.look() == Look(77)
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        assert screen.look() == Look(77)
        assert Screen(output=io.StringIO(), errors=Terminal()).look() == Look()


class TestTable:
    COLUMNS = (Column("NAME", 6), "STATE", Column("UUID", 9), Column("MORE", is_wide=True))
    CELLS = (
        (("a" * 20), Coloured("Running", "green"), "0b4fd7c1-6f5b-4c6e-9a0e", "x"),
        ("b", Coloured("Failed", "red"), "", "y"),
    )

    def test_it_is_cut_where_it_may_be_and_only_as_far_as_needed(self) -> None:
        assert table(self.COLUMNS, self.CELLS, Look(40)) == (
            "NAME             STATE    UUID\n"
            "aaaaaaaaaaaaaa…  Running  0b4fd7c1-6f5b…\n"
            "b                Failed\n"
        )  # fmt: skip
        assert {len(line) for line in table(self.COLUMNS, self.CELLS, Look(40)).splitlines()[1:2]} == {40}
        assert "…" not in table(self.COLUMNS, self.CELLS, Look(54))
        narrow = table(self.COLUMNS, self.CELLS, Look(10)).splitlines()[1]
        assert narrow == "aaaaa…  Running  0b4fd7c1…"

    def test_more_columns_only_for_those_who_want_them(self) -> None:
        assert "MORE" not in table(self.COLUMNS, self.CELLS)
        assert table(self.COLUMNS, self.CELLS, Look(is_wide=True)).splitlines()[0].endswith("MORE")

    def test_colour_changes_no_column(self) -> None:
        coloured = table(self.COLUMNS, self.CELLS, Look(has_colour=True))
        assert "\x1b[32mRunning\x1b[0m" in coloured and "\x1b[31mFailed\x1b[0m" in coloured
        plain = coloured
        for code in ("\x1b[32m", "\x1b[31m", "\x1b[0m"):
            plain = plain.replace(code, "")
        assert plain == table(self.COLUMNS, self.CELLS)

    def test_nothing_is_cut_below_its_floor(self) -> None:
        assert fitting([30, 10, 20], [8, None, 9], 44) == [15, 10, 15]
        assert fitting([30, 10, 20], [8, None, 9], 1) == [8, 10, 9]
        assert fitting([3, 4], [1, 1], 100) == [3, 4]
