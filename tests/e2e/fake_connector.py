"""A KV connector that moves nothing: it answers the scheduler as NixlConnector's pull side does."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)
from vllm.v1.request import RequestStatus


class FakeConnector(KVConnectorBase_V1, SupportsHMA):
    """``begun`` collects the requests whose load began, or whose blocks are kept."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begun: list[str] = []

    def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int, bool]:
        params = request.kv_transfer_params or {}
        count = request.num_prompt_tokens - computed
        return (count, True) if params.get("do_remote_prefill") and count > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, external: int) -> None:
        params = request.kv_transfer_params or {}
        if params.get("do_remote_prefill"):
            self.begun.append(request.request_id)
            params["do_remote_prefill"] = False

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        params = request.kv_transfer_params or {}
        if not params.get("do_remote_decode"):
            return False, None
        if request.status != RequestStatus.FINISHED_LENGTH_CAPPED:
            return False, None
        self.begun.append(request.request_id)
        return True, None

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def start_load_kv(self, forward_context: Any, **options: Any) -> None: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(self, *arguments: Any, **options: Any) -> None: ...
    def wait_for_save(self) -> None: ...
