"""Encoders that train on the graph of users and items: CM3, SIGER, and LightGCN as their control."""

from recsys.encoder.graph.config import CM3Config, GraphConfig, LightGCNConfig, SIGERConfig
from recsys.encoder.graph.embeddings import GraphEmbeddings, fit_graph_encoder
from recsys.encoder.graph.report import GraphReport, ModalityGraphReport, graph_report

__all__ = [
    "CM3Config",
    "GraphConfig",
    "GraphEmbeddings",
    "GraphReport",
    "LightGCNConfig",
    "ModalityGraphReport",
    "SIGERConfig",
    "fit_graph_encoder",
    "graph_report",
]
