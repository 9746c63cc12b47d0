"""Processes of a Ray cluster, or of Ray on this machine; needs the extra ``ray``.

Each node needs this package; the deployment's files travel with the sweep.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from replay.whatif.backends.base import TRIES, Make, Outcome, answer
from traces.errors import ConfigError

IN_FLIGHT_PER_CPU = 4  # tasks handed to Ray before the first comes back


def answer_in_ray(token: str, box: Sequence[Any], task: Any) -> Any:
    """Answer a task in a process of Ray; what is in the box is fetched once a process."""
    ray = importlib.import_module("ray")
    return answer(token, lambda: ray.get(box[0])(), task)


class Ray:
    """Tasks of a Ray cluster at ``address``, without one ``jobs`` processes started here."""

    def __init__(self, jobs: int, address: str | None) -> None:
        try:
            self._ray = importlib.import_module("ray")
        except ImportError:
            raise ConfigError(
                "--backend ray: Ray is not installed: pip install 'frontier-replay[ray]'"
            ) from None
        self._jobs, self._address = jobs, address

    @contextmanager
    def open(self, make: Make) -> Iterator[None]:
        """See ``Backend``. Raises ConfigError if the cluster cannot be reached."""
        ray = self._ray
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._address is None:
            how |= {"num_cpus": self._jobs, "include_dashboard": False}
        try:
            ray.init(address=self._address, **how)
        except (ConnectionError, ValueError, RuntimeError) as error:
            what = " ".join(str(error).split())
            raise ConfigError(f"--address {self._address}: {what}") from None
        try:
            self._remote = ray.remote(max_retries=TRIES)(answer_in_ray)
            self._box, self._token = [ray.put(make)], uuid.uuid4().hex
            self._window = int(ray.cluster_resources().get("CPU", 1)) * IN_FLIGHT_PER_CPU
            yield
        finally:
            ray.shutdown()

    def run(self, tasks: Sequence[Any]) -> Iterator[Outcome]:
        """See ``Backend``."""
        ray = self._ray
        left = iter(range(len(tasks)))
        under_way: dict[Any, int] = {}
        while True:
            for index in left:
                under_way[self._remote.remote(self._token, self._box, tasks[index])] = index
                if len(under_way) >= self._window:
                    break
            if not under_way:
                return
            done, _ = ray.wait(list(under_way), num_returns=1)
            for reference in done:
                index = under_way.pop(reference)
                try:
                    yield Outcome(index, ray.get(reference))
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                    yield Outcome(index, died=f"its process died {TRIES + 1} times")
