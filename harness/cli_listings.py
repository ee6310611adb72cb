"""Commands about what is available: list, schema and doctor."""

import json
from typing import Annotated, get_args

import typer

from harness import inventory
from harness.cli_shared import PluginOption, new_console, print_table

app = typer.Typer()


@app.command("list")
def list_(
    kind: Annotated[
        inventory.Kind, typer.Argument(metavar="KIND", show_choices=False, help=", ".join(get_args(inventory.Kind)))
    ],
    plugin: PluginOption = None,
) -> int:
    """List the available names of a kind."""
    columns, rows = inventory.LISTINGS[kind]
    print_table(columns, rows())
    return 0


@app.command()
def hparams(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Method, as in a suite.")],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Short name of a model (`harness list models`).")
    ] = "llama2-7b",
    *,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="Named set of values.")] = None,
    plugin: PluginOption = None,
) -> int:
    """Show a method's hyper-parameters for a model, where each value comes from, and the method's variants."""
    from harness.suite.hparams import resolve

    found = resolve(method, model, {}, variant=variant)
    rows = [(key, json.dumps(value), found.sources[key]) for key, value in found.values.items()]
    print_table(("option", "value", "source"), rows)
    if found.variants:
        print(f"variants: {', '.join(found.variants)}")
    return 0


@app.command()
def schema() -> int:
    """Print the JSON Schema of suite files."""
    from harness.suite import suite_json_schema

    print(json.dumps(suite_json_schema(), indent=2))
    return 0


@app.command()
def doctor(plugin: PluginOption = None) -> int:
    """Check what is installed (✓), what is optional and absent (–), and what has to be fixed (✗)."""
    from rich.markup import escape

    console = new_console()
    for finding in inventory.findings():
        missing = "[yellow]–[/yellow]" if finding.is_optional else "[red]✗[/red]"
        mark = "[green]✓[/green]" if finding.is_present else missing
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}", highlight=False, soft_wrap=True)
    return 0
