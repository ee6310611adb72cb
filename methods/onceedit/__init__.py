"""OnceEdit (arXiv 2506.00817, ACL 2025): edit a small plug-in once, ensemble it with any target model at decoding."""

from methods.onceedit.editor import OnceEdit
from methods.onceedit.hparams import OnceEditHparams

__all__ = ["OnceEdit", "OnceEditHparams"]
