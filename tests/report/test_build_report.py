import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from kexue_train.errors import ArtifactError
from kexue_train.report.build_report import build_report

SECTIONS = ["learning", "evaluation", "predictions", "data", "time", "checks", "events", "configuration", "versions"]
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Elements(HTMLParser):
    """Every start tag with its attributes; the contents of scripts are no tags."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def values(self, name):
        return [attributes[name] for _, attributes in self.found if name in attributes]


def page_of(run_dir):
    return build_report(run_dir).read_text(encoding="utf-8")


def without_scripts(html):
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def test_page_loads_nothing(finished_run):
    elements = Elements(page_of(finished_run))
    assert [value for value in elements.values("href") if not value.startswith("#")] == []
    assert elements.values("src") == []
    assert "link" not in {tag for tag, _ in elements.found}
    assert not re.search(r"url\(|@import", without_scripts(page_of(finished_run)))


def test_every_section_is_there_and_linked(finished_run):
    elements = Elements(page_of(finished_run))
    assert [attributes["id"] for tag, attributes in elements.found if tag == "section"] == SECTIONS
    assert {f"#{name}" for name in SECTIONS} <= set(elements.values("href"))


def test_identifiers_are_unique(finished_run):
    names = Elements(page_of(finished_run)).values("id")
    assert len(names) == len(set(names))


def test_every_plot_says_what_it_shows(finished_run):
    plots = [attributes for _, attributes in Elements(page_of(finished_run)).found if attributes.get("role") == "img"]
    assert len(plots) == 8
    assert all(len(plot["aria-label"]) > 30 for plot in plots)


def test_page_shows_scores_predictions_and_configuration(finished_run):
    page = without_scripts(page_of(finished_run))
    for part in ("4.903", "6.583", "21.8% ± 0.9%", "parameter", "num_hidden_layers: 4", "6 min 21 s", "plotly"):
        assert part in page


def test_statistics_of_the_samples_are_shown(finished_run):
    page = re.sub(r"\s*<[^>]*>\s*", "|", page_of(finished_run))
    for name, value in (("fill", "98.87%"), ("negative share", "49.66%"), ("word lengths: 8 or more", "1,204")):
        assert re.search(rf"\|{name}\|+{value}\|", page)


def test_run_in_progress_says_what_is_missing(young_run):
    page = without_scripts(page_of(young_run))
    assert "in progress, training at step 300 of 1,000" in page
    for text in ("has not been evaluated yet", "No sentence has been completed yet", "No stage has finished yet"):
        assert text in page


def test_run_that_just_started_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("name: new\n")
    page = without_scripts(page_of(tmp_path))
    assert "nothing finished yet" in page
    assert "Training has not logged anything yet" in page


def test_text_from_the_run_is_escaped(young_run):
    attack = "</script><script>alert(1)</script>"
    (young_run / "config.yaml").write_text(f"name: '{attack}'\n")
    with (young_run / "stages.jsonl").open("a") as file:
        file.write('{"stage": "</script><b>bold", "seconds": 3, "bytes": 5}\n')
    page = page_of(young_run)
    assert attack not in page
    assert "<b>bold" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_report_is_made_anew_at_every_call(young_run):
    before = page_of(young_run)
    (young_run / "config.yaml").write_text("name: renamed\n")
    assert before != page_of(young_run)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a run folder"):
        build_report(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium to open the page")
@pytest.mark.parametrize("window", ["1280,900", "500,900"])
def test_browser_draws_every_plot_without_an_error(finished_run, tmp_path, window):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--enable-logging=stderr"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [_CHROMIUM, *flags, profile, f"--window-size={window}", "--dump-dom", build_report(finished_run).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert "CONSOLE" not in done.stderr
    plots = [attributes for _, attributes in Elements(done.stdout).found if attributes.get("role") == "img"]
    assert len([plot for plot in plots if "js-plotly-plot" in plot["class"]]) == 8
