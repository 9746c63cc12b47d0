"""What a collective takes over the links of a hardware sheet: bandwidth and latency.

A rank of n sends or receives (n - 1) / n of its larger buffer, an all-reduce twice that
(ring; Thakur, Rabenseifner and Gropp, IJHPCA 19(1), 2005). Ranks on several nodes go about
it in two stages (NCCL's hierarchical rings): between nodes every rank moves its share of
the buffer over its own inter-node link, within the node the rest. An all-to-all moves
both at once; a send is one way, over one link.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.hardware import DeviceLink, Hardware
from simulator.step_time.layers import Call
from traces.errors import ConfigError

Floats = npt.NDArray[np.float64]


def nodes_of(call: Call, hardware: Hardware) -> int:
    """Nodes (domains of ``intra_node``) that a collective's ranks spread over."""
    if call.family == "send_recv":  # from device span - 1 to the next one
        return 1 + (call.span > 0 and call.span % hardware.gpus_per_domain == 0)
    spread = -(-(call.span or call.shape["ranks"]) // hardware.gpus_per_domain)
    return min(call.shape["ranks"], spread)


def link_seconds(call: Call, size: Floats, hardware: Hardware) -> Floats:
    """Seconds of a collective whose larger buffer has ``size`` bytes.

    Raises ConfigError if it needs a link between nodes that the sheet does not have.
    """
    ranks, nodes = call.shape["ranks"], nodes_of(call, hardware)
    if nodes > 1 and hardware.inter_node is None:
        raise ConfigError(
            f"hardware {hardware.name}: no inter_node link, but {call.layer} of {ranks} ranks "
            f"spreads over {nodes} nodes of {hardware.gpus_per_domain}"
        )
    inner = -(-ranks // nodes)
    within, between = size * (inner - 1) / inner, size / inner * (nodes - 1) / nodes
    if call.family == "send_recv":
        within, between = size * (nodes == 1), size * (nodes > 1)
    elif call.family == "all_reduce":
        within, between = 2 * within, 2 * between
    elif call.family == "all_to_all":
        within, between = size * (inner - 1) / ranks, size * (ranks - inner) / ranks
    intra = _over(hardware.intra_node, within) if inner > 1 else np.zeros(len(size))
    if hardware.inter_node is None or nodes == 1:
        return intra
    inter = _over(hardware.inter_node, between)
    return np.maximum(intra, inter) if call.family == "all_to_all" else intra + inter


def _over(link: DeviceLink, size: Floats) -> Floats:
    seconds: Floats = size / (link.bandwidth_gb_s * 1e9) + link.latency_us * 1e-6
    return seconds
