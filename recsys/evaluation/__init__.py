"""Offline evaluation: one protocol, one place for the metrics, baselines that are run, reports that say how."""

from __future__ import annotations

from recsys.evaluation.baselines import Baseline, build_baseline
from recsys.evaluation.baselines.sasrec import SasRec
from recsys.evaluation.bootstrap import Interval
from recsys.evaluation.config import BaselineName, EvaluationConfig, SasRecConfig
from recsys.evaluation.html import save_html
from recsys.evaluation.protocol import evaluate
from recsys.evaluation.ranker import Ranker
from recsys.evaluation.report import EvaluationProtocol, EvaluationReport, Segment, TrainingCurve
from recsys.evaluation.table import print_report

__all__ = [
    "Baseline",
    "BaselineName",
    "EvaluationConfig",
    "EvaluationProtocol",
    "EvaluationReport",
    "Interval",
    "Ranker",
    "SasRec",
    "SasRecConfig",
    "Segment",
    "TrainingCurve",
    "build_baseline",
    "evaluate",
    "print_report",
    "save_html",
]
