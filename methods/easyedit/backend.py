"""EasyEdit as a backend: availability, findings for `harness doctor`, and its commands."""

from collections.abc import Iterator
from typing import ClassVar

from harness.api import Backend, Finding
from harness.errors import UserError
from harness.registry import register_backend
from methods.easyedit import checkout


@register_backend("easyedit")
class EasyEdit(Backend):
    """zjunlp/EasyEdit at the pinned commit, run in a separate process."""

    commands: ClassVar[str] = "methods.easyedit.commands:app"

    def is_available(self) -> bool:
        """Whether a checkout exists, at any commit; a wrong commit is rejected when the checkout is used."""
        return checkout.is_present()

    def findings(self) -> Iterator[Finding]:
        """Report on the checkout and on the modules that EasyEdit imports beyond this project's own requirements."""
        from methods.easyedit.commands import described

        try:
            yield Finding("EasyEdit", True, described(checkout.find()))
        except UserError as error:
            yield Finding("EasyEdit", False, f"only backend: native is available; {error}")
        missing = checkout.absent()
        detail = f"missing: {', '.join(missing)}; {checkout.INSTALL}" if missing else "installed"
        yield Finding("EasyEdit's requirements", not missing, detail)
