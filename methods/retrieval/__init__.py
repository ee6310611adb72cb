"""Retrieval and IKE: a memory of edits, which are put before prompts that resemble them."""

from methods.retrieval.editor import Ike, IkeHparams, Retrieval, RetrievalHparams

__all__ = ["Ike", "IkeHparams", "Retrieval", "RetrievalHparams"]
