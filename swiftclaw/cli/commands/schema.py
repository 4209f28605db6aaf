"""`swiftclaw schema`: the JSON schema of cluster.yaml, for editors."""

from __future__ import annotations

import click


@click.command()
def schema() -> None:
    """Print the JSON schema of cluster.yaml.

    Editors complete and check the file with it. Write it beside cluster.yaml and name it in the first line of that file:

    \b
        swiftclaw schema > cluster.schema.json
        # yaml-language-server: $schema=cluster.schema.json
    """
    from cluster.config.schema import document

    click.echo(document(), nl=False)
