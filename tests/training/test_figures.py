from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from morejax.training import figures, plotting
from morejax.training.writers import read_metrics, read_stages


@pytest.fixture(scope="module")
def log(tmp_path_factory, synthetic):
    return synthetic.write_metrics(tmp_path_factory.mktemp("run") / "metrics.jsonl")


@pytest.fixture(scope="module")
def metrics(log):
    return read_metrics(log, stage="ppo")


def texts(figure):
    """Everything written in a figure."""
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    for axis in figure.axes:
        found += [axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()]
    return found


def test_each_constraint_has_a_panel_with_its_threshold_and_average(metrics):
    figure = figures.constraints_figure(metrics)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["inform (◆ greedy, selection split)", "success"]
    for axis in figure.axes:
        lines = [line.get_ydata() for line in axis.lines]
        assert any(np.allclose(line, 0.9) for line in lines)
        assert any(len(line) == 12 and np.allclose(line, 0.7 + 0.01 * np.arange(12)) for line in lines)
    assert "threshold 0.9" in texts(figure)
    assert "0.81" in texts(figure)  # the last average


def test_lines_are_named_and_axes_labelled(metrics):
    drawn = [
        (figures.multipliers_figure(metrics), {"inform", "success", "Multipliers", "λ", "PPO iteration"}),
        (
            figures.weights_figure(metrics),
            {"likeness", "fluency", "Objective weights", "Share of the gradient"},
        ),
        (figures.objectives_figure(metrics), {"likeness", "fluency", "J"}),
        (figures.norms_figure(metrics), {"Gradient norms", "norm (log scale)", "-0.39", "1.00"}),
        (
            figures.kl_entropy_figure(metrics),
            {"KL to the reference", "Entropy of the policy", "nats per token"},
        ),
        (
            figures.overview_figure(metrics),
            {"Multipliers", "Objective weights", "Objectives, change since the start"},
        ),
    ]
    for figure, expected in drawn:
        assert expected <= set(texts(figure))


def test_names_at_line_ends_do_not_overlap(metrics):
    figure = figures.weights_figure(metrics)  # both weights end at 0.5
    figure.draw_without_rendering()
    names = [text for text in figure.axes[0].texts if text.get_text() in ("likeness", "fluency")]
    boxes = [name.get_window_extent() for name in names]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])


def many(objectives, constraints, suffix, steps=5):
    """A log of many streams whose lines all end high, one variance far below the rest."""
    rng = np.random.default_rng(0)
    metrics = {"step": np.arange(steps)}
    names = [f"constraint_{i}{suffix}" for i in range(constraints)] + [
        f"objective_{i}{suffix}" for i in range(objectives)
    ]
    for index, name in enumerate(names):
        for key in ("J", "grad_norm", "share", "explained_variance", "clip_fraction"):
            metrics[f"{key}/{name}"] = 0.9 + 0.01 * rng.random(steps)
        for other in names[index + 1 :]:
            metrics[f"cosine/{name}/{other}"] = rng.random(steps)
        kind = "multiplier" if index < constraints else "weight"
        metrics[f"{kind}/{name}"] = np.full(steps, 0.5)
        if index < constraints:
            metrics |= {f"constraint/{name}/{key}": np.full(steps, 0.9) for key in ("threshold", "violation")}
    metrics[f"explained_variance/{names[0]}"] = np.full(steps, -50.0)
    return metrics


@pytest.mark.parametrize("suffix", ["", "_with_a_long_name_that_goes_on_and_on"])
@pytest.mark.parametrize(("objectives", "constraints"), [(2, 2), (20, 12)])
@pytest.mark.parametrize("name", ["weights", "multipliers", "norms", "kl_entropy", "overview"])
def test_many_streams_and_long_names_fit(name, objectives, constraints, suffix):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = getattr(figures, f"{name}_figure")(many(objectives, constraints, suffix))
        figure.draw_without_rendering()
    page = figure.bbox
    for axis in figure.axes:
        assert min(axis.get_window_extent().size) > 30
        names = [text for text in axis.texts if text.get_text() != "●" and "stream" not in text.get_text()]
        for text in names:
            box = text.get_window_extent()
            assert page.x0 <= box.x0 < box.x1 <= page.x1
            assert page.y0 <= box.y0 < box.y1 <= page.y1


def test_heights_are_kept_within_a_panel():
    assert plotting.keep_within([0.5, 1.4, 1.2], 0.2) == pytest.approx([0.5, 1.0, 0.8])
    assert plotting.keep_within([-0.3, 0.1], 0.5) == pytest.approx([0.0, 0.5])
    assert plotting.keep_within([0.2, 0.7], 0.1) == [0.2, 0.7]


def test_a_stream_keeps_its_colour(metrics):
    colours = plotting.stream_colours(metrics)
    assert len(set(colours.values())) == 4
    multipliers = figures.multipliers_figure(metrics).axes[0]
    assert [line.get_color() for line in multipliers.lines] == [colours["inform"], colours["success"]]


def test_supervised_shows_the_stages_that_have_losses(log):
    figure = figures.supervised_figure(read_stages(log))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["supervised"]
    assert "held out 0.200" in texts(figure)
    assert figure.axes[0].get_ylabel() == "loss (nats per token)"


def test_scores_are_drawn_for_the_split_asked_for(synthetic):
    figure = figures.score_figure(synthetic.results()["scores"], "dev")
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "Inform (%)",
        "Success (%)",
        "BLEU",
        "Combined",
    ]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [85.0, 92.0]
    assert figures.score_figure(synthetic.results()["scores"], "nowhere") is None


def test_evaluations_are_drawn_where_they_were_made(metrics):
    figure = figures.evaluation_figure(metrics)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Inform (%)", "BLEU"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), [[0, 80], [5, 85], [10, 90]])


def test_reliability_leaves_out_empty_bins():
    bins = [
        {"lower": 0.0, "upper": 0.5, "count": 10, "confidence": 0.3, "accuracy": 0.25},
        {"lower": 0.5, "upper": 1.0, "count": 0, "confidence": 0.0, "accuracy": 0.0},
    ]
    axis = figures.reliability_figure({"naturalness": bins}).axes[0]
    np.testing.assert_allclose(axis.collections[0].get_offsets(), [[0.3, 0.25]])
    assert figures.reliability_figure({}) is None


def test_absent_metrics_give_no_figure_and_partial_ones_a_smaller_one():
    nothing = {"step": np.arange(3)}
    for draw in (
        figures.constraints_figure,
        figures.multipliers_figure,
        figures.weights_figure,
        figures.objectives_figure,
        figures.norms_figure,
        figures.kl_entropy_figure,
        figures.evaluation_figure,
        figures.overview_figure,
    ):
        assert draw(nothing) is None
    assert figures.supervised_figure({"ppo": nothing}) is None
    only_kl = figures.kl_entropy_figure({**nothing, "kl": np.array([0.1, np.nan, 0.3])})
    assert len(only_kl.axes) == 1
    unconstrained = figures.overview_figure({**nothing, "weight/a": np.ones(3), "J/a": np.ones(3)})
    assert texts(unconstrained).count("not part of this run") == 2


def test_one_iteration_can_be_drawn(tmp_path, synthetic):
    metrics = read_metrics(synthetic.write_metrics(tmp_path / "metrics.jsonl", iterations=1), stage="ppo")
    assert figures.save_figure(figures.overview_figure(metrics), tmp_path / "a" / "o.png").stat().st_size > 5000


def test_svg_is_well_formed_prefixed_and_loads_nothing(metrics):
    svg = figures.to_svg(figures.norms_figure(metrics), "norms", 'cosines <of> "streams"')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'cosines <of> "streams"'
    identifiers = re.findall(r'\bid="([^"]+)"', svg)
    assert len(identifiers) == len(set(identifiers))
    assert all(name.startswith("norms-") for name in identifiers)
    targets = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert targets <= set(identifiers)
    assert not re.search(r'(?:href|src)="(?!#)|url\((?!#)', svg)
    assert "currentColor" in svg
    assert plotting.INK not in svg


def test_svg_is_the_same_each_time(metrics):
    first, second = (figures.to_svg(figures.multipliers_figure(metrics), "m", "m") for _ in range(2))
    assert first == second


def test_smoothing_keeps_level_and_length_and_has_no_lag():
    np.testing.assert_allclose(plotting.smooth(np.full(40, 0.3)), 0.3)
    line = np.arange(60.0)
    np.testing.assert_allclose(plotting.smooth(line)[10:-10], line[10:-10])
    # Three points, sigma 1: the middle one is (x0 + x2) e^(-1/2) + x1 over 1 + 2 e^(-1/2).
    g = np.exp(-0.5)
    assert plotting.smooth(np.array([1.0, 2.0, 6.0]), sigma=1.0)[1] == pytest.approx((7 * g + 2) / (1 + 2 * g))
    assert plotting.smooth(np.empty(0)).size == 0


def test_cosines_are_symmetric_with_unit_diagonal():
    metrics = {
        "step": np.arange(2),
        "cosine/a/b": np.array([0.1, -0.4]),
        "cosine/b/c": np.array([0.2, np.nan]),
    }
    names, matrix = plotting.last_cosines(metrics)
    assert names == ["a", "b", "c"]
    np.testing.assert_allclose(matrix, [[1, -0.4, np.nan], [-0.4, 1, 0.2], [np.nan, 0.2, 1]])


def test_spread_moves_only_what_is_too_near():
    assert plotting.spread([0.1, 0.9], 0.2) == pytest.approx([0.1, 0.9])
    assert plotting.spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert plotting.spread([0.9, 0.5, 0.5, 0.5], 0.1) == pytest.approx([0.9, 0.4, 0.5, 0.6])
    moved = plotting.spread([0.0, 0.01, 0.5, 0.02], 0.1)
    assert min(np.diff(sorted(moved))) >= 0.1 - 1e-9


def test_long_runs_are_thinned_with_their_last_point_kept(log):
    stages = {"supervised": {"step": np.arange(20_000), "loss": np.linspace(5, 1, 20_000)}}
    for line in figures.supervised_figure(stages).axes[0].lines:
        assert len(line.get_xdata()) <= 500
        assert line.get_xdata()[-1] == 19_999
