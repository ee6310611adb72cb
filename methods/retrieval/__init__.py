"""Retrieval and IKE: the edits themselves as a memory, put in front of prompts that resemble them."""

from methods.retrieval.editor import Ike, IkeHparams, Retrieval, RetrievalHparams

__all__ = ["Ike", "IkeHparams", "Retrieval", "RetrievalHparams"]
