"""Bars: read strictly, judged with the noise floor beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from traces.errors import ConfigError
from validation.bars import Bars, judge, load_bars
from validation.compared import COMPARED
from validation.scorecard import MetricErrors, Scorecard, Statistic


def card(error: float | None, noise: float | None = None) -> Scorecard:
    statistic = Statistic(1.0, 1.0 + (error or 0), error, noise=noise)
    errors = MetricErrors(COMPARED["ttft"], {"mean": statistic}, {"ks": 0.2})
    return Scorecard({"ttft": errors}, {"metrics_missing": {"queue": "only in measured"}}, {})


@pytest.mark.parametrize(
    ("error", "noise", "passed"),
    [
        (0.05, None, True),
        (-0.05, None, True),
        (-0.051, None, False),
        (0.09, 0.05, True),  # 2 x noise is wider than the bar
        (0.11, 0.05, False),
        (0.04, 0.001, True),  # the bar is wider than 2 x noise
        (None, None, False),
    ],
)
def test_the_wider_of_bar_and_noise_counts(
    error: float | None, noise: float | None, passed: bool
) -> None:
    (judgement,) = judge(card(error, noise), Bars({("ttft", "mean"): 0.05}))
    assert judgement.passed is passed


def test_reasons_are_in_words() -> None:
    (beyond,) = judge(card(-0.2, 0.05), Bars({("ttft", "mean"): 0.05}))
    assert beyond.reason == "20 % low, 10 % allowed: 2 times the noise, the bar is 5 %"
    (distance,) = judge(card(0.0), Bars({("ttft", "ks"): 0.1}))
    assert (distance.passed, distance.reason) == (False, "0.2, 0.1 allowed")


def test_a_bar_on_what_was_not_compared_fails() -> None:
    (judgement,) = judge(card(0.0), Bars({("queue", "mean"): 0.5}))
    assert not judgement.passed
    assert judgement.reason == "not compared: only in measured"


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bars.yaml"
    file.write_text("ttft: {mean: 0.05, p99: 0.15}\ne2e: {ks: 0.1}\nnoise_multiple: 3\n")
    bars = load_bars(file)
    assert bars.noise_multiple == 3
    assert bars.limits == {("ttft", "mean"): 0.05, ("ttft", "p99"): 0.15, ("e2e", "ks"): 0.1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tftt: {mean: 0.1}", "unknown metric 'tftt'; did you mean 'ttft'"),
        ("ttft: {maen: 0.1}", "ttft: unknown statistic 'maen'; did you mean 'mean'"),
        ("ttft: {mean: ten}", "ttft.mean: must be a number"),
        ("ttft: {mean: true}", "ttft.mean: must be a number"),
        ("ttft: {mean: -0.1}", "ttft.mean: must be a number >= 0"),
        ("ttft: {mean: .nan}", "ttft.mean: must be a number >= 0"),
        ("ttft: 0.1", "ttft: expected statistics"),
        ("nois_multiple: 2", "did you mean 'noise_multiple'"),
        ("- ttft", "expected metrics and their bars"),
        ("ttft: {mean: 0.1", "not YAML"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bars.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_bars(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
