"""Transformers: a tiny BERT classifies sentences by their first word, with fused and with plain attention.

    pip install -e '.[examples]' && python examples/transformers_bert.py

The model is made from a configuration: nothing is downloaded.  The loop is your own, since
`transformers.Trainer` calls `step()` without a closure.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from ahf_cli import HessianFree

WORDS, STEPS = 20, 12

if __name__ == "__main__":
    torch.manual_seed(0)
    ids = torch.randint(1, WORDS, (64, 8))
    labels = ids[:, 0] % 2
    for attention in ("sdpa", "eager"):
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
        model = BertForSequenceClassification(config)
        model.set_attn_implementation(attention)
        optimizer = HessianFree(model.parameters(), damping=0.1, max_iterations=30)

        def closure(model: nn.Module = model) -> tuple[Tensor, Tensor]:
            """Return the loss and the logits, with which B is the Gauss-Newton matrix."""
            found = model(ids, labels=labels)
            return found.loss, found.logits

        for step in range(STEPS):
            loss = float(optimizer.step(closure))
            if step in (0, 5, STEPS - 1):
                print(f"{attention}, step {step:2d}: loss {loss:.4f}")
