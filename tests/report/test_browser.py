"""The pages in a real browser: drawn, readable and quiet, on a phone and on a desk, in both themes."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kexue_train.report.build_report import build_comparison, build_report
from tests.report.example_run import write_eventful_run, write_finished_run, write_young_run_with_torn_end

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
PAGES, WIDTHS = ("finished", "eventful", "young", "comparison"), (360, 768, 1280)
CHARTS = {"finished": 6, "eventful": 10, "young": 6, "comparison": 8}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to open the pages"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """(What the probe found by page and width, what the browser said); one start of the browser for all."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [write_finished_run(folder / "a"), write_eventful_run(folder / "b")]
    runs.append(write_young_run_with_torn_end(folder / "c"))
    paths = [*map(build_report, runs), build_comparison(runs, folder / "comparison.html")]
    frames = [
        f'<iframe name="{name}" width="{width}" height="800" srcdoc="{html.escape(path.read_text("utf-8"))}"></iframe>'
        for name, path in zip(PAGES, paths, strict=True)
        for width in WIDTHS
    ]
    probe = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
    page = folder / "probe.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}<script>{probe}</script>", "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *QUIET.split()]
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=600, check=True)
    (result,) = re.findall(r'<pre id="result">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(html.unescape(result)), done.stderr


@pytest.fixture(params=[f"{page} {width}" for page in PAGES for width in WIDTHS])
def view(request, seen):
    return request.param.split()[0], seen[0][request.param]


def test_nothing_is_complained_about(seen):
    assert [line for line in seen[1].splitlines() if "CONSOLE" in line] == []


def test_every_chart_is_drawn(view):
    page, found = view
    assert (found["charts"], found["undrawn"]) == (CHARTS[page], [])


def test_nothing_lies_over_something_else_or_outside(view):
    _, found = view
    assert (found["overflow"], found["crowded"], found["outside"]) == (0, [], [])


def test_text_is_large_enough_and_controls_have_names(view):
    _, found = view
    assert (found["smallText"], found["nameless"]) == (0, 0)


def test_values_are_told_under_the_pointer_and_by_keys(view):
    page, found = view
    assert found["underPointer"].startswith("step ")
    assert found["atHome"].startswith("step 100" if page == "comparison" else "step 10")
    assert found["underPointer"] != found["atHome"]
    assert found["afterEscape"] == ""


def test_the_button_changes_the_colours(view):
    _, found = view
    assert found["themes"]["Light"] == "rgb(246, 245, 242)"
    assert found["themes"]["Dark"] == "rgb(20, 22, 26)"
    assert set(found["themes"]) == {"Auto", "Light", "Dark"}
