"""Commands that make, evaluate and measure runs. The work itself is in `training.pipeline` and its stages.

Imports that load PyTorch happen inside the commands, so that `recsys --help` answers at once.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from recsys.errors import ConfigError
from recsys.progress import console
from training.ab_cli import ab, ab_power
from training.batch.cli import embed, recommend
from training.layout import BUNDLE, EVALUATE, ONNX
from training.output import print_document, results_only_stdout

app = typer.Typer()
tokenizer_app = typer.Typer(no_args_is_help=True)
app.command("ab")(ab)
app.command("ab-power")(ab_power)
app.command("recommend")(recommend)
app.command("embed")(embed)
app.add_typer(tokenizer_app, name="tokenizer", help="Look into the semantic IDs of a run.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, or its name under runs/.")]
OtherRunPath = Annotated[Path, typer.Argument(metavar="OTHER_RUN", help="The run with the other catalogue.")]


@app.command("run")
def run_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example run.seed=1 data.path=my/data.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole resolved configuration and stop.")
    ] = False,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage, for example tokenize.")
    ] = None,
) -> None:
    """Run every stage: data, encode, tokenize, train, with a fusion retrieve and fuse, evaluate, bundle.

    What is up to date is skipped; a run that was killed goes on where it was.
    """
    from training.config import config_yaml, load_config

    resolved = load_config(config, overrides or [])
    if print_config:
        typer.echo(config_yaml(resolved), nl=False)
        return
    from training.results import print_report
    from training.runs import execute

    execute(resolved, until)
    if until in (None, BUNDLE, EVALUATE):
        print_report(resolved.run_dir)


@app.command()
def demo(
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the result when it is ready.")] = True,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the API and the page.")] = 8000,
) -> None:
    """The main job on MovieLens-100K: from raw data to a page in the browser."""
    from training.config import load_config
    from training.results import print_report
    from training.runs import execute, packaged_config

    if serve:
        _check_port(port)
    config = load_config(packaged_config("quickstart"))
    execute(config)
    print_report(config.run_dir)
    if serve:
        sys.stdout.flush()
        command = [sys.executable, "-m", "recsys", "serve", str(config.run_dir / BUNDLE), "--port", str(port)]
        os.execv(sys.executable, command)


def _check_port(port: int) -> None:
    """A taken port should be known before minutes of training, not after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error


@app.command("mirror")
def mirror_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/mirror-3b.yaml.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory of adapters and report.")],
    as_json: AsJson = False,
) -> None:
    """Align a language model with how users choose, and measure how well it foretells choices of other users.

    What is up to date is skipped; a fit that was killed goes on where it was.
    """
    from training.mirror import make_mirror
    from training.mirror_report import summary
    from training.mirror_world import MirrorConfig

    settings = MirrorConfig.load(config)
    with results_only_stdout() as stdout:
        report = make_mirror(settings, output)
        if as_json:
            print_document(stdout, report)
        else:
            stdout.write("".join(f"{line}\n" for line in summary(report)))


@app.command()
def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Compare a finished run's model with the baselines; an evaluation that is up to date is only printed."""
    from training.results import find_run, print_report, read_report

    run_dir = find_run(run)
    from training.config import stored_config
    from training.runs import evaluate_run

    config = stored_config(run_dir)
    with results_only_stdout() as stdout:
        evaluate_run(config)
        if as_json:
            print_document(stdout, read_report(config.run_dir))
    if not as_json:
        print_report(config.run_dir)


@app.command()
def search(
    run: RunPath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A wish, a title, or words of one.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the list.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Items for a text, generated by a run's language model (see generator.model.lm)."""
    from training.results import find_run, print_found

    run_dir = find_run(run)
    from recsys.bundle import Bundle

    with results_only_stdout() as stdout:
        bundle = Bundle.load(run_dir / BUNDLE)
        found = bundle.recommender.search([query], k)
        items = [
            {"item_id": bundle.catalog.item_ids[item], "title": bundle.catalog.titles[item], "log_probability": score}
            for item, score in zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
            if item >= 0
        ]
        if as_json:
            print_document(stdout, {"query": query, "items": items})
    if not as_json:
        print_found(items)


@app.command()
def reason(
    run: RunPath,
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="A user of the run's data.")] = None,
    history: Annotated[
        list[str] | None, typer.Option("--item", metavar="ID", help="Instead of a user: an item, oldest first; repeat.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Length of the list.")] = 10,
    chains: Annotated[int, typer.Option(min=1, max=64, help="Reasons to write; the list follows from all.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reason, at most.")] = 160,
    seed: Annotated[int, typer.Option(help="Of the words that are drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What a run's language model recommends to a user, with the reasons that it writes first.

    The model must have been taught to reason (teach.tasks.shares.reasoning.passes above 0).
    """
    from training.results import find_run, print_found

    run_dir = find_run(run)
    from recsys.bundle import Bundle
    from recsys.generator.lm.reason import ReasonConfig
    from training.reasons import reasoned_list

    with results_only_stdout() as stdout:
        document = reasoned_list(
            Bundle.load(run_dir / BUNDLE),
            user,
            history,
            k,
            ReasonConfig(chains=chains, max_tokens=max_tokens),
            seed=seed,
        )
        if as_json:
            print_document(stdout, document)
    if not as_json:
        for number, chain in enumerate(document["chains"], start=1):
            typer.echo(f"reason {number}: {chain}")
        print_found(document["items"])


@app.command()
def simulate(
    run: RunPath,
    log: Annotated[
        str | None, typer.Option("--log", metavar="DATA", help="Users of another data set of the same items.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="A running service as one more arm.")] = None,
    key: Annotated[str | None, typer.Option("--key", envvar="RECSYS_API_KEY", help="API key of the service.")] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions of each user.")] = 1,
    size: Annotated[int, typer.Option(min=1, help="Places of a slate.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Slates of a session, at most.")] = 5,
    users: Annotated[int | None, typer.Option(min=2, help="Users who are simulated, at most.")] = None,
    kind: Annotated[str, typer.Option(help="ordinary, drifting, popularity_chaser, skimmer or adversarial.")] = (
        "ordinary"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Simulated users meet a finished run: sessions with its bundle and with popularity, in RUN/simulate.

    The users are fitted on one fifth of the log's users and play another fifth.
    """
    from training.results import find_run

    run_dir = find_run(run)
    from recsys.simulator.behaviour.stress import KINDS
    from recsys.simulator.sessions.play import PlayConfig
    from training.simulate import SimulateConfig, print_simulation, simulate_run

    if kind not in KINDS:
        raise ConfigError(f"--kind {kind!r} is not known; choose one of {', '.join(KINDS)}")
    play = PlayConfig(size=size, max_steps=steps, sessions_per_user=sessions, seed=seed)
    config = SimulateConfig.model_validate({"play": play, "users": users, "kind": kind})
    with results_only_stdout() as stdout:
        report = simulate_run(run_dir, config, log=log, url=url, key=key)
        if as_json:
            print_document(stdout, report)
    if not as_json:
        print_simulation(report)


@app.command()
def export(
    run: RunPath,
    int8: Annotated[bool, typer.Option("--int8", help="Make the weights 8-bit integers: smaller and faster.")] = False,
    max_recall_drop: Annotated[float, typer.Option(min=0, max=1, help="Allowed relative loss of Recall@10.")] = 0.02,
    max_ndcg_drop: Annotated[float, typer.Option(min=0, max=1, help="Allowed relative loss of NDCG@10.")] = 0.02,
    min_overlap: Annotated[float, typer.Option(min=0, max=1, help="Share of items both lists must have.")] = 0.95,
    cases: Annotated[int, typer.Option(min=1, help="Validation cases to compare on, at most.")] = 4000,
    as_json: AsJson = False,
) -> None:
    """Export a finished run's generator for ONNX Runtime on the CPU, to RUN/export/onnx.

    The exported form must rank the validation cases as well as the generator itself, or nothing is written.
    """
    from training.results import find_run

    run_dir = find_run(run)
    from recsys.generator.onnx import GateConfig
    from training.config import stored_config
    from training.export import export_run, print_manifest

    config = stored_config(run_dir)
    gate = GateConfig(max_recall_drop=max_recall_drop, max_ndcg_drop=max_ndcg_drop, min_overlap=min_overlap)
    with results_only_stdout() as stdout:
        manifest = export_run(config, int8=int8, gate=gate, max_cases=cases)
        if as_json:
            print_document(stdout, manifest.model_dump(mode="json"))
    if not as_json:
        print_manifest(manifest, config.run_dir / ONNX)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A table, an offline store, or a run that was served.")],
    target: Annotated[
        Path | None,
        typer.Option(help="The policy to test: a bundle or run for a store, a table for a table of rounds."),
    ] = None,
    served: Annotated[
        Path | None, typer.Option(help="The bundle that wrote a store's lists, where LOG is no run.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option("--event", metavar="TYPE", help="Of a store: what counts as a reward; repeat.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="NAME", help="Of a store: only lists of it; repeat.")
    ] = None,
    places: Annotated[int | None, typer.Option(min=1, help="Only the first places of each list.")] = None,
    epsilon: Annotated[float, typer.Option(min=0, max=1, help="Share of lists a tested bundle draws at random.")] = 0.0,
    candidates: Annotated[int, typer.Option(min=2, help="What a tested bundle draws from.")] = 50,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of intervals.")] = 0.95,
    resamples: Annotated[int, typer.Option(min=100, help="Of users, for bootstrap intervals.")] = 1000,
    tuning: Annotated[
        Literal["error_bound", "error", "slope"],
        typer.Option(help="Parameters of estimators: error_bound keeps intervals honest, the others accept bias."),
    ] = "error_bound",
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """What another policy would have earned, from the log of the one that was served.

    Every estimator with its intervals, and none where the log cannot say: refused, with the reason. Tables have columns
    request_id, user_id, item_id, reward, propensity and target_propensity; of lists also position,
    marginal_propensity and target_marginal_propensity. A table of the target has item_id and propensity, and may have
    logged_propensity (checks the log, by tenths) and semantic_id, such as 17-3-201 (adds estimates by prefixes).
    """
    from recsys.simulator.off_policy import OffPolicyConfig
    from training.replay import ReplayOptions, print_replay
    from training.replay import replay as replay_log

    options = ReplayOptions(
        target=target,
        served=served,
        events=event or (),
        sources=source or (),
        places=places,
        epsilon=epsilon,
        candidates=candidates,
    )
    config = OffPolicyConfig(confidence=confidence, n_resamples=resamples, tuning=tuning, seed=seed)
    with results_only_stdout() as stdout:
        document = replay_log(log, options, config)
        if as_json:
            print_document(stdout, document)
    if not as_json:
        print_replay(document)


@tokenizer_app.command()
def report(run: RunPath, as_json: AsJson = False) -> None:
    """Quality of the semantic IDs: duplicates before and after resolution, use of the codebooks."""
    from training.results import find_run, print_tokenizer_report, read_tokenizer_report

    document = read_tokenizer_report(find_run(run))
    if as_json:
        with results_only_stdout() as stdout:
            print_document(stdout, document)
    else:
        print_tokenizer_report(document)


@tokenizer_app.command()
def drift(run: RunPath, other: OtherRunPath, as_json: AsJson = False) -> None:
    """Do RUN's codebooks still serve the catalogue of OTHER_RUN? Compares it with the items they were fitted on.

    Both runs must have encoded their items in the same way, from text alone.
    """
    from training.results import find_run, print_drift

    run_dir, other_dir = find_run(run), find_run(other)
    from training.catalogues import drift_between

    with results_only_stdout() as stdout:
        document = drift_between(run_dir, other_dir)
        if as_json:
            print_document(stdout, document)
    if not as_json:
        print_drift(document)


@tokenizer_app.command()
def retokenize(
    run: RunPath,
    other: OtherRunPath,
    out: Annotated[Path, typer.Option("--out", help="Directory to make: semantic_ids, tokenizer and report.json.")],
    refitted: Annotated[
        bool, typer.Option("--refitted/--frozen", help="Take OTHER_RUN's codebooks, under RUN's numbers, or RUN's.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Name the items of OTHER_RUN's catalogue so that items of RUN's keep their semantic IDs wherever possible.

    With RUN's codebooks, only items whose text changed can change their name. A model that was trained on RUN's names
    goes on working for those that stayed; the report says how many did not.
    """
    from training.results import find_run, print_retokenization

    run_dir, other_dir = find_run(run), find_run(other)
    from training.catalogues import retokenize_between

    with results_only_stdout() as stdout:
        document = retokenize_between(run_dir, other_dir, out, refitted=refitted)
        if as_json:
            print_document(stdout, document)
    if not as_json:
        print_retokenization(document, out)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A script of benchmarks/, without .py.")] = "",
    as_json: AsJson = False,
    show_help: Annotated[bool, typer.Option("--help", help="Show this message, or that of NAME, and exit.")] = False,
) -> None:
    """Run a benchmark of the checkout and keep its result in benchmarks/results/.

    Further options go to the benchmark: recsys bench beauty --seeds 3
    """
    from training.bench import bench_names, run_bench

    if show_help and name:
        run_bench(name, ["--help"])
    if show_help:
        typer.echo(context.get_help())
        return
    if not name:
        typer.echo("\n".join(bench_names()))
        return
    with results_only_stdout() as stdout:
        result, path = run_bench(name, context.args)
        if as_json:
            print_document(stdout, result)
    if not as_json:
        for metric, value in result["metrics"].items():
            typer.echo(f"{metric}: {value}")
    console.print("a smoke run, not written" if path is None else f"written to {path}", highlight=False)
