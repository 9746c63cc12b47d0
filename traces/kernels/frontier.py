"""FlashInfer attention, linear layers and MoE on H800 and A800, as Frontier profiled them (MIT).

``<gpu>/<model>/{attention,linear_op,mlp,moe}*.csv``, milliseconds, medians over the calls.
"""

from __future__ import annotations

from pathlib import Path

from traces.errors import TraceError
from traces.kernels.base import Reading, Selection, joined, kernel_rows
from traces.kernels.frontier_attention import attention
from traces.kernels.frontier_layers import linear, moe

GPUS = {"a800": "a800_sxm", "h800": "h800_sxm"}  # folder -> hardware sheet
KINDS = {"attention*.csv": attention, "linear_op*.csv": linear, "mlp*.csv": linear, "moe*.csv": moe}
LEFT_OUT = (
    "attn_input_reshape, attn_output_reshape: views, nothing runs on the device",
    "attn_pre_proj of models with QK norm or an output gate: not one GEMM",
    "mtp_fusion_proj: its sharding is not recorded",
)


class Frontier:
    """The version of the profiled engine is not recorded; ``backend`` is the kernel library."""

    name = "frontier"
    licence = "MIT"

    def read(self, path: Path, wanted: Selection) -> Reading:
        reading = Reading(joined([]), [], left_out=list(LEFT_OUT))
        tables = []
        for gpu, sheet in GPUS.items():
            if wanted.gpu not in (None, sheet):
                continue
            common = {"device": sheet, "engine": self.name, "engine_version": "unrecorded"}
            for pattern, mapped in KINDS.items():
                for file in sorted((path / gpu).rglob(pattern)):
                    where = file.relative_to(path).as_posix()
                    profile, columns = mapped(file)
                    reading.files.append(file)
                    tables += [kernel_rows({**common, **c}, len(c["duration_s"])) for c in columns]
                    if profile.copies:
                        reading.dropped[f"{where}: copies of another row"] += profile.copies
                    if profile.overruled:
                        reading.remarks.append(
                            f"{where}: {profile.overruled} rows not marked as kernel times are"
                        )
        if not reading.files:
            raise TraceError(f"{path}: no <gpu>/<model>/*.csv with a gpu of {', '.join(GPUS)}")
        reading.table = joined(tables)
        return reading
