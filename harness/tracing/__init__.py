"""ROME's causal tracing: which hidden states carry a fact from its subject to the model's answer (Meng et al. 2022, §2)."""
