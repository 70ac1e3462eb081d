import re
from html.parser import HTMLParser

import pytest

from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.pipeline.stages import STAGES
from kexue_train.report.build_report import build_comparison, build_report

SECTIONS = ["learning", "evaluation", "predictions", "speed", "data", "checks", "anomalies", "configuration"]


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
    return build_report(run_dir, STAGES).read_text(encoding="utf-8")


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
    assert len(plots) == 6
    assert all(len(plot["aria-label"]) > 30 for plot in plots)


def test_page_shows_scores_predictions_and_configuration(finished_run):
    page = without_scripts(page_of(finished_run))
    for part in ("4.903", "6.583", "21.8% ± 0.9%", "parameter", "num_hidden_layers: 4", "6 min 21 s", "pyarrow"):
        assert part in page


def test_statistics_of_the_samples_are_shown(finished_run):
    page = re.sub(r"\s*<[^>]*>\s*", "|", page_of(finished_run))
    for name, value in (("fill", "98.87%"), ("negative share", "49.66%"), ("8 or more tokens", "0.04%")):
        assert re.search(rf"\|{name}\|+{value}\|", page)


def test_run_in_progress_says_what_is_missing(young_run):
    page = without_scripts(page_of(young_run))
    assert "in progress, training at step 300 of 1,000" in page
    for text in ("has not been evaluated yet", "No sentence has been completed yet", "Not finished yet: "):
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


def test_every_table_has_a_caption_and_every_cell_a_header(eventful_run):
    page = page_of(eventful_run)
    tables = re.findall(r"<table.*?</table>", page, flags=re.DOTALL)
    assert len(tables) > 20
    for table in tables:
        assert re.search(r"<caption[^>]*>[^<]+</caption>", table)
        assert all("<th scope=" in row for row in re.findall(r"<tr>.*?</tr>", table, flags=re.DOTALL))


def test_landmarks_are_there_once(eventful_run):
    tags = [tag for tag, _ in Elements(page_of(eventful_run)).found]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert tags.count("h2") == len(SECTIONS)


def test_page_is_small(eventful_run):
    assert build_report(eventful_run).stat().st_size < 200_000


def test_chinese_text_says_that_it_is_chinese(eventful_run, finished_run):
    assert '<li class="card" lang="zh-Hans">' in page_of(eventful_run)
    assert "北京是中国的" in page_of(eventful_run)
    assert "zh-Hans" not in page_of(finished_run)


def test_a_torn_line_is_told(young_run):
    with (young_run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 310, "mlm')
    page = without_scripts(page_of(young_run))
    assert "This run is not finished" in page
    assert "The last line of metrics.jsonl is torn" in page
    assert "training at step 300 of 1,000" in page


def test_comparison_shows_all_runs(finished_run, eventful_run, young_run, tmp_path):
    out = build_comparison([finished_run, eventful_run, young_run], tmp_path / "pages" / "comparison.html")
    page = out.read_text(encoding="utf-8")
    elements = Elements(page)
    assert [a["id"] for tag, a in elements.found if tag == "section"] == ["runs", "results", "learning", "settings"]
    assert [value for value in elements.values("href") if not value.startswith("#")] == []
    for text in ("demo · 中文-small · young", "Not finished on", "eprstmt: zero-shot accuracy, NSP", "66.1%", "seed"):
        assert text in without_scripts(page)


def test_a_comparison_needs_different_runs(finished_run, tmp_path):
    with pytest.raises(ConfigError, match="two or more different run folders"):
        build_comparison([finished_run, finished_run / ".." / finished_run.name], tmp_path / "page.html")
