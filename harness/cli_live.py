"""Commands on the edited model of a cell: export, ask, chat and serve."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli_shared import CellArgument, PluginOption, StoreOption, positive_int
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.live.model import LiveModel
    from harness.plan.cell import Cell

app = typer.Typer()

ChatTemplate = Literal["auto", "chat", "none"]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")]
LengthOption = Annotated[
    int, typer.Option("--max-tokens", parser=positive_int, metavar="N", help="Maximum answer length in tokens.")
]


@app.command()
def export(
    cell: CellArgument,
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to create.")],
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Write a cell's edited model to a folder that plain transformers or `harness.load_edited` loads."""
    from harness.live.export import export as write
    from harness.live.export import require_new
    from harness.live.opening import check

    require_new(to)
    with _opened(cell, store, device) as (live, found):
        checked = check(live, found, store)
        remarks = () if checked.is_same else (f"when it was exported, {checked}",)
        written = write(live, to, remarks)
    for line in (str(checked), *(f"note: {remark}" for remark in written.remarks)):
        print(line)
    with_what = "transformers or harness.load_edited" if written.kind == "checkpoint" else "harness.load_edited"
    print(f"wrote {to} ({written.size_bytes / 1e6:,.0f} MB), for {with_what}; see {to / 'README.md'}")
    return 0


@app.command()
def ask(
    cell: CellArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text that the models continue.")],
    *,
    template: Annotated[
        ChatTemplate, typer.Option(help="`chat`: as a message, by the model's chat template.")
    ] = "none",
    max_tokens: LengthOption = 32,
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Show what the unedited and the edited model of a cell answer to a prompt."""
    from harness.live.talk import SideBySide

    with _opened(cell, store, device) as (live, _):
        SideBySide(live, template, max_tokens).ask(prompt, _write)
    return 0


@app.command()
def chat(
    cell: CellArgument,
    *,
    template: Annotated[ChatTemplate, typer.Option(help="`auto`: the model's chat template if it has one.")] = "auto",
    max_tokens: LengthOption = 128,
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Talk to the unedited and the edited model of a cell, line by line until the end of the input."""
    from harness.live.talk import talk

    def lines() -> Iterator[str]:
        with contextlib.suppress(EOFError):
            while True:
                yield input("> " if sys.stdin.isatty() else "")

    with _opened(cell, store, device) as (live, _):
        talk(live, lines(), template, max_tokens, _write)
    return 0


@app.command()
def serve(
    cell: CellArgument,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="Port to listen on.")] = 8000,
    max_tokens: LengthOption = 256,
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Serve the edited and the unedited model of a cell with an OpenAI-compatible API."""
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"`harness serve` needs {' and '.join(missing)}", fix="pip install 'editing-harness[serve]'")
    import uvicorn

    from harness.live.server import application, listening

    with listening(host, port) as socket, _opened(cell, store, device) as (live, found):
        print(f"serving '{found.folder}' and 'unedited' on http://{host}:{port}/v1 until Ctrl-C")
        app = application(live, found.folder, max_tokens)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[socket])
    return 0


@contextlib.contextmanager
def _opened(cell: str, store: Path, device: str) -> "Iterator[tuple[LiveModel, Cell]]":
    """The edited model of a cell inside the body; messages about it go to standard error."""
    from rich.console import Console

    from harness import examine
    from harness.live.opening import device_of, open_cell
    from harness.plan.recall import recalled
    from harness.run.progress import Display
    from harness.store.store import Store

    kept, console = Store(store), Console(stderr=True)
    found = recalled(examine.find_cell(kept, cell))
    with Display(console) as display:
        live = open_cell(found, kept, device_of(device), display)
    try:
        yield live, found
    finally:
        live.revert()


def _write(text: str) -> None:
    """Print a part of a line at once."""
    print(text, end="", flush=True)
