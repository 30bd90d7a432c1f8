"""`recsys recommend` and `recsys embed`: lists for every user, and vectors of items, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from training.output import print_document, results_only_stdout

BundleName = Annotated[str, typer.Argument(metavar="BUNDLE_OR_RUN", help="A bundle, a run, or the name of a run.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the Parquet files.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, each with a model in memory.")]
EngineName = Annotated[
    Literal["local", "ray"], typer.Option(help="Who runs them; ray: the cluster of RAY_ADDRESS, or this machine.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def recommend(
    bundle: BundleName,
    out: Out,
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
    workers: Workers = 1,
    engine: EngineName = "local",
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the generator computes; cuda: on the first GPU.")
    ] = "cpu",
    as_json: AsJson = False,
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
    _print_made(document, out, "lists", "users")
    if document["num_popular"]:
        typer.echo(
            f"{document['num_popular']:,} users have no item of the catalogue: theirs are the most popular items"
        )
    if document["num_unknown"]:
        typer.echo(f"{document['num_unknown']:,} entries of histories are no items of the catalogue: left out")


def embed(
    bundle: BundleName,
    out: Out,
    items: Annotated[
        str | None,
        typer.Option(
            metavar="PARQUET",
            help="What to embed: item_id and the columns of text that the bundle's encoder reads (null where unknown), "
            "as a file, a folder or a URL such as s3://bucket/items/; without, the catalogue of the bundle.",
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Items of a file.")] = 100_000,
    workers: Workers = 1,
    engine: EngineName = "local",
    as_json: AsJson = False,
) -> None:
    """Write vectors and semantic IDs of items: Parquet files in OUT, complete when OUT/_SUCCESS is there.

    Items of the bundle have its own. Others have vectors by their text and the codes nearest to these, which may
    collide. Started again after a kill it goes on; files that are finished are kept. For example: recsys embed
    quickstart vectors --items s3://bucket/items/
    """
    from training.batch.run import run_job
    from training.batch.vectors import plan_vectors
    from training.results import find_bundle

    with results_only_stdout() as stdout:
        job = plan_vectors(find_bundle(bundle), out, items=items, shard_size=shard_size)
        document = run_job(job, engine=engine, workers=workers)
        if as_json:
            print_document(stdout, document)
    if as_json:
        return
    _print_made(document, out, "vectors", "items")
    if new := document["num_items"] - document["num_known"]:
        typer.echo(f"{new:,} items are not in the bundle: their codes are the nearest ones, and may collide")
    if document["num_without_text"]:
        typer.echo(f"{document['num_without_text']:,} of those have no text: their vectors say nothing")


def _print_made(document: dict[str, Any], out: Path, what: str, unit: str) -> None:
    typer.echo(f"{document[f'num_{unit}']:,} {what} in {document['num_shards']:,} files of {out}")
    if document["kept_shards"]:
        typer.echo(f"{document['kept_shards']:,} files were there already")
    if document["made_shards"]:
        typer.echo(
            f"{document[f'made_{unit}']:,} {what} made in {document['seconds']:,.1f} s, "
            f"{document[f'{unit}_per_second']:,.1f} a second"
        )
