"""`recsys plan`: how many machines a service needs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def plan_command(
    items: Annotated[int, typer.Option(min=1, help="Items of the catalogue.")],
    users: Annotated[int, typer.Option(min=1, help="Users that the store knows.")],
    requests_per_second: Annotated[float, typer.Option(min=0.001, max=1e9, help="Lists a second, at the peak.")],
    events_per_second: Annotated[float, typer.Option(min=0, max=1e9, help="Events a second, at the peak.")] = 0.0,
    p99_ms: Annotated[float, typer.Option(min=1, help="Within which 99 % of the answers come, network aside.")] = 200.0,
    history: Annotated[int, typer.Option(min=1, help="Events kept of a user, on the average.")] = 50,
    dim: Annotated[int, typer.Option(min=1, help="Components of an item's vector.")] = 384,
    fusion: Annotated[bool, typer.Option(help="Fused lists, or those of the generator alone.")] = True,
    cores: Annotated[int, typer.Option(min=1, help="Of a machine.")] = 16,
    memory_gib: Annotated[float, typer.Option(min=1, help="Of a machine.")] = 64.0,
    shard_gib: Annotated[float, typer.Option(min=1, help="Of a shard of the store, at most.")] = 32.0,
    spare: Annotated[int, typer.Option(min=0, help="Machines that may fail without harm.")] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """How many machines, how much memory and network a service needs, by costs that were measured on one core.

    What was measured, and how far the model is from it, is in benchmarks/results/sizing.json; `recsys bench sizing`
    measures again on your machine.
    """
    from serving.sizing.costs import measured
    from serving.sizing.plan import Needs, plan

    needs = Needs(
        items=items,
        users=users,
        requests_per_second=requests_per_second,
        events_per_second=events_per_second,
        p99_ms=p99_ms,
        history=history,
        dim=dim,
        fusion=fusion,
        cores=cores,
        memory_gib=memory_gib,
        shard_gib=shard_gib,
        spare=spare,
    )
    costs = measured()
    found = plan(needs, costs)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in (
        ("API machines", f"{found.machines}, {spare} of them spare, of {cores} cores and {memory_gib:g} GiB"),
        ("  workers on each", f"{found.workers_per_machine} ({found.workers} in all)"),
        ("  memory used on each", f"{found.machine_gib:.1f} GiB"),
        ("  an answer", f"{found.answer_cpu_ms:.1f} ms of a core; {100 * found.load:.0f} % of saturation at the peak"),
        ("store", f"shards: {found.store_shards}, memory: {found.store_gib:.1f} GiB, once more for each replica"),
        ("writer of the offline store", f"{found.offline_writer_cores:.2f} cores"),
        ("offline store", f"{found.offline_gib_per_day:.1f} GiB a day"),
        ("network out of the API", f"{found.network_mbit_per_second:.0f} Mbit/s"),
    ):
        table.add_row(name, value)
    Console().print(table)
    typer.echo(f"Costs were measured on: {costs.cpu}. Training and GPUs are not part of it.")
