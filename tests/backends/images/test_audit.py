"""Known vulnerabilities, looked up in advisories of OSV's form."""

from __future__ import annotations

import builtins
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from drivetrain import wiring
from drivetrain.backends.images import Wheel
from drivetrain.errors import MissingLibrary, StageError, Unavailable


def wheel(name: str, version: str) -> Wheel:
    return Wheel(name, version, f"{name}-{version}.whl", "0" * 64, 1)


def advisory(name: str, number: str, events: Sequence[Mapping[str, str]], **more: Any) -> dict[str, Any]:
    affected = {
        "package": {"name": name, "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
    }
    return {"id": number, "summary": f"a hole in {name}", "affected": [affected], **more}


def folder(place: Path, *advisories: Mapping[str, Any]) -> Path:
    place.mkdir()
    for entry in advisories:
        (place / f"{entry['id']}.json").write_text(json.dumps(entry))
    return place


HOLE = advisory("Some.Package", "PYSEC-2013-1", [{"introduced": "0"}, {"fixed": "1.5"}], aliases=["CVE-2013-0001"])


def test_a_package_in_an_affected_version_is_found_with_what_ends_it(tmp_path: Path) -> None:
    pytest.importorskip("pip_audit")
    place = folder(tmp_path / "advisories", HOLE, advisory("other", "PYSEC-2013-2", [{"introduced": "0"}]))
    found = wiring.audit(tmp_path, [wheel("some-package", "1.4"), wheel("third", "1")], place)
    (one,) = found.found
    assert (one.package, one.version, one.id, one.aliases, one.fixed) == (
        "some-package", "1.4", "PYSEC-2013-1", ["CVE-2013-0001"], ["1.5"],
    )  # fmt: skip
    assert one.told == "a hole in Some.Package"
    assert (found.packages, found.source) == (2, f"{place} (2 advisories)")
    assert wiring.audit(tmp_path, [wheel("some-package", "1.5")], place).found == []


def test_one_hole_with_two_names_is_told_once_and_one_that_was_withdrawn_never(tmp_path: Path) -> None:
    pytest.importorskip("pip_audit")
    again = advisory("some-package", "GHSA-x", [{"introduced": "1"}, {"fixed": "1.5"}], aliases=["CVE-2013-0001"])
    gone = advisory("some-package", "PYSEC-2013-9", [{"introduced": "0"}], withdrawn="2014-01-01T00:00:00Z")
    place = folder(tmp_path / "advisories", HOLE, again, gone)
    (one,) = wiring.audit(tmp_path, [wheel("some-package", "1.4")], place).found
    assert (one.id, sorted(one.aliases)) == ("PYSEC-2013-1", ["CVE-2013-0001", "GHSA-x"])


def test_advisories_are_read_from_a_zip_file_and_as_pypas_yaml(tmp_path: Path) -> None:
    pytest.importorskip("pip_audit")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("PYSEC-2013-1.json", json.dumps(HOLE))
    assert len(wiring.audit(tmp_path, [wheel("some-package", "1")], tmp_path / "all.zip").found) == 1
    place = tmp_path / "advisory-database" / "vulns" / "some-package"
    place.mkdir(parents=True)
    (place / "PYSEC-2013-1.yaml").write_text(
        "id: PYSEC-2013-1\ndetails: a hole\naffected:\n- package:\n    name: some-package\n    ecosystem: PyPI\n"
        "  ranges:\n  - type: ECOSYSTEM\n    events:\n    - introduced: '0'\n    - fixed: '1.5'\n  versions:\n  - '1.0'\n"
    )
    assert len(wiring.audit(tmp_path, [wheel("some-package", "1.2")], tmp_path / "advisory-database").found) == 1


def test_where_there_are_no_advisories_that_is_said_and_is_no_clean_result(tmp_path: Path) -> None:
    pytest.importorskip("pip_audit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "debian").mkdir()
    (tmp_path / "debian" / "DSA-1.json").write_text(
        '{"id": "DSA-1", "affected": [{"package": {"ecosystem": "Debian"}}]}'
    )
    for name in ("empty", "debian"):
        with pytest.raises(StageError, match="nothing can be looked up"):
            wiring.audit(tmp_path, [wheel("a", "1")], tmp_path / name)
    with pytest.raises(StageError, match="no folder or zip"):
        wiring.audit(tmp_path, [wheel("a", "1")], tmp_path / "absent")
    broken = folder(tmp_path / "broken", HOLE)
    (broken / "PYSEC-2013-1.json").write_text('{"some-package", "PyPI"')
    with pytest.raises(StageError, match=r"PYSEC-2013-1.json cannot be read"):
        wiring.audit(tmp_path, [wheel("some-package", "1")], broken)


def test_a_mirror_without_vulnerabilities_and_a_pypi_that_is_away_are_no_clean_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip_audit")
    import requests

    def answers(self: object, url: str, **options: object) -> requests.Response:
        answer = requests.Response()
        answer.status_code = 200
        answer._content = b'{"info": {}}'
        return answer

    monkeypatch.setattr(requests.Session, "get", answers)
    with pytest.raises(Unavailable, match=r"no advisory database: .* knows of no vulnerability in requests==2.19.0"):
        wiring.audit(tmp_path, [wheel("a", "1")], None)

    def breaks(self: object, url: str, **options: object) -> requests.Response:
        raise requests.exceptions.ConnectionError

    monkeypatch.setattr(requests.Session, "get", breaks)
    with pytest.raises(Unavailable, match="no advisory database: PyPI does not answer") as refused:
        wiring.audit(tmp_path, [wheel("a", "1")], None)
    assert "package.advisories" in refused.value.hint


def test_without_pip_audit_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("pip_audit") or name.endswith("images.audit")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("pip_audit"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingLibrary) as missing:
        wiring.audit(tmp_path, [], tmp_path)
    assert missing.value.hint == "pip install 'drivetrain[audit]'"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=4), st.integers(0, 20))
def test_a_version_is_affected_within_the_ranges_and_nowhere_else(spans: list[tuple[int, int]], at: int) -> None:
    pytest.importorskip("pip_audit")
    from drivetrain.backends.images.audit import _holds

    # One range for each span, as OSV has them for branches that were mended one by one.
    ranges = [
        {"type": "ECOSYSTEM", "events": [{"introduced": str(start)}, {"fixed": str(start + length)}]}
        for start, length in spans
    ]
    assert _holds({"ranges": ranges}, Version(str(at))) == any(start <= at < start + length for start, length in spans)
    listed = {"versions": [str(start) for start, _ in spans]}
    assert _holds(listed, Version(str(at))) == (at in {start for start, _ in spans})
    last = {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "2"}, {"last_affected": "5"}]}]}
    assert _holds(last, Version(str(at))) == (2 <= at <= 5)
