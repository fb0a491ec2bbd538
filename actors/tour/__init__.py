"""The tour: everything this part of Ropewalk promises, shown in a minute or two.

Each part runs for real and is checked as it runs; what differs from what it should be is a sentence at the end and a
nonzero exit status. Nothing here is imported by the library.
"""

from ropewalk.actors.tour.tour import TourOptions, run_tour

__all__ = ["TourOptions", "run_tour"]
