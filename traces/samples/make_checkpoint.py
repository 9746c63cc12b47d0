"""Save a small random checkpoint that vLLM loads like any other; needs transformers.

    python make_checkpoint.py dense|moe DIRECTORY [--layers N]

No hub is asked. Expert skew: a router picks by the largest logits, so scaling its whole
weight changes nothing; each expert's row gets a log-normal factor of its own instead, which
makes some experts' logits spread wider and win more often.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

ROW_SIGMA = 0.35
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
}


def make_checkpoint(kind: str, directory: Path, layers: int, seed: int = 0) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a ``dense`` or ``moe`` model."""
    torch.manual_seed(seed)
    if kind == "moe":
        config = Qwen3MoeConfig(**SHAPE, **EXPERTS, num_hidden_layers=layers)
    else:
        config = Qwen3Config(**SHAPE, num_hidden_layers=layers)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            weight.data *= torch.exp(ROW_SIGMA * torch.randn(weight.shape[0], 1))
    model.save_pretrained(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("dense", "moe"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    given = parser.parse_args()
    make_checkpoint(given.kind, given.directory, given.layers)
