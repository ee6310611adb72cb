"""OnceEdit (arXiv 2506.00817, ACL 2025): edit a small plug-in once and ensemble it with any target model at decoding time."""

from methods.onceedit.editor import OnceEdit
from methods.onceedit.hparams import OnceEditHparams

__all__ = ["OnceEdit", "OnceEditHparams"]
