"""`recsys recommend`: lists for every user, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from training.output import print_document, results_only_stdout


def recommend(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE_OR_RUN", help="A bundle, a run, or the name of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the Parquet files.")],
    users: Annotated[
        str | None,
        typer.Option(
            metavar="PARQUET",
            help="Whom to recommend to: user_id and item_ids (a list, oldest first), as a file, a folder or a URL such "
            "as s3://bucket/users/; without, the users of the bundle.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Length of the lists.")] = 50,
    include_seen: Annotated[
        bool, typer.Option("--include-seen/--exclude-seen", help="Whether items of the history may be listed.")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Users of a file.")] = 10_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a model in memory.")] = 1,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Who runs them; ray: the cluster of RAY_ADDRESS, or this machine.")
    ] = "local",
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the generator computes; cuda: on the first GPU.")
    ] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Recommend to every user at once, offline: Parquet files in OUT, complete when OUT/_SUCCESS is there.

    Started again after a kill it goes on; files that are finished are kept. For example: recsys recommend quickstart
    lists --k 20
    """
    from training.batch.job import plan_job
    from training.batch.run import run_job
    from training.results import find_bundle

    with results_only_stdout() as stdout:
        job = plan_job(
            find_bundle(bundle),
            out,
            histories=users,
            k=k,
            shard_size=shard_size,
            include_seen=include_seen,
            device=device,
        )
        document = run_job(job, engine=engine, workers=workers)
        if as_json:
            print_document(stdout, document)
    if as_json:
        return
    kept, made = document["kept_shards"], document["made_shards"]
    typer.echo(f"{document['num_users']:,} lists in {document['num_shards']:,} files of {out}")
    if kept:
        typer.echo(f"{kept:,} files were there already")
    if made:
        typer.echo(
            f"{document['made_users']:,} lists made in {document['seconds']:,.1f} s, "
            f"{document['users_per_second']:,.1f} a second"
        )
    if document["num_popular"]:
        typer.echo(
            f"{document['num_popular']:,} users have no item of the catalogue: theirs are the most popular items"
        )
    if document["num_unknown"]:
        typer.echo(f"{document['num_unknown']:,} entries of histories are no items of the catalogue: left out")
