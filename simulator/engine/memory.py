"""The memory of the engines: arrays that Python owns and compiled code works on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import NEVER
from simulator.engine.kv import ORPHAN
from simulator.engine.layout import (
    NONE,
    Block,
    Finish,
    Load,
    Number,
    Replica,
    Row,
    Shape,
    Stage,
    Step,
    World,
)  # fmt: skip
from simulator.engine.records import Record
from simulator.scheduling.config import SchedulerConfig
from traces.errors import InvariantError

Records = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
FINISHED_ROOM = 4096  # finished requests kept until Python looks, beyond those of one step


class Memory:
    """Engines of one configuration, with nothing to do.

    ``contents`` is how many different blocks can be shared; ``model`` the address of the
    step-time model. Pages that are never written cost nothing: blocks, places and contents
    have room for the worst case.
    """

    def __init__(
        self, config: SchedulerConfig, replicas: int, *, contents: int, model: int = 0,
        frontend_ps: int = 0, loads_late: bool = False,
    ) -> None:  # fmt: skip
        self._kept: dict[str, Records] = {}
        self.world = np.zeros(1, World.dtype)
        self.replicas = np.zeros(replicas, Replica.dtype)
        self.seats = np.zeros((replicas, config.max_num_seqs), Number.dtype)
        slots = max(2, config.max_concurrent_batches)
        self.steps = np.zeros((replicas, slots), Step.dtype)
        self.rows = np.zeros((replicas, slots, config.max_num_seqs), Row.dtype)
        self.preempted = np.zeros((replicas, slots, 2 * config.max_num_seqs), Number.dtype)
        self.stages = np.zeros((replicas, len(config.stage_layers)), Stage.dtype)
        self.stages["layers"] = config.stage_layers
        room = FINISHED_ROOM + config.max_num_seqs * config.lock_step_ranks
        self.finished = np.zeros(room, Finish.dtype)
        self.shapes = np.zeros((replicas, 1), Shape.dtype)
        # a load takes a block at least
        loads = config.num_gpu_blocks * config.lock_step_ranks if config.kv_role else 0
        self.begun = np.zeros(loads, Load.dtype)
        self._lay_out_replicas(config, contents)
        self.steps["rows_at"] = _addresses(self.rows)
        self.steps["preempted_at"] = _addresses(self.preempted)
        self._set_up_world(config, model, frontend_ps)
        self.world["loads_late"] = loads_late
        self.address: int = self.world.ctypes.data

    def point(self, field: str, array: Records, room: str = "") -> None:
        """Let a field of the world be the address of an array, kept alive until replaced."""
        self._kept[field] = array
        self.world[field] = array.ctypes.data
        if room:
            self.world[room] = len(array)

    def make_room(self, contents: int) -> None:
        """Room for so many different contents of shared blocks."""
        before = self._kept["holders_at"]
        if contents <= before.shape[1]:
            return
        array = np.zeros((len(before), 2 * contents), before.dtype)
        array[:, : before.shape[1]] = before
        self._kept["holders_at"] = array
        self.replicas["holders_at"] = _addresses(array)

    def check(self, replica: int, requests: Records) -> None:
        """Raise InvariantError unless a replica's KV blocks add up; ``requests`` are all of its.

        None of them may be in a quiet stretch.
        """
        state = self.replicas[replica]
        places = np.arange(state["queue_first"], state["queue_end"]) % self.places
        queue = self._kept["queue_at"][replica, places]["value"]
        left = requests["left"][~queue[(queue > ORPHAN) & (queue < 0)]]
        cached = int(((queue >= 0) | (queue == ORPHAN)).sum() + left.sum())
        own = int((requests["held"] - requests["hit"]).sum())
        shared = int((self._kept["blocks_at"][replica]["references"] > 0).sum())
        free = int(state["blanks"]) + cached
        blocks = self._kept["blocks_at"].shape[1] - 1
        if free != state["free_blocks"] or own + shared + free != blocks or (left < 1).any():
            raise InvariantError(
                f"KV blocks leaked: {own} own + {shared} shared + {free} free of {blocks} "
                f"(counted free: {state['free_blocks']})"
            )

    def _lay_out_replicas(self, config: SchedulerConfig, contents: int) -> None:
        replicas, count = self.replicas, len(self.replicas)
        blocks = config.num_gpu_blocks
        self.places = 1 << (2 * blocks - 1).bit_length()
        for field, size, record in (
            ("phase_at", config.block_size, Number),
            ("blocks_at", blocks, Block),
            ("holders_at", contents, Number),
            ("queue_at", self.places, Number),
        ):  # fmt: skip
            array = np.zeros((count, size), record.dtype)
            self._kept[field] = array
            replicas[field] = _addresses(array)
        replicas["running_at"] = _addresses(self.seats)
        replicas["steps_at"] = _addresses(self.steps)
        replicas["shape_at"] = _addresses(self.shapes)
        replicas["stages_at"] = _addresses(self.stages)
        replicas["index"] = np.arange(count)
        replicas["next_ps"] = NEVER
        for name in (
            "inbox_first", "inbox_last", "waiting_first", "waiting_last", "holding_last",
            "deferred_first", "deferred_last",
        ):  # fmt: skip
            replicas[name] = NONE
        replicas["free_blocks"] = replicas["blanks"] = blocks - 1
        replicas["blocks_used"] = 1  # the null block

    def _set_up_world(self, config: SchedulerConfig, model: int, frontend_ps: int) -> None:
        leaves = max(2, 1 << (len(self.replicas) - 1).bit_length())
        winners = np.full(2 * leaves, NONE, np.int32)
        winners[leaves : leaves + len(self.replicas)] = self.replicas["index"]
        for node in range(leaves - 1, 0, -1):  # nobody has an event: the first replica wins
            winners[node] = winners[2 * node]
        self.point("winners_at", winners)
        self.point("replicas_at", self.replicas)
        self.point("finished_at", self.finished, "finished_room")
        self.point("begun_at", self.begun)
        settings = {
            "model_at": model,
            "leaves": leaves,
            "queue_places": self.places,
            "block_size": config.block_size,
            "max_batched_tokens": config.max_num_batched_tokens,
            "max_seqs": config.max_num_seqs,
            "max_model_len": config.max_model_len,
            "chunked_prefill": config.enable_chunked_prefill,
            "caching": config.enable_prefix_caching,
            "long_prefill": config.long_prefill_token_threshold,
            "adaptive_long_prefill": config.long_prefill_token_threshold_adaptive,
            "by_priority": config.scheduling_policy == "priority",
            "depth": config.max_concurrent_batches,
            "slots": self.steps.shape[1],
            "asynchronous": config.async_scheduling,
            "stages": len(config.stage_layers),
            "layers": sum(config.stage_layers),
            "reserve_full": config.scheduler_reserve_full_isl,
            "watermark_blocks": int(config.watermark * config.num_gpu_blocks),
            "frontend_ps": frontend_ps,
            "ranks": config.lock_step_ranks,
            "sync_interval": config.dp_sync_interval,
            "drops_stale": config.drops_stale_tokens,
            "defers_frees": config.defers_frees,
            "dbo_decode": config.dbo_decode_token_threshold,
            "dbo_prefill": config.dbo_prefill_token_threshold,
        }
        for name, value in settings.items():
            self.world[name] = value


def _addresses(array: Records) -> Ints:
    """Address of each part along all axes of ``array`` but the last."""
    outer = array.shape[:-1]
    starts = np.arange(int(np.prod(outer)), dtype=np.int64).reshape(outer)
    addresses: Ints = array.ctypes.data + starts * array.shape[-1] * array.dtype.itemsize
    return addresses


def ints_of(records: Records) -> memoryview:
    """64-bit records as a flat view of numbers: reading one costs what a list's item does."""
    return memoryview(records.view(np.int64)).cast("B").cast("q")


def place_of(record: type[Record], field: str) -> int:
    """Position of a field among the 64-bit numbers of a record."""
    assert record.dtype.fields is not None
    return record.dtype.fields[field][1] // 8
