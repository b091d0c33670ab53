"""Evaluation: feature cosine, class match and Frechet distances of reconstructions (arXiv 2505.21032)."""

from featinv_fast.evaluate.bootstrap import interval
from featinv_fast.evaluate.ceiling import autoencoder_of
from featinv_fast.evaluate.class_names import class_count, class_numbers
from featinv_fast.evaluate.classifier import Classifier, Pooled
from featinv_fast.evaluate.comparison import COMPARED, comparison_cells, comparison_csv
from featinv_fast.evaluate.feature_spaces import WORLD_DISTANCE, InceptionFeatures, PooledFeatures
from featinv_fast.evaluate.frechet import (
    FeatureSpace,
    FewSamplesWarning,
    FrechetDistance,
    GaussianMoments,
    frechet_distance,
)
from featinv_fast.evaluate.html_page import html_page
from featinv_fast.evaluate.inputs import Example, Inverter
from featinv_fast.evaluate.measures import MEASURES, SPREADS, Measure, Seen, lpips
from featinv_fast.evaluate.metrics import CosineSummary, FeatureCosine, TopKMatch
from featinv_fast.evaluate.pages import Panel, contact_sheet, picture_page, spread_map
from featinv_fast.evaluate.plots import quality_plot
from featinv_fast.evaluate.reconstruct import EvaluationInterrupted, evaluate
from featinv_fast.evaluate.report import Distance, Figure, Item, Kind, Picture, Report, Row
from featinv_fast.evaluate.tables import FIGURES_TITLE, figure_cells, group_cells, markdown, note_lines, summary_cells
from featinv_fast.samplers import Setting

__all__ = [
    "COMPARED",
    "FIGURES_TITLE",
    "MEASURES",
    "SPREADS",
    "WORLD_DISTANCE",
    "Classifier",
    "CosineSummary",
    "Distance",
    "EvaluationInterrupted",
    "Example",
    "FeatureCosine",
    "FeatureSpace",
    "FewSamplesWarning",
    "Figure",
    "FrechetDistance",
    "GaussianMoments",
    "InceptionFeatures",
    "Inverter",
    "Item",
    "Kind",
    "Measure",
    "Panel",
    "Picture",
    "Pooled",
    "PooledFeatures",
    "Report",
    "Row",
    "Seen",
    "Setting",
    "TopKMatch",
    "autoencoder_of",
    "class_count",
    "class_numbers",
    "comparison_cells",
    "comparison_csv",
    "contact_sheet",
    "evaluate",
    "figure_cells",
    "frechet_distance",
    "group_cells",
    "html_page",
    "interval",
    "lpips",
    "markdown",
    "note_lines",
    "picture_page",
    "quality_plot",
    "spread_map",
    "summary_cells",
]
