"""The claim: a language model aligned with feedback foretells which of five films a user takes.

SmolLM2-135M on MovieLens latest-small: untuned, after the supervised fit, and after DPO, each by the letter alone and
after a decision process of its own, beside chance, popularity, nearness to what the user took, and the choice model
that reads no words. Users of the fit are not foretold. Steps that the output directory holds are not made again, so
`seconds` are those of the last start.

    recsys bench mirror [--train-users 128] [--test-users 64] [--modes direct reasoned] [--data-root FOLDER]
                        [--output runs/bench-mirror] [--seed 0] [--threads 1] [--precision bfloat16] [--json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from recsys.generator.lm.reason import ReasonConfig
from recsys.profile.template import TemplateConfig
from recsys.simulator.mirror.distillation import DistillConfig
from recsys.simulator.mirror.scenes import SceneConfig
from recsys.simulator.mirror.simulator import ReadingConfig
from training.bench import SMALL_MOVIELENS, small_movielens
from training.mirror import make_mirror
from training.mirror_world import MirrorConfig, SupervisedConfig
from training.profile_tuning import TuneConfig

_MODEL = "smollm2-135m-instruct"


def main(arguments: list[str]) -> dict[str, Any]:
    """The rows, what was learned from, and the seconds that it took."""
    parser = argparse.ArgumentParser(prog="recsys bench mirror", description=__doc__)
    parser.add_argument("--train-users", type=int, default=128, help="users that the model learns from")
    parser.add_argument("--test-users", type=int, default=64, help="other users, whose choices are foretold")
    parser.add_argument("--modes", nargs="+", choices=("direct", "reasoned"), default=("direct", "reasoned"))
    parser.add_argument("--output", type=Path, default=Path("runs/bench-mirror"), help="where steps are kept")
    parser.add_argument("--data-root", type=Path, help=f"folder that holds {SMALL_MOVIELENS}; fetched when not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the products")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = MirrorConfig(
        data=small_movielens(options.data_root),
        model=_MODEL,
        precision=options.precision,
        train_users=options.train_users,
        test_users=options.test_users,
        scenes=SceneConfig(min_history=10, seed=options.seed),
        max_history=5,
        max_categories=2,
        memory=TemplateConfig(categories=3, brands=0, eras=1),
        teacher_draws=3,
        student_draws=2,
        # The untuned model takes what was argued for as often as chance has it.
        distill=DistillConfig(scenes=options.train_users // 2, behaviour="concluded", seed=options.seed),
        sft=SupervisedConfig(learning_rate=5e-4, warmup_steps=4, max_tokens=512, direct_share=0.6),
        dpo=TuneConfig(loss="dpo", beta=0.1, learning_rate=1e-4, epochs=1, max_tokens=512, seed=options.seed),
        reading=ReadingConfig(together=8, chains=ReasonConfig(chains=1, max_tokens=48, top_p=0.8), seed=options.seed),
        modes=tuple(options.modes),
        checkpoint_steps=10,
        seed=options.seed,
    )
    started, processor = time.monotonic(), time.process_time()
    report = make_mirror(config, options.output)
    return {
        **report,
        "seconds": time.monotonic() - started,
        "processor_seconds": time.process_time() - processor,
    }
