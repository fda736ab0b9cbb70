"""Knowing before: what a job will write, hold in memory and take, from the code that will run and without weights.

contents    the tensors of the checkpoint: `Output.promised`, on the meta device
forward     one forward on the meta device: operations, distinct inputs, activations
rates       a quarter second of measured products
memory      the most that is held at once, and the stage that holds it
seconds     operations by rates, a range
model_free  the same of a job without a model, file by file
prediction  all of it, as `coldpress plan` prints it and `report.json` keeps it
"""

from coldpress.planning.model_free import predict_model_free
from coldpress.planning.predict import predict
from coldpress.planning.prediction import Prediction

__all__ = ["Prediction", "predict", "predict_model_free"]
