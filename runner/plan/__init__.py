"""From jobs to packs and places, before anything starts; pure, except for what its arguments look up.

Takes jobs, their states, a machine and the known costs; returns a plan that can be printed and carried out.
"""

from __future__ import annotations

from runner.plan.packs import Pack, Plan, make_plan, pack_key
from runner.plan.predict import Prediction, Predictor

__all__ = ["Pack", "Plan", "Prediction", "Predictor", "make_plan", "pack_key"]
