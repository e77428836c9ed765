"""What the process imports that `children.processes` forks children from."""

import gc
import importlib

gc.disable()  # as in `mirage.cli`: what modules consist of stays
for name in (
    "children.mini_training", "children.rmu_training", "children.sharded_training", "children.tiny_training",
    "mirage.training", "mirage.rewriting.frames", "sklearn.linear_model", "sklearn.feature_extraction.text",
    "sklearn.model_selection", "peft", "torch.utils.tensorboard", "matplotlib.backends.backend_agg",
    "mirage.report.figures",
):  # fmt: skip
    importlib.import_module(name)
gc.freeze()
gc.enable()
