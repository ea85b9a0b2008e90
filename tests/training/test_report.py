from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from morejax.training.report import highlight, main, write_report

HOSTILE = '<script>alert("1")</script> & [name]'
SAMPLES = [
    {
        "id": "dlg<1>",
        "goal": {"hotel": {"informable": {"area": "<b>north</b>"}, "requestable": ["PHONE"]}},
        "verdicts": {"human": [], "ppo": ["Inform lost (hotel & <more>)"]},
        "turns": [
            {
                "user": HOSTILE,
                "state": {"hotel": {"area": "a&b"}},
                "replies": {
                    "human": {"text": "[name] it is .", "notes": []},
                    "supervised": {"text": "no <i>idea</i> about [phone]", "notes": ["offers <hotel>"]},
                    "mixed": {"text": "hello", "notes": []},
                    "ppo": {"text": HOSTILE, "notes": []},
                },
            }
        ],
    }
]
HEADS = {
    "naturalness": {
        "accuracy": 0.781,
        "auc": 0.862,
        "ece": 0.031,
        "brier": 0.149,
        "examples": 4000,
        "bins": [{"count": 10, "confidence": 0.3, "accuracy": 0.25}],
    }
}


class Page(HTMLParser):
    """Tags with attributes, ids, and the text outside styles."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def source(tmp_path_factory, synthetic):
    run = synthetic.write_run(tmp_path_factory.mktemp("runs") / "run", samples=SAMPLES, reward_heads=HEADS)
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_the_page_requests_nothing(source, page):
    loading = {"script", "link", "iframe", "object", "embed", "img", "audio", "video", "base"}
    assert not [tag for tag, _ in page.tags if tag in loading]
    for _, attributes in page.tags:
        for name in ("href", "src", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"@import|url\((?!#)", source)


def test_all_that_comes_from_files_is_escaped(source, page):
    assert "<script" not in source
    assert "<b>north</b>" not in source
    assert "&lt;script&gt;" in source
    assert 'alert("1")' in page.words
    assert "python -m x --out <here>" in page.words
    assert "offers <hotel>" in page.words


def test_links_within_the_page_lead_somewhere_and_ids_are_unique(page):
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert targets <= set(identifiers)


def test_the_banner_says_what_was_run(page):
    for expected in (
        "multiwoz-2.2",
        "policy (gold state)",
        "more: constraints",
        "abc123",
        "jax 0.0.1",
        "cpu",
    ):
        assert expected in page.words


def test_systems_stand_side_by_side_with_what_they_get_wrong(page):
    for expected in (
        "People [name] it is .",
        "Supervised no <i>idea</i> about [phone] offers <hotel>",
        "mixed hello",
        "People : Inform and Success held. After PPO : Inform lost (hotel & <more>)",
    ):
        assert expected in page.words


def test_placeholders_are_marked_in_both_replies(source):
    assert "no &lt;i&gt;idea&lt;/i&gt; about <mark>[phone]</mark>" in source
    assert str(highlight("a [name] & [no spaces]")) == "a <mark>[name]</mark> &amp; [no spaces]"


def test_scores_changes_and_domains_are_shown(page):
    for expected in (
        "Supervised 85.0 73.0 18.5 97.5",
        "After PPO 92.0 88.0 18.0 108.0",
        "93.1 89.4 18.3",
        "312 2911",
    ):
        assert expected in page.words
    assert "+7.0 against supervised" in page.words
    assert "−0.5 against supervised" in page.words
    assert "hotel 61.5 / 52.5" in page.words


def test_the_board_of_the_track_stands_beside_multiwoz_only(tmp_path, page, synthetic):
    assert "DiactTOD 94.8 90.2 17.8 110.3" in page.words
    assert "The board is on the test split" in page.words
    assert "MTTOD" not in page.words
    end_to_end = Page(
        write_report(synthetic.write_run(tmp_path / "e2e", synthetic.results(track="e2e"), metrics=False)).read_text()
    )
    assert "MTTOD" in end_to_end.words
    embedded = Page(
        write_report(
            synthetic.write_run(tmp_path / "embedded", synthetic.results(corpus="embedded"), metrics=False)
        ).read_text()
    )
    assert "DiactTOD" not in embedded.words
    assert "say nothing about MultiWOZ" in embedded.words


def test_state_tracking_is_shown_where_it_was_scored(tmp_path, page, synthetic):
    assert "joint accuracy" not in page.words
    row = synthetic.score_row("ppo", "dev", 80.0, 70.0, 17.0, dst={"joint_accuracy": 48.25, "slot_f1": 88.1})
    run = synthetic.write_run(tmp_path / "run", synthetic.results(track="e2e", scores=[row], inform=80.0, success=70.0))
    words = Page(write_report(run).read_text()).words
    assert "joint accuracy (%)" in words
    assert "48.2" in words


def test_constraints_say_whether_they_are_met(page):
    assert "inform 0.900 0.700 0.930 0.40 met" in page.words
    assert "success 0.900 0.700 0.880 3.10 short by 0.020" in page.words


def test_heads_timings_and_figures_are_there(page):
    assert "naturalness 4000 0.781 0.862 0.031 0.149" in page.words
    assert "supervised 5m00s 25 %" in page.words
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) == 10


def test_a_supervised_run_without_the_optional_files_has_a_page(tmp_path, synthetic):
    scores = [synthetic.score_row("supervised", "dev", 85.0, 73.0, 18.5)]
    run = synthetic.write_run(
        tmp_path / "run", synthetic.results(method="supervised", scores=scores, constraints={}, timings={})
    )
    (run / "metrics.jsonl").unlink()
    words = Page(write_report(run).read_text()).words
    assert "supervised: supervised learning only" in words
    assert "against supervised" not in words
    assert "left no sample dialogues" in words
    assert "Constraints: is the decision right?" not in words


def test_rows_of_another_board_can_be_given(tmp_path, synthetic):
    class Row:
        system, bleu, inform, success, combined, reinforced = "Ours 2025", 1.0, 2.0, 3.0, 3.5, True
        length = cond_entropy = words = trigrams = None

    words = Page(write_report(synthetic.write_run(tmp_path / "run", metrics=False), board=[Row()]).read_text()).words
    assert "Ours 2025 (RL) 2.0 3.0 1.0 3.5" in words
    assert "DiactTOD" not in words


def test_dialogues_of_an_earlier_version_are_named_with_what_to_do(tmp_path, synthetic):
    old = [{"id": "a", "goal": {}, "turns": [{"user": "hi", "reference": "hi", "before": "x", "after": "y"}]}]
    run = synthetic.write_run(tmp_path / "run", samples=old)
    with pytest.raises(ValueError, match=r"samples\.json was written by an earlier version: .* --stages evaluate"):
        write_report(run)


def test_missing_and_broken_files_are_named(tmp_path, synthetic):
    run = synthetic.write_run(tmp_path / "run", metrics=False)
    (run / "results.json").write_text(json.dumps({"method": "more"}))
    with pytest.raises(ValueError, match=r"results\.json: no field 'track'"):
        write_report(run)
    (run / "results.json").write_text('{"method": ')
    with pytest.raises(ValueError, match=r"results\.json: not valid JSON"):
        write_report(run)
    (run / "reward_heads.json").write_text('{"accuracy": 0.8}')
    (run / "results.json").write_text(json.dumps(synthetic.results()))
    with pytest.raises(ValueError, match=r"reward_heads\.json: no head"):
        write_report(run)
    (run / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"results\.json"):
        write_report(run)


def test_the_command_line_rebuilds_the_page(tmp_path, capsys, synthetic):
    run = synthetic.write_run(tmp_path / "run", metrics=False)
    assert main([str(run)]) == 0
    assert (run / "report.html").stat().st_size > 20_000
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main([]) == 2
