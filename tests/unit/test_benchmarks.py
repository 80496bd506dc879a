"""What benchmarks/run.py does with what scenarios gave: the command line, runs, the check against the baseline."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import attempts, options, runner
from benchmarks.baseline import Verdict, better_of, compare
from benchmarks.measure import Figure, Outcome
from benchmarks.records import BadOutcome, Result, checked
from tests.support.processes import ROOT, VENV_BIN, spawn, wait_until

MACHINE = {
    "cores": 2, "memory_gib": 8, "kernel": "6.1", "kvm": False, "python": "3.11", "etcd": "3.4", "placement": "16", "libvirt": "9",
    "qemu": "7",
}  # fmt: skip
LESS = Figure("one-guest.running", "request until it runs", 1.2, at_most=1.5, margin=0.1)
MORE = Figure("metadata.rate", "requests per second beside nginx", 0.5, at_least=0.1, margin=0.2)
FREE = Figure("one-guest.seconds", "how long", 3.0, "s")


def with_value(figure: Figure, value: float) -> Figure:
    return Figure(**{**vars(figure), "value": value})


# --- The command line ----------------------------------------------------------------------------------------------------


def test_without_names_all_run_and_with_names_in_their_own_order():
    assert options.parse([]).names == options.NAMES
    assert options.parse(["idle", "one-guest", "idle"]).names == ("one-guest", "idle")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "there is no scenario nonsense"),
        (["--runs", "0"], "--runs is 0"),
        (["--accept"], "--accept goes with --check"),
        (["--check", "--write-docs"], "--check measures too little"),
        (["--nonsense"], "see: benchmarks/run.py --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, said):
    with pytest.raises(options.UsageError, match=said) as caught:
        options.parse(arguments)
    assert "\n" not in str(caught.value)


def test_the_program_answers_from_any_folder_and_any_python(tmp_path):
    run = [ROOT / "benchmarks" / "run.py"]
    listed = subprocess.run([*run, "--list"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(options.NAMES)
    wrong = subprocess.run([*run, "nonsense"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)


def test_every_scenario_that_there_is_has_a_name_and_says_what_it_measures():
    for file in options.SCENARIOS.glob("[a-z]*.py"):
        name = file.stem.replace("_", "-")
        assert name in options.NAMES
        assert options.title_of(name)


# --- The check -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "value", "verdict"),
    [
        (LESS, 1.31, Verdict.WITHIN), (LESS, 1.33, Verdict.WORSE), (LESS, 1.0, Verdict.BETTER),
        (MORE, 0.41, Verdict.WITHIN), (MORE, 0.39, Verdict.WORSE), (MORE, 0.7, Verdict.BETTER),
    ],
)  # fmt: skip
def test_a_figure_may_be_worse_by_its_margin(figure, value, verdict):
    (found,) = compare([with_value(figure, value)], {figure.name: figure.value})
    assert found.verdict is verdict
    assert str(found).startswith(f"{figure.name}: {value:.3g}, baseline {figure.value:.3g}, allowed ")


def test_what_is_not_measured_or_not_in_the_baseline_fails_and_what_has_no_margin_is_left_alone():
    found = compare([LESS, FREE], {"one-guest.gone": 2.0})
    assert [(each.name, each.verdict) for each in found] == [
        ("one-guest.running", Verdict.NO_BASELINE), ("one-guest.gone", Verdict.NOT_MEASURED),
    ]  # fmt: skip
    assert all(each.verdict.is_failure for each in found)


def test_of_two_attempts_the_better_value_of_each_figure_counts():
    first = [with_value(LESS, 1.4), with_value(MORE, 0.3), FREE]
    assert better_of(first, [with_value(LESS, 1.3), with_value(MORE, 0.2)]) == [with_value(LESS, 1.3), first[1], FREE]


class Scenarios:
    """Stands in for running them: each name has a list of what its attempts give, the last one for ever."""

    def __init__(self, **given: Sequence[Sequence[Figure] | str]) -> None:
        self.given = {name.replace("_", "-"): list(attempts) for name, attempts in given.items()}
        self.ran: list[str] = []

    def __call__(self, name: str, _options: options.Options) -> Result:
        self.ran.append(name)
        attempts = self.given[name]
        gives = attempts.pop(0) if len(attempts) > 1 else attempts[0]
        return Result(name, failure=gives) if isinstance(gives, str) else Result(name, Outcome(gives), 1.0)


@pytest.fixture
def files(tmp_path: Path) -> runner.Files:
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n")
    return runner.Files(tmp_path / "results.json", tmp_path / "baseline.json", page)


def run(files: runner.Files, scenarios: Scenarios, *arguments: str) -> int:
    return runner.run(options.parse([*arguments, *scenarios.given]), files, attempt=scenarios, describe=lambda: MACHINE)


def test_a_check_passes_against_what_was_accepted(files, capsys):
    assert run(files, Scenarios(one_guest=[[LESS, FREE]]), "--check", "--accept") == 0
    assert json.loads(files.baseline.read_text())["figures"] == {LESS.name: LESS.value}
    assert run(files, Scenarios(one_guest=[[LESS]]), "--check") == 0
    assert "ok     one-guest.running: 1.2, baseline 1.2" in capsys.readouterr().out


def test_accepting_one_scenario_keeps_the_baseline_of_the_others(files):
    run(files, Scenarios(one_guest=[[LESS]], metadata=[[MORE]]), "--check", "--accept")
    run(files, Scenarios(one_guest=[[with_value(LESS, 1.0)]]), "--check", "--accept")
    assert json.loads(files.baseline.read_text())["figures"] == {LESS.name: 1.0, MORE.name: 0.5}


def test_beyond_its_margin_a_scenario_gets_a_second_attempt(files, capsys):
    run(files, Scenarios(one_guest=[[LESS]]), "--check", "--accept")
    noisy = Scenarios(one_guest=[[with_value(LESS, 2.0)], [LESS]])
    assert run(files, noisy, "--check") == 0
    slower = Scenarios(one_guest=[[with_value(LESS, 2.0)]])
    assert run(files, slower, "--check") == 1
    assert (len(noisy.ran), len(slower.ran)) == (2, 2)
    assert "FAILED one-guest.running: 2, baseline 1.2, allowed 1.32" in capsys.readouterr().out


def test_a_check_of_some_does_not_miss_the_others(files):
    run(files, Scenarios(one_guest=[[LESS]], metadata=[[MORE]]), "--check", "--accept")
    assert run(files, Scenarios(metadata=[[MORE]]), "--check") == 0
    assert run(files, Scenarios(metadata=[[]]), "--check") == 1


def test_a_scenario_that_fails_is_one_line_and_the_others_run(files, capsys):
    scenarios = Scenarios(one_guest=["RuntimeError: no room"], metadata=[[MORE]])
    assert run(files, scenarios) == 1
    said = capsys.readouterr()
    assert said.err.count("no room") == 1
    assert "run.py: one-guest failed: RuntimeError: no room\n" in said.err
    assert "requests per second beside nginx  0.5 ×  ≥ 0.1  reached" in said.out


def test_results_as_json_on_standard_output_stand_alone(files, capsys):
    assert run(files, Scenarios(one_guest=[[LESS]]), "--json", "-") == 0
    stored = json.loads(capsys.readouterr().out)["scenarios"]["one-guest"]
    assert stored["machine"] == MACHINE
    assert stored["figures"] == [
        {"name": LESS.name, "says": LESS.says, "value": 1.2, "at_most": 1.5, "margin": 0.1},
    ]  # fmt: skip


@pytest.mark.parametrize("figures", [[MORE], [LESS, LESS], [with_value(LESS, float("nan"))]])
def test_figures_that_could_not_be_told_apart_or_compared_are_refused(figures):
    with pytest.raises(BadOutcome):
        checked("one-guest", Outcome(figures))


# --- A process for each scenario -----------------------------------------------------------------------------------------

MADE_UP = '''"""Made up."""
import subprocess
from pathlib import Path
from benchmarks.measure import Bench, Figure, Outcome

def run(bench: Bench) -> Outcome:
    assert bench.directory.is_dir() and not list(bench.directory.iterdir())
    {does}
    return Outcome([Figure("made-up.runs", "runs", bench.runs)])
'''


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A package that has the scenario ``made-up``, and an empty folder for what is scratched."""

    def make(does: str) -> Path:
        package, scratch = tmp_path / "path" / "scenarios_of_this_test", tmp_path / "scratch"
        for folder in (package, scratch):
            folder.mkdir(parents=True)
        (package / "made_up.py").write_text(MADE_UP.format(does=does))
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.setenv("TMPDIR", str(scratch))
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        return scratch

    return make


def attempt() -> Result:
    return attempts.attempt("made-up", options.Options(("made-up",), runs=7), "scenarios_of_this_test")


def test_a_scenario_runs_by_itself_in_a_folder_that_goes_with_it(made_up):
    scratch = made_up("(bench.directory / 'data').write_text('x')")
    result = attempt()
    assert (result.failure, [figure.value for figure in result.outcome.figures]) == ("", [7])
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("raise RuntimeError('no room\\nat all')", "RuntimeError: no room"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os._exit(3)", "ended with exit code 3 and said nothing"),
    ],
)
def test_however_a_scenario_dies_it_is_said_in_one_line(made_up, does, why):
    scratch = made_up(does)
    assert attempt().failure == why
    assert list(scratch.iterdir()) == []


def test_an_interrupt_lets_the_scenario_tidy_up(made_up, tmp_path):
    mark = tmp_path / "mark"
    scratch = made_up(f"""mark = Path({str(mark)!r})
    try:
        mark.touch()
        subprocess.run(['sleep', '60'])
    finally:
        mark.unlink()""")
    code = (
        "import sys; from benchmarks import attempts, options\n"
        "try: attempts.attempt('made-up', options.Options(('made-up',)), 'scenarios_of_this_test')\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    process = spawn([VENV_BIN / "python", "-c", code], log=tmp_path / "log", cwd=ROOT)
    wait_until(mark.exists, timeout_seconds=30, what="the scenario is at work", evidence=(tmp_path / "log").read_text)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130, (tmp_path / "log").read_text()
    assert not mark.exists()
    assert list(scratch.iterdir()) == []
