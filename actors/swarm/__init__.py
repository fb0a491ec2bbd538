"""``ropewalk swarm``: many sessions at once in one runtime, each talking to a model, and what that took. Nothing here is imported by the library."""

from ropewalk.actors.swarm.swarm import SwarmOptions, run_swarm
from ropewalk.actors.swarm.talks import Swarm, TurnTaken

__all__ = ["Swarm", "SwarmOptions", "TurnTaken", "run_swarm"]
