"""The benchmarks' statistics, verdicts and tables; their timings are taken by `make bench`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as program
from benchmarks import environments, picture, report
from benchmarks.measures import Findings, Measurement, Target, at_most, faster_than, per_extra
from benchmarks.processes import Family, family, watch
from benchmarks.races import tenfold
from benchmarks.timing import Entrant, in_turns

RACES = Path(program.__file__).parent / "races"


def test_the_median_is_the_middle_sample_and_not_moved_by_one_slow_run() -> None:
    assert Measurement("A", "x", (1.0, 9.0, 1.2, 1.1, 1.3)).median == 1.2
    assert Measurement("A", "x").median is None


@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=9))
def test_the_spread_is_never_negative_and_nought_for_equal_samples(samples: list[float]) -> None:
    spread = Measurement("A", "x", tuple(samples)).spread
    assert spread is not None
    assert spread >= 0
    assert (spread == 0) == (len(set(samples)) == 1)


@pytest.mark.parametrize(("value", "verdict"), [(0.2, "holds"), (0.201, "misses")])
def test_a_limit_holds_up_to_and_including_itself(value: float, verdict: str) -> None:
    assert at_most("r", "t", Measurement("A", "x", (value,)), 0.2).verdict == verdict


@pytest.mark.parametrize(("ours", "verdict"), [(1.0, "holds"), (1.01, "misses")])
def test_five_times_as_fast_means_a_fifth_of_the_peers_time(ours: float, verdict: str) -> None:
    target = faster_than("r", "t", Measurement("A", "x", (ours,)), Measurement("B", "x", (5.0,)), 5.0)
    assert target.verdict == verdict


def test_a_peer_that_failed_leaves_its_target_unmeasured_with_the_error() -> None:
    target = faster_than("r", "t", Measurement("A", "x", (1.0,)), Measurement("B", "x", error="no wheel"), 5.0)
    assert (target.verdict, target.error) == ("unmeasured", "no wheel")


def test_an_extra_step_costs_the_difference_of_the_medians_shared_by_the_extra_steps() -> None:
    short, long = Measurement("A", "5", (1.0, 1.0, 7.0)), Measurement("A", "20", (1.6, 1.6, 1.5))
    assert per_extra("A", short, long, 15).median == pytest.approx(0.04)
    assert per_extra("A", Measurement("A", "5", error="gone"), long, 15).error == "gone"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0123, "s", "12 ms"), (1.5, "s", "1.50 s"), (61.2, "s", "61.2 s"), (1.5e9, "B", "1.50 GB"), (2e7, "B", "20 MB")],
)
def test_an_amount_is_written_in_a_unit_that_suits_its_size(value: float, unit: str, text: str) -> None:
    assert report.amount(value, unit) == text


def test_every_line_of_a_table_has_the_same_columns_and_width() -> None:
    lines = report.table(("a", "long header"), [("a much longer cell", "1"), ("", "")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(line.count("|") == 3 for line in lines)


def found() -> dict[str, Findings]:
    failed = Measurement("B", "5 steps", error="it said | no")
    ours = Measurement("Drivetrain", "5 steps", (0.5, 0.4, 0.6))
    targets = [at_most("chain", "short", ours, 1.0), faster_than("chain", "quick", ours, failed, 5.0)]
    return {"chain": Findings(targets, [ours, failed], ("as its users write it",))}


def test_the_report_shows_verdicts_and_names_what_failed_once() -> None:
    text = report.text(found())
    assert "| chain | short  | 500 ms   | limit 1.00 s | 2.00x | 1x     | holds      |" in text
    assert "| unmeasured |" in text
    assert text.count("it said | no") == 1


def test_the_json_holds_every_sample_and_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "results" / "latest.json"
    report.write_json(path, report.this_machine(), found(), 3)
    content = json.loads(path.read_text())
    chain = content["races"]["chain"]
    assert chain["measurements"][0]["samples"] == [0.5, 0.4, 0.6]
    assert chain["measurements"][0]["median"] == 0.5
    assert [target["verdict"] for target in chain["targets"]] == ["holds", "unmeasured"]
    assert content["machine"]["cores"] >= 1


def test_the_picture_is_drawn_without_those_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "images" / "chain.png"
    picture.draw_chain(path, found()["chain"].measurements, ["5 steps"])
    assert path.read_bytes().startswith(b"\x89PNG")


def entrant(directory: Path, name: str, code: str) -> Entrant:
    return Entrant(name, "x", [sys.executable, "-c", code], directory)


def test_entrants_take_turns_and_the_warm_up_does_not_count(tmp_path: Path) -> None:
    write = "open('order', 'a').write('{}')"
    measured = in_turns([entrant(tmp_path, name, write.format(name)) for name in "ab"], rounds=2)
    assert (tmp_path / "order").read_text() == "ababab"
    assert [len(entry.samples) for entry in measured] == [2, 2]


def test_an_entrant_that_fails_is_reported_with_what_it_said_last(tmp_path: Path) -> None:
    good, bad = in_turns(
        [entrant(tmp_path, "good", ""), entrant(tmp_path, "bad", "raise SystemExit('no disk')")], rounds=1
    )
    assert good.samples
    assert not bad.samples
    assert "ended with 1: no disk" in bad.error


def test_a_benchmarked_process_sees_a_home_of_its_own_and_none_of_our_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    code = "import os; assert os.environ['HOME'] == os.path.abspath('home') and 'PYTHONPATH' not in os.environ"
    assert in_turns([entrant(tmp_path, "a", code)], rounds=1)[0].error == ""


def test_a_watched_command_is_charged_for_its_hungriest_child_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Family.look

    def look_and_tell(kin: Family) -> None:
        look(kin)
        if kin.highest[0] > 150_000_000:
            (tmp_path / "seen").touch()

    monkeypatch.setattr(Family, "look", look_and_tell)
    child = "import time; block = bytearray(150_000_000); print(len(block), flush=True); time.sleep(600)"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline(); print(child.pid); import os, time; until = time.monotonic() + 60\n"
        "while not os.path.exists('seen') and time.monotonic() < until: time.sleep(0.05)"
    )
    with family("test") as kin:
        done = watch(kin, [sys.executable, "-c", code], tmp_path, tmp_path / "home")
        pid = int(done.output)
        os.kill(pid, 0)
    assert done.code == 0
    assert done.peak > 150_000_000
    assert "bytearray" in done.peak_command
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_every_peer_pins_each_of_its_requirements_and_its_own_version() -> None:
    for peer in (*environments.CHAINS, environments.MLFLOW):
        lines = [
            line.partition(";")[0].strip()
            for line in (peer.home / "requirements.txt").read_text().splitlines()
            if not line.startswith("#")
        ]
        assert all("==" in line for line in lines)
        assert any(line.startswith(peer.folder) and line.endswith(f"=={peer.version}") for line in lines)


def test_an_environment_that_cannot_be_made_is_an_error_with_the_installers_words(tmp_path: Path) -> None:
    peer = environments.Peer("Ghost", str(tmp_path / "ghost"), "1")
    peer.home.mkdir()
    (peer.home / "requirements.txt").write_text("./not-there\n")
    with pytest.raises(environments.InstallFailed, match="Ghost 1 cannot be installed"):
        environments.install(peer, tmp_path / "venvs")


def test_an_unknown_race_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--only", "chian"])
    assert ended.value.code == 2
    assert "no race chian" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code"), [([], 1), (["--report-only"], 0)], ids=["a missed target", "a missed target, report only"]
)
def test_a_missed_target_decides_the_exit_code(
    more: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = Findings([Target("help", "t", 2.0, 1.0, "limit")])
    monkeypatch.setattr(program, "RACES", {"help": lambda setting: missed})
    assert program.main(["--only", "help", "--output", str(tmp_path / "out.json"), *more]) == code


def copies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "data", ModuleType("data"))
    spec = importlib.util.spec_from_file_location("copies", RACES / "copies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hourly(start: datetime, end: datetime) -> pd.DataFrame:
    moments = pd.date_range("2013-01-01", "2014-01-01", freq="h", tz="UTC", name="at")
    frame = moments.to_frame(index=False)
    frame = frame[(frame["at"] >= pd.Timestamp(start)) & (frame["at"] < pd.Timestamp(end))].reset_index(drop=True)
    return frame.assign(row_id=frame["at"].dt.strftime("%j%H"))


def test_copies_hold_ten_times_the_rows_each_in_its_own_time_under_its_own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    module = copies(monkeypatch)
    whole = module.periodic(hourly, None, None, {})
    assert len(whole) == 10 * 91 * 24
    assert whole["at"].is_unique
    assert whole["row_id"].is_unique
    edges = pd.date_range("2013-01-01", periods=31, freq="MS", tz="UTC").to_pydatetime()
    pieces = [module.periodic(hourly, *pair, {}) for pair in pairwise(edges)]
    pd.testing.assert_frame_equal(pd.concat(pieces, ignore_index=True), whole)


def test_outside_of_the_copies_there_are_no_rows_but_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    module = copies(monkeypatch)
    empty = module.periodic(hourly, datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC), {})
    assert empty.empty
    assert list(empty.columns) == ["at", "row_id"]


def test_a_period_is_the_window_made_up_to_whole_weeks() -> None:
    window = {"data": {"window": {"start": "2013-01-01", "end": "2013-04-01"}}}
    assert tenfold.window(window) == (datetime(2013, 1, 1, tzinfo=UTC), timedelta(days=91))


def test_only_functions_that_take_a_window_are_repeated() -> None:
    source = "def rows(start, end): ...\ndef names(): ...\nclass A:\n    def inner(self, start): ...\n"
    assert tenfold.takes_window(source) == {"rows"}


def test_the_chain_of_no_ops_ends_with_its_length_and_is_cached_when_asked(tmp_path: Path) -> None:
    script = RACES.parent / "chain" / "drivetrain_chain.py"
    said = [
        subprocess.run(
            [sys.executable, script, "3", *more], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for more in ([], [], ["cached"])
    ]
    assert [line.split()[-1] for line in said] == ["{'done'}", "{'done'}", "{'cached'}"]
    assert all("number=3" in line for line in said)
