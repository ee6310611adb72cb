"""An edited model for interactive use: it answers next to the unedited one, and can be saved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.api import EditedModel, Ends, State, TokenScore
from harness.live.text import Reply, continued
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.records import EditRequest
from harness.registry import MethodSpec
from harness.tokens import Query


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an edited model comes from.

    Attributes:
        method: the spec of its method; `backend` is whose implementation.
        hparams: decided values of all hyper-parameters, JSON-like.
        model: the unedited model.
        requests: its edits, in order.
        seed: of the cell.
        artifacts: folders of what the method needed, by role.
        place: the folder that it was opened from.
        facts: what else is known: the cell's id, scores, who computed it. JSON-like.
        code: of the method, as far as it is not this project's (`harness.registry.code_of`). JSON-like.
    """

    method: MethodSpec
    backend: str
    hparams: Mapping[str, Any]
    model: ModelRef
    requests: tuple[EditRequest, ...]
    seed: int
    artifacts: Mapping[str, Path]
    place: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Method, model and number of edits."""
        return f"{self.method.title} on {self.model.title}, {len(self.requests)} edits"


class LiveModel(EditedModel):
    """An edited model, ready to be asked.

    Attributes:
        model: the loaded model with its tokenizer; unedited between calls, unless it comes from an exported checkpoint.
        edited: what answers.
        unedited: the same model without its edits; None if only the edited weights are here.
        origin: where it comes from.
    """

    def __init__(
        self,
        model: LoadedModel,
        edited: EditedModel,
        unedited: EditedModel | None,
        origin: Origin,
        on_revert: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.edited, self.unedited, self.origin = model, edited, unedited, origin
        self._on_revert = on_revert

    def answer(self, prompt: str, max_tokens: int = 32, stop: Sequence[str] = ("\n",)) -> str:
        """The edited model's greedy continuation of a prompt, up to the end of text or one of `stop`."""
        return self.reply(self.edited, prompt, max_tokens, stop).text

    def compare(self, prompt: str, max_tokens: int = 32, stop: Sequence[str] = ("\n",)) -> dict[str, str]:
        """The continuations of a prompt by the `unedited` and the `edited` model."""
        sides = {"unedited": self.unedited, "edited": self.edited}
        return {
            name: self.reply(side, prompt, max_tokens, stop).text for name, side in sides.items() if side is not None
        }

    def reply(
        self,
        side: EditedModel,
        prompt: str,
        max_tokens: int = 32,
        stop: Sequence[str] = ("\n",),
        write: Callable[[str], None] | None = None,
    ) -> Reply:
        """One side's continuation of a prompt.

        Args:
            side: `edited` or `unedited`.
            prompt: the text.
            max_tokens: longest answer in tokens.
            stop: texts before which the answer ends.
            write: gets each new part of the answer as it is written.

        Raises:
            UserError: if the prompt leaves no room for an answer.
        """
        return continued(side, self.model, prompt, max_tokens, stop, write)

    def routing(self, prompt: str) -> float | None:
        """The routing score of a prompt in [0, 1], 1 for in scope of an edit (OnceEdit's α); None if the method has none."""
        from harness.tokens import open_query

        scopes = self.edited.scope([open_query(self.model.tokenizer, prompt, 1)])
        return scopes[0] if scopes else None

    def save(self, folder: Path | str) -> Path:
        """Write the edited model to a new folder, from which `harness.load_edited` loads it again.

        Raises:
            UserError: if the folder exists and is not empty, or the method cannot be exported.
        """
        from harness.live.export import export

        return export(self, Path(folder)).folder

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """As the edited model."""
        return self.edited.teacher_forced(queries)

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """As the edited model."""
        return self.edited.generate(queries)

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """As the edited model."""
        return self.edited.generate_until(queries, ends)

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """As the edited model."""
        return self.edited.score(queries, reads_targets=reads_targets)

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """As the edited model."""
        return self.edited.scope(queries)

    def diagnostics(self) -> Mapping[str, float]:
        """As the edited model."""
        return self.edited.diagnostics()

    def remarks(self) -> Sequence[str]:
        """As the edited model."""
        return self.edited.remarks()

    def state(self) -> State:
        """As the edited model."""
        return self.edited.state()

    def revert(self) -> None:
        """Restore the unedited model; using this object afterwards is an error."""
        if self._on_revert is not None:
            self._on_revert()
        self._on_revert = None
