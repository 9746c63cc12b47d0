"""Hardware sheets: found by sheet name, torch name or path; every number with its source."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from simulator.hardware import SHEETS, load_hardware
from traces.errors import ConfigError

NAMES = sorted(path.stem for path in SHEETS.glob("*.yaml"))
TORCH_NAMES = {
    "NVIDIA H100 80GB HBM3": "h100_sxm",
    "NVIDIA H200": "h200_sxm",
    "NVIDIA H800": "h800_sxm",
    "NVIDIA H20": "h20_sxm",
    "NVIDIA A100-SXM4-80GB": "a100_sxm_80gb",
    "NVIDIA A800-SXM4-80GB": "a800_sxm",
    "NVIDIA B200": "b200_sxm",
    "NVIDIA GB200": "gb200",
    "NVIDIA GB300": "gb300",
    "NVIDIA L40S": "l40s",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx_pro_6000",
    "NVIDIA GeForce RTX 4090": "rtx_4090",
}


@pytest.mark.parametrize("name", NAMES)
def test_sheets_are_whole(name: str) -> None:
    sheet = load_hardware(name)
    assert sheet.name == name
    assert all(len(text) > 3 for text in sheet.sources.values())
    assert sheet.gpus_per_domain >= sheet.gpus_per_node
    peaks = sheet.peak_tflops
    assert peaks["bf16"] <= min(peaks.get(d, 1e9) for d in ("fp8", "fp4"))
    if sheet.kind == "gpu":
        assert sheet.inter_node is not None
        assert sheet.inter_node.bandwidth_gb_s < sheet.intra_node.bandwidth_gb_s
        assert sheet.memory_gb is not None


def test_the_sheets_that_the_issues_name() -> None:
    assert sorted(["cpu", "cpu_amx", *TORCH_NAMES.values()]) == NAMES
    assert load_hardware("cpu").memory_gb is None


@pytest.mark.parametrize("torch_name", sorted(TORCH_NAMES))
def test_torch_s_names_lead_to_the_sheets(torch_name: str) -> None:
    assert load_hardware(torch_name).name == TORCH_NAMES[torch_name]
    assert load_hardware(torch_name.upper()).name == TORCH_NAMES[torch_name]


def test_aliases_belong_to_one_sheet() -> None:
    aliases = [alias for name in NAMES for alias in load_hardware(name).aliases]
    assert len(aliases) == len(set(aliases))


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        load_hardware("h100-sxm")
    assert str(caught.value) == (
        f"hardware: unknown 'h100-sxm'; did you mean 'h100_sxm'? (known: {', '.join(NAMES)})"
    )


def test_a_sheet_of_one_s_own(tmp_path: Path) -> None:
    raw = yaml.safe_load((SHEETS / "h100_sxm.yaml").read_text())
    raw |= {"name": "h100_64gb", "memory_gb": 68.0}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw))
    sheet = load_hardware("mine.yaml", tmp_path)
    assert (sheet.name, sheet.memory_gb) == ("h100_64gb", 68.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sms": 0}, "sms: Input should be greater than or equal to 1"),
        ({"kind": "tpu"}, "kind: Input should be 'gpu' or 'cpu'"),
        (
            {"memory": 80},
            "unknown key memory; did you mean 'memory_gb'? (known: aliases, gpus_per_domain, "
            "gpus_per_node, inter_node, intra_node, kind, l2_mb, memory_bandwidth_gb_s, "
            "memory_gb, name, peak_tflops, sms, sources)",
        ),
        ({"sources": {"sms": "a book"}}, "Value error, no source for gpus_per_domain, "),
        ({"inter_node": None}, "Value error, sources of what is not there: inter_node"),
    ],
)
def test_faults_of_a_sheet(tmp_path: Path, change: dict[str, object], message: str) -> None:
    raw = yaml.safe_load((SHEETS / "h100_sxm.yaml").read_text()) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as caught:
        load_hardware("mine.yaml", tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not YAML: while parsing a flow"),
        ("- h100", "expected keys such as name and memory_gb"),
        (None, "no such hardware sheet"),
    ],
)
def test_faults_of_a_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_hardware("mine.yaml", tmp_path)
    assert str(caught.value).startswith(f"{path}: {message}")
