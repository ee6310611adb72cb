"""EasyEdit as a backend: whether it can run here, what `harness doctor` says about it, and where its commands are."""

from collections.abc import Iterator
from typing import ClassVar

from harness.api import Backend, Finding
from harness.errors import UserError
from harness.registry import register_backend
from methods.easyedit import checkout


@register_backend("easyedit")
class EasyEdit(Backend):
    """zjunlp/EasyEdit at the pinned commit, in a process of its own."""

    commands: ClassVar[str] = "methods.easyedit.commands:app"

    def is_available(self) -> bool:
        """Whether a checkout is found, in whatever state: one of another commit is refused when it is used."""
        return checkout.is_present()

    def findings(self) -> Iterator[Finding]:
        """The checkout, and the modules that its code imports beyond this project's own requirements."""
        from methods.easyedit.commands import described

        try:
            yield Finding("EasyEdit", True, described(checkout.find()))
        except UserError as error:
            yield Finding("EasyEdit", False, f"only backend: native; {error}")
        missing = checkout.absent()
        detail = f"without {', '.join(missing)}: {checkout.INSTALL}" if missing else "installed"
        yield Finding("EasyEdit's requirements", not missing, detail)
